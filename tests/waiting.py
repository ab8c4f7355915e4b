"""Waiting for what comes by itself: asked again and again, up to a limit that only something broken crosses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 100.0
"""Longer than any machine stands still."""

_PAUSE_S = 0.02

T = TypeVar("T")


def wait_for(found: Callable[[], T], what: str = "it", *, limit_s: float = PATIENCE_S) -> T:
    """Return what `found()` returns as soon as that is something; asks less often the longer it takes."""
    began_s = time.monotonic()
    while not (value := found()):
        waited_s = time.monotonic() - began_s
        assert waited_s < limit_s, f"waited in vain for {what}"
        time.sleep(_PAUSE_S + min(waited_s / 10, 0.2))
    return value
