"""What a step costs by the number of its seats, and how many seats follow from that. Pure: nothing is timed here.

Owns the rule: the smallest batch whose images per second are within a few percent of the best that was measured. More
seats than that would make nobody's image sooner and everybody's later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from statistics import median
from typing import Any, Final, Self

WITHIN: Final = 0.03
"""Of the best rate, that may be left on the table for a smaller batch."""
BATCHES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Seats that are tried: close together where one more changes much, then two for each doubling."""


class End(StrEnum):
    """Why no larger batch was tried."""

    FLAT = "flat"  # more seats brought nothing any more
    MEMORY = "memory"  # the next batch ran out of it
    BOUND = "bound"  # the largest that was allowed
    TIME = "time"  # measuring has to end at some point


@dataclass(frozen=True, slots=True)
class StepCurve:
    """Milliseconds of one step by its number of seats: medians over `rounds`, so that one hiccup decides nothing."""

    step_ms: Mapping[int, float]
    rounds: int
    end: End
    bound: int  # the largest batch that was allowed

    @classmethod
    def of(cls, times_ms: Mapping[int, Sequence[float]], *, end: End, bound: int) -> Self:
        """Return the curve through the medians of `times_ms`, by batch; each has as many rounds."""
        rounds = {len(times) for times in times_ms.values()}
        if len(rounds) > 1 or 0 in rounds:
            raise ValueError(f"medians over different numbers of rounds: {sorted(rounds)}")
        medians = {batch: median(times) for batch, times in sorted(times_ms.items())}
        return cls(medians, next(iter(rounds), 0), end, bound)

    def rate(self, batch: int) -> float:
        """Return how many seats make a step per second with so many of them. The batch must be a measured one."""
        return 1000 * batch / self.step_ms[batch]

    def answers(self, bound: int) -> bool:
        """Whether it says what is best up to `bound`: not where it could not go on, or had no time while it rose."""
        match self.end:
            case End.TIME:
                return best_batch(self, most=bound) is not None
            case End.BOUND:
                return bound <= self.bound
            case End.MEMORY:
                return bound <= max(self.step_ms, default=0)
            case End.FLAT:
                return True

    def as_json(self) -> dict[str, Any]:
        """Return what the store keeps."""
        return {
            "step_ms": {str(batch): round(ms, 4) for batch, ms in self.step_ms.items()},
            "rounds": self.rounds,
            "end": str(self.end),
            "bound": self.bound,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Return the curve that `as_json` told; raises LookupError, ValueError, TypeError or AttributeError else."""
        step_ms = {int(batch): float(ms) for batch, ms in told["step_ms"].items()}
        if not all(batch >= 1 and 0 < ms < float("inf") for batch, ms in step_ms.items()):
            raise ValueError(f"no step takes that long: {step_ms}")
        ordered = dict(sorted(step_ms.items()))
        return cls(ordered, int(told["rounds"]), End(told["end"]), int(told["bound"]))


def batches_up_to(bound: int) -> list[int]:
    """Return the batches to try: those of BATCHES below `bound`, and `bound`."""
    return [*takewhile(lambda batch: batch < bound, BATCHES), bound]


def best_of(rates: Mapping[int, float], *, within: float = WITHIN) -> int:
    """Return the smallest batch whose rate is within a share of the best; there must be one."""
    enough = (1 - within) * max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= enough)


def best_batch(curve: StepCurve, *, most: int, within: float = WITHIN) -> int | None:
    """Return the smallest batch up to `most` whose rate is within a share of the best; None when the curve cannot tell.

    It cannot where no batch up to `most` was measured, and where measuring had to end while the rate still rose.
    """
    allowed = [batch for batch in curve.step_ms if batch <= most]
    if not allowed:
        return None
    chosen = best_of({batch: curve.rate(batch) for batch in allowed}, within=within)
    still_rises = curve.end is End.TIME and chosen == max(curve.step_ms) < most
    return None if still_rises else chosen
