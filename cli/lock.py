"""One data folder, one farm: the lock that says so."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cli.exits import CliError, Exit
from cli.show import note

LOCK_FILE: Final = "farm.lock"

_WAIT_S: Final = 60.0
_TICK_S: Final = 0.1


@contextlib.contextmanager
def lock(data: Path) -> Iterator[int]:
    """Hold the data folder for one `farm up`; waits for the remains of one that was killed.

    The tether of a killed farm keeps the lock until the last child has ended, so nothing starts on top of them.
    """
    with (data / LOCK_FILE).open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _WAIT_S
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                if is_running(holder) or time.monotonic() > deadline:
                    message = f"{data} is in use by another `farm up` (process {holder or 'unknown'})"
                    raise CliError(f"{message}; stop it, or choose another --data", code=Exit.IN_USE) from None
                if not told:
                    note("a farm that was killed is still ending; waiting for it")
                    told = True
                time.sleep(_TICK_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def is_running(pid: str) -> bool:
    """Whether a process of this number runs, zombies apart."""
    if not pid.isdigit():
        return True  # locked, and its owner has not written its number yet
    try:
        os.kill(int(pid), 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
