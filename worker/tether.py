"""Ends this process when its parent is gone: stdin is a pipe that only the parent holds, and its end is the sign.

Works on every system and for every way to die, and asks for a drain rather than killing.
"""

from __future__ import annotations

import os
import signal
import threading


def end_with_parent() -> None:
    """Send ourselves SIGTERM when stdin ends."""
    threading.Thread(target=_watch, name="tether", daemon=True).start()


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
