"""Reads weights from disk before they are needed: into the page cache, by a thread of its own, while others render.

A load then finds its files in RAM. What lacks is downloaded and what was never hashed is hashed on the way, so that
the engine's thread need not. Reading ahead takes only RAM that is free, and whatever fails here is told by the load.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from farm.errors import FarmError
from farm.weights import Digests
from worker.ram import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

log: Final = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 4 * 2**20
_RESERVE_BYTES: Final = 2 * 2**30
"""RAM that stays free: for the load itself, and everybody else on this machine."""
_FRESH_S: Final = 60.0
"""How long a model that was read ahead is not read again; each of its units that comes asks for it."""


class Reader(Protocol):
    """Reads a file to its end and calls `tell` after each piece with the bytes read, and those there are."""

    def __call__(self, path: Path, tell: Callable[[int, int], None], /) -> None:
        """Read; whatever `tell` raises ends it."""


class Prefetch:
    """The thread that reads ahead; `find` names a model's files of weights, and may take its time."""

    def __init__(
        self,
        find: Callable[[str], Iterable[Path]],
        read: Reader,
        *,
        available: Callable[[], int | None] = available_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._read = read
        self._available = available
        self._clock = clock
        self._changed = threading.Condition()  # guards what follows
        self._expected: deque[str] = deque()
        self._current: str | None = None
        self._is_over = False  # of the current one
        self._done_at_s: dict[str, float] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading. The thread ends by itself, at once unless it waits for the hub."""
        with self._changed:
            self._stopped = self._is_over = True
            self._changed.notify_all()

    def expect(self, model: str) -> None:
        """Read the weights of `model` soon, unless that was done a moment ago. Any thread may ask; returns at once."""
        with self._changed:
            is_fresh = self._clock() - self._done_at_s.get(model, -_FRESH_S) < _FRESH_S
            if is_fresh or model == self._current or model in self._expected:
                return
            self._expected.append(model)
            self._changed.notify_all()

    def give_over(self, model: str) -> None:
        """Read no more of `model`: it is being loaded, and two readers of one file are slower than one."""
        with self._changed:
            self._done_at_s.pop(model, None)
            if model in self._expected:
                self._expected.remove(model)
            if model == self._current:
                self._is_over = True

    def _run(self) -> None:
        while (model := self._next()) is not None:
            try:
                self._read_model(model)
            except _OverError:
                pass
            except (FarmError, OSError) as error:
                log.warning("%s was not read ahead: %s", model, error, extra={"action": "prefetch_failed"})
            except Exception:
                log.exception("%s was not read ahead", model, extra={"action": "prefetch_failed"})
            with self._changed:
                self._current = None
                self._done_at_s[model] = self._clock()

    def _next(self) -> str | None:
        with self._changed:
            while not self._expected and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            self._current = self._expected.popleft()
            self._is_over = False
            return self._current

    def _read_model(self, model: str) -> None:
        began_s = self._clock()
        paths = list(self._find(model))
        num_bytes = sum(path.stat().st_size for path in paths)
        self._go_on(0, num_bytes)
        for path in paths:
            self._read(path, self._go_on)
        elapsed_s = self._clock() - began_s
        extra = {"action": "model_prefetched", "model": model}
        log.info("%s was read ahead: %.2f GB in %.1f s", model, num_bytes / 1e9, elapsed_s, extra=extra)

    def _go_on(self, done_bytes: int, num_bytes: int) -> None:
        """Raise _OverError when nobody needs this any more, or when the rest would push others out of RAM."""
        with self._changed:
            if self._is_over:
                raise _OverError
        free = self._available()
        if free is None or free - (num_bytes - done_bytes) < _RESERVE_BYTES:
            words = "unknown" if free is None else f"{free / 1e9:.1f} GB"
            log.info(
                "no RAM to read ahead: %.1f GB are to come, free are %s",
                (num_bytes - done_bytes) / 1e9,
                words,
                extra={"action": "prefetch_skipped"},
            )
            raise _OverError


class _OverError(Exception):
    """Reading ends here, and nothing is wrong."""


def read_through(path: Path, tell: Callable[[int, int], None]) -> None:
    """Read a file in pieces, front to back, as the kernel likes it best; a Reader."""
    num_bytes, done = path.stat().st_size, 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
            tell(done, num_bytes)


def read_or_hash(cache: Path) -> Reader:
    """Return a Reader that computes a file's digest, if `cache` has none yet, for that reads it as well."""

    def read(path: Path, tell: Callable[[int, int], None]) -> None:
        digests = Digests(cache)  # as it is now: loads write to it, too
        if digests.recorded(path) is None:
            digests.of(path, tell)
        else:
            read_through(path, tell)

    return read
