"""RAM: how much this machine has and has left, how much this process holds, and giving back what it has freed.

Linux tells through /proc; elsewhere the answers are None, and whoever asks does without.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_CGROUP: Final = Path("/sys/fs/cgroup")


def total_bytes(*, cgroup: Path = _CGROUP) -> int:
    """Return the RAM of this machine, or of this container where it has less."""
    ram_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(cgroup / "memory.max")
    return ram_bytes if limit is None else min(ram_bytes, limit)


def available_bytes(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """Return how much RAM can be had without pushing anybody's pages out to disk; files that are cached count as free.

    In a container that is what its limit leaves, if less. None where the system does not tell.
    """
    machine = _field(proc / "meminfo", "MemAvailable:", 1024)
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if machine is None or limit is None or used is None:
        return machine
    cached = _field(cgroup / "memory.stat", "inactive_file", 1) or 0
    return min(machine, limit - used + cached)


def held_bytes(*, proc: Path = _PROC) -> int | None:
    """Return the RAM of this process that is its own: neither pages of files nor what was given back."""
    status = proc / "self" / "status"
    anonymous, shared = _field(status, "RssAnon:", 1024), _field(status, "RssShmem:", 1024)
    return None if anonymous is None or shared is None else anonymous + shared


def give_back() -> None:
    """Return freed memory to the system; glibc keeps what lies between pieces still in use. Elsewhere nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _field(path: Path, name: str, unit: int) -> int | None:
    """Return the number behind the word `name` at the start of a line, in units of so many bytes."""
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(words[1]) * unit for words in map(str.split, lines) if words[:1] == [name]), None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):  # no such file, or `max`
        return None
