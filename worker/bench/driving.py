"""An engine as the benchmark drives it: units in, and when each came out."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from worker.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from farm.jobs import Unit
    from worker.pipelines.base import Pipeline
    from worker.seat import Rendered

_LIMIT_S: Final = 3600.0
"""Longest wait for one image: a compiler may take its time, but not that long."""


class Driver:
    """Runs an engine with one model for the length of a `with` block. Times are of `clock`, seconds."""

    def __init__(self, pipeline: Pipeline, *, max_batch: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.engine = Engine(lambda _: pipeline, max_batch=max_batch)
        self._news = threading.Condition()
        self._ended_at: dict[Future[Rendered], float] = {}
        self._finished: list[Unit] = []

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()

    @property
    def finished(self) -> list[Unit]:
        """The units that are out, in order, since the last call of `submit`."""
        with self._news:
            return list(self._finished)

    def submit(self, units: Sequence[Unit], on_image: Callable[[], None] = lambda: None) -> list[Future[Rendered]]:
        """Queue `units`, all at once: one that had begun alone would be a step ahead of the others to the end.

        `on_image` is called after each of them by the engine's thread, which waits for it: what is seen there is how
        things stood just then, however long other threads stand still.
        """
        with self._news:
            self._finished.clear()
        futures = []
        with self.engine.together():
            for unit in units:
                future = self.engine.submit(unit)
                future.add_done_callback(partial(self._note, unit, on_image))
                futures.append(future)
        return futures

    def render(self, units: Sequence[Unit]) -> list[Rendered]:
        """Queue `units` and wait for all of them."""
        return self.wait(self.submit(units))

    def wait(self, futures: Sequence[Future[Rendered]]) -> list[Rendered]:
        """Return what came of each; raises the error of the first that failed."""
        results = [future.result(_LIMIT_S) for future in futures]
        with self._news:  # the engine's thread notes it a moment later
            if not self._news.wait_for(lambda: all(future in self._ended_at for future in futures), _LIMIT_S):
                raise TimeoutError(f"no end within {_LIMIT_S:.0f} s")
        return results

    def ended_at(self, futures: Sequence[Future[Rendered]]) -> float:
        """Return when the last of them was out."""
        return max(self._ended_at[future] for future in futures)

    def _note(self, unit: Unit, on_image: Callable[[], None], future: Future[Rendered]) -> None:
        """Write down the time; called by the engine's thread."""
        now = self.clock()
        with self._news:
            self._finished.append(unit)
        try:
            on_image()
        finally:
            with self._news:
                self._ended_at[future] = now
                self._news.notify_all()
