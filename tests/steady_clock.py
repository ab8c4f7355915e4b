"""A clock that runs like any other and is never set: for tests of real time on a machine whose own may be."""

from __future__ import annotations

import time
from typing import Final

_ZERO: Final = time.time() - time.monotonic()


def steady_clock() -> float:
    """Return Unix seconds as they were when this was imported, and as many as have gone by since."""
    return _ZERO + time.monotonic()
