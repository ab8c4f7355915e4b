"""How long a worker takes from its start to its first image: for the first time ever, from disk, and warm.

The first time, files are hashed and whatever is measured or compiled at first use is. `cold` has all that, but must
read the weights from disk; `warm` finds them in the page cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farm.errors import Fatal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_LIMIT_S: Final = 900.0
_ROOT: Final = Path(__file__).resolve().parents[2]


def measure_startup(
    model: str, *, steps: int, weights: Iterable[Path], env: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return, for `first`, `cold` and `warm`, seconds from the process' start to each part of its way.

    `env` are settings for the worker (FARM_*). Raises Fatal with the last words of a process that failed.
    """
    paths = list(weights)
    prepare: Mapping[str, Callable[[], None]] = {
        "first": lambda: None,
        "cold": lambda: forget(paths),
        "warm": lambda: None,
    }
    found = {}
    for name, before in prepare.items():
        before()
        found[name] = start_once(model, steps=steps, env=env)
    return found


def start_once(model: str, *, steps: int, env: Mapping[str, str]) -> dict[str, float]:
    """Start a process, have it render two images, and return the seconds to each part of its way."""
    command = [sys.executable, "-P", "-m", "worker.bench.first_image", model, str(steps)]
    began = time.time()
    done = subprocess.run(
        command, env={**child_env(), **env}, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode:
        raise Fatal(f"a worker that was to start ended with code {done.returncode}: {done.stderr.strip()[-1000:]}")
    at: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    seconds = {f"{name}_s": round(moment - began, 2) for name, moment in at.items()}
    # What is start-up in it: the second image says what rendering takes.
    seconds["image_s"] = round(seconds.pop("second_image_s") - seconds["first_image_s"], 2)
    return seconds


def forget(paths: Iterable[Path]) -> None:
    """Have the system forget what it has cached of files, where it can be told to."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not on disk yet stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def child_env() -> dict[str, str]:
    """Return our environment, with this checkout importable from any working folder."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{path}" if path else str(_ROOT)}
