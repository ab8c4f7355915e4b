"""Which of a forward's rows have something kept, and which kind of forward a run makes next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from worker.caching.memory import Memory
    from worker.pipelines.base import Ride, Sides

DEEP: Final = "deep feature"
"""The name under which DeepCache keeps its feature of a row."""


class CachedRow(NamedTuple):
    """One row of a forward with a cache: whose it is, and on which side."""

    memory: Memory
    side: str
    threshold: float  # of the first-block cache

    def recall(self, name: str) -> torch.Tensor | None:
        """Return what an earlier step kept of this row."""
        return self.memory.recall(self.side, name)

    def note(self, name: str, feature: torch.Tensor) -> None:
        """Note a feature of this row."""
        self.memory.note(self.side, name, feature)


class Phase(NamedTuple):
    """A kind of forward: rows of different kinds cannot share one."""

    skips_blocks: bool  # by the first-block cache
    is_shallow: bool  # of a UNet with DeepCache, in between its whole calls


def cached_rows(rides: Sequence[Ride], sides: Sides) -> tuple[CachedRow | None, ...]:
    """Return one entry for each row of a forward: None for those without a cache, or that only fill up its shape."""
    rows: list[CachedRow | None] = []
    for side, places in (("without", sides.without), ("toward", sides.toward)):
        seen: set[int] = set()
        for place in places:
            acceleration, memory = rides[place].acceleration, rides[place].memory
            if memory is None or place in seen or not acceleration.has_cache:
                rows.append(None)
            else:
                rows.append(CachedRow(memory, side, acceleration.first_block_cache))
            seen.add(place)
    return tuple(rows)


def phase_of(ride: Ride, *, guided: bool) -> Phase:
    """Return which kind of forward `ride` takes next, in a lane that is `guided` or not.

    Whole calls of a UNet are counted from the run's own beginning; one is made out of turn when a row has no feature
    yet, as where guidance begins late.
    """
    interval, memory = ride.acceleration.deep_cache_interval, ride.memory
    is_shallow = False
    if memory is not None and ride.call % interval:
        sides = ("without", "toward") if guided and ride.is_guided else ("toward",)
        is_shallow = all(memory.recall(side, DEEP) is not None for side in sides)
    return Phase(ride.acceleration.first_block_cache > 0 and memory is not None, is_shallow)
