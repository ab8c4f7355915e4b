"""Which jobs somebody looks at. Told by claims and news, on any thread; asked by the engine's at every step."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from farm.jobs import Watch


class Closeness(NamedTuple):
    """How closely a job is watched."""

    every_steps: int
    until_s: float  # by the clock


class Watched:
    """The jobs that are watched now.

    `jobs` is replaced, never changed, so that asking it takes no lock; it is empty, hence false, when nobody watches.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.jobs: Mapping[str, Closeness] = {}

    def add(self, job: str, watch: Watch) -> None:
        """Take note that a job is watched: what was known of it before counts no longer."""
        with self._lock:
            until_s = self._clock() + watch.for_s
            self.jobs = self._live() | {job: Closeness(watch.every_steps, until_s)}

    def prune(self) -> None:
        """Forget the jobs that nobody watches any more."""
        with self._lock:
            self.jobs = self._live()

    def clear(self) -> None:
        """Forget all jobs, until somebody says again that they are watched."""
        with self._lock:
            self.jobs = {}

    def _live(self) -> dict[str, Closeness]:
        now_s = self._clock()
        return {job: closeness for job, closeness in self.jobs.items() if closeness.until_s > now_s}
