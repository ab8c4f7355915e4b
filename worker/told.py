"""What happened to one unit on this worker, noted as it happens and told as a trace when it is over (farm/tracing.py).

Only the threads that claim and deliver note anything: where the engine's time went, it says itself with each image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from farm.tracing import Span, Traces

if TYPE_CHECKING:
    from farm.jobs import Hint
    from worker.seat import Timings

_T = TypeVar("_T")


class Story:
    """Nobody's: what is noted where traces are not wanted."""

    def part(self, _name: str) -> AbstractContextManager[None]:
        """Note what is done within the block."""
        return nullcontext()

    def each(self, _name: str, things: Iterable[_T]) -> Iterable[_T]:
        """Return `things`, noting what it takes to make each."""
        return things

    def rode(self, timings: Timings, *, submitted_ns: int) -> None:
        """Note what the engine did since `submitted_ns`, by its own account."""

    def about(self, **attributes: str | float) -> None:
        """Note what else there is to say of the unit."""

    def end(self, outcome: str) -> None:
        """Tell it."""


UNTOLD = Story()


def story_of(hint: Hint, worker: str, traces: Traces) -> Story:
    """Return where to note what happens to a unit."""
    return _Noted(hint, worker, traces) if traces.is_on else UNTOLD


class _Noted(Story):
    def __init__(self, hint: Hint, worker: str, traces: Traces, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._hint = hint
        self._worker = worker
        self._traces = traces
        self._clock_ns = clock_ns
        self._began_ns = clock_ns()
        self._parts: list[Span] = []
        self._about: dict[str, str | float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began_ns, error = self._clock_ns(), None
        try:
            yield
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            raise
        finally:
            self._parts.append(Span(name, began_ns, self._clock_ns(), error=error))

    def each(self, name: str, things: Iterable[_T]) -> Iterable[_T]:
        them = iter(things)
        while True:
            began_ns = self._clock_ns()
            try:
                thing = next(them)
            except StopIteration:
                return
            self._parts.append(Span(name, began_ns, self._clock_ns()))
            yield thing

    def rode(self, timings: Timings, *, submitted_ns: int) -> None:
        """Lay the engine's account out between two moments that are known.

        What a seat takes beyond its own text, steps and decoding went to other lanes, and lies in its steps here.
        """
        ended_ns = self._clock_ns()
        seated_ns = min(ended_ns, submitted_ns + _ns(timings.queued_s))
        encoded_ns = min(ended_ns, seated_ns + _ns(timings.encode_s))
        stepped_ns = max(encoded_ns, ended_ns - _ns(timings.decode_s))
        steps = {
            "farm.steps": timings.steps,
            "farm.mean_batch": round(timings.mean_batch, 2),
            "farm.denoise_s": timings.denoise_s,
        }
        self._parts.append(Span("wait for a seat", submitted_ns, seated_ns))
        self._parts.append(
            Span(
                "seat",
                seated_ns,
                ended_ns,
                {"farm.gpu_s": timings.gpu_s},
                parts=(
                    Span("encode text", seated_ns, encoded_ns),
                    Span("steps", encoded_ns, stepped_ns, steps),
                    Span("decode", stepped_ns, ended_ns),
                ),
            )
        )

    def about(self, **attributes: str | float) -> None:
        self._about |= {f"farm.{name}": value for name, value in attributes.items()}

    def end(self, outcome: str) -> None:
        if outcome == "dropped":  # a message too many: nothing happened
            return
        job, index, attempt = self._hint
        attributes: dict[str, str | float] = {
            "farm.job": job,
            "farm.index": index,
            "farm.attempt": attempt,
            "farm.worker": self._worker,
            "farm.outcome": outcome,
            **self._about,
        }
        error = None if outcome in ("stored", "repeated") else outcome
        span = Span("image", self._began_ns, self._clock_ns(), attributes, parts=tuple(self._parts), error=error)
        self._traces.tell_part(job, span)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
