"""What was measured on a kind of card, in one JSON file for each kind, with where every number comes from.

Owns the file: that it is whole whoever writes beside us, and that no state of the disk costs more than measuring anew.
What is measured, and what follows from it, others know.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import re
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch

from worker.gpu import driver_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.gpu import Device

log: Final = logging.getLogger(__name__)

FORMAT: Final = 1
"""Counts up when entries mean something else; a file of another format is put aside."""
TUNING_FOLDER: Final = ".tuning"
"""In the models folder, where no other is named."""
MAX_ENTRIES: Final = 4000
"""Entries of one file. The oldest go first: those of library versions and models that nobody uses any more."""
_LOCK_WAIT_S: Final = 2.0
"""How long a writer waits for another one, who takes milliseconds unless its disk hangs."""
_LOCK_POLL_S: Final = 0.01

Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who measures: the kind of card, and the software that the numbers hold for."""

    card: str  # "NVIDIA GeForce RTX 4090, 24 GiB": cards of one name come with more memory and with less
    torch: str
    diffusers: str
    driver: str  # told, and no part of keys: a new driver changes little; "" on a CPU

    @classmethod
    def of(cls, device: Device) -> Self:
        """Return the origin of what is measured on `device` by this process."""
        if device.torch.type == "cuda":
            memory_bytes = torch.cuda.get_device_properties(device.torch).total_memory
            card = f"{device.kind}, {round(memory_bytes / 2**30)} GiB"
        else:
            card = f"{device.kind}, {platform.machine()}, {torch.get_num_threads()} threads"
        return cls(card, str(torch.__version__), metadata.version("diffusers"), driver_version())


def key_of(what: str, **facts: str | int | bool | None) -> str:
    """Return the key of a measurement of `what` under these `facts`, whose order is of no account."""
    return " ".join([what, *(f"{name}={facts[name]}" for name in sorted(facts))])


class Measured:
    """The measurements of one kind of card. Any thread may ask, and several processes share a file.

    A disk that is full, read-only or hangs is told of in the log; what is put is then kept for this process alone.
    """

    def __init__(self, folder: Path | None, origin: Origin, *, now: Callable[[], float] = time.time) -> None:
        """Keep measurements in `folder`; None keeps them in memory alone."""
        self._path = None if folder is None else folder / f"{_file_name(origin.card)}.json"
        self._origin = origin
        self._now = now
        self._lock = threading.Lock()  # guards what follows
        self._entries: Entries = {}  # as the file has them, and what could not be written there
        self._seen: tuple[int, ...] | None = None  # the state of the file that they were read from
        self._has_complained = False

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was put under `key` by this version of torch and diffusers, here or by a neighbour; else None."""
        with self._lock:
            self._refresh()
            entry = self._entries.get(self._full(key))
            return None if entry is None else _copy(entry["value"])

    def put(self, key: str, value: Mapping[str, Any], *, rounds: int = 1) -> None:
        """Keep `value`, each number of which was measured `rounds` times; raises TypeError for what JSON cannot say."""
        measured_at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds")
        origin = {**asdict(self._origin), "measured_at": measured_at, "rounds": rounds}
        entry = _copy({"value": dict(value), "origin": origin})
        with self._lock:
            self._entries[self._full(key)] = entry
            if self._path is None:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self._path.with_suffix(".lock")):
                    self._refresh()  # a neighbour may have written since
                    self._entries[self._full(key)] = entry
                    self._write(self._path)
            except OSError as error:
                self._complain("what was measured is not kept", error)

    def _full(self, key: str) -> str:
        return f"{key} torch={self._origin.torch} diffusers={self._origin.diffusers}"

    def _refresh(self) -> None:
        """Read the file if it is not as it was; what could not be written before stays."""
        if self._path is None:
            return
        try:
            seen = _state_of(self._path)
            if seen != self._seen:
                self._seen = seen  # a broken file that cannot be moved is not complained of at every question
                self._entries |= _parse(self._path.read_text("utf-8"))
        except FileNotFoundError:
            self._seen = None
        except OSError as error:
            self._complain("what was measured cannot be read", error)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            self._put_aside(self._path, error)

    def _put_aside(self, path: Path, error: Exception) -> None:
        """Make place for a new file, and keep the broken one for whoever wants to look."""
        aside = path.with_suffix(".aside")
        words = "what was measured on %s is measured anew; its file, now %s, cannot be used: %s"
        log.warning(words, self._origin.card, aside, error, extra={"action": "measured_put_aside"})
        try:
            if _state_of(path) == self._seen:  # else a neighbour was quicker, and has written a new one
                path.replace(aside)
        except OSError as problem:
            self._complain("the broken file stays", problem)

    def _write(self, path: Path) -> None:
        """Replace the file as a whole."""
        newest = sorted(self._entries, key=lambda key: self._entries[key]["origin"]["measured_at"])[-MAX_ENTRIES:]
        content = {"format": FORMAT, "card": self._origin.card, "entries": {k: self._entries[k] for k in newest}}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, sort_keys=True)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._seen = _state_of(path)

    def _complain(self, what: str, error: OSError) -> None:
        """Say so once: a disk that is read-only will be so the next time."""
        level = logging.DEBUG if self._has_complained else logging.WARNING
        log.log(level, "%s: %s", what, error, extra={"action": "measured_unsaved"})
        self._has_complained = True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only one who writes; raises TimeoutError when somebody else is for too long."""
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise TimeoutError(f"{path} has been locked for {_LOCK_WAIT_S:g} s") from None
                time.sleep(_LOCK_POLL_S)
        yield  # closing the file gives the lock back


def _parse(text: str) -> Entries:
    """Return the entries of a file; raises ValueError, TypeError, LookupError or AttributeError for anything else."""
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
    entries: Entries = {}
    for key, entry in content["entries"].items():
        value, origin = dict(entry["value"]), dict(entry["origin"])
        origin["measured_at"] = str(origin["measured_at"])
        entries[key] = {"value": value, "origin": origin}
    return entries


def _state_of(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _copy(value: dict[str, Any]) -> dict[str, Any]:
    """Return what a file would give back, whoever changes the original."""
    copy: dict[str, Any] = json.loads(json.dumps(value))
    return copy


def _file_name(card: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", card).strip("-.") or "card"
