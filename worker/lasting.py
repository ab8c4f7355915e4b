"""Leaves what stays for as long as the process does out of every search for garbage. Imports nothing that stays long.

torch, diffusers and transformers make half a million objects at import. Looking through them again and again took a
fifth of the imports' CPU time; under way each full collection would hold up the steps of all seats, and at the end the
interpreter took 1.7 s over them (2 cores, Python 3.11).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def coming_to_stay() -> Iterator[None]:
    """Collect no garbage within the `with` block, and never look at what is there at its end."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def leave_it_to_the_system() -> None:
    """Have the interpreter end without a last search: the system takes the memory back at once."""
    gc.freeze()
