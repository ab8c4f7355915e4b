"""A stand-in for the CUDA driver's graphs: it records a forward and computes it again from the same memory.

What a graph does, it does: a replay reads inputs and weights where they lay when it was recorded, and leaves its result
where the next replay of any recording writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(eq=False)
class ReplayedForward:
    """One recording of a Replayer."""

    run: Callable[[], torch.Tensor]
    output: torch.Tensor
    replayer: Replayer

    def replay(self) -> None:
        """Compute again; what other recordings left is gone."""
        self.replayer.num_replays += 1
        for other in self.replayer.recordings:
            other.output.fill_(torch.nan)
        self.output.copy_(self.run())


@dataclass(eq=False)
class Replayer:
    """A `Capturer` for CPUs, which can be told to fail."""

    failure: Exception | None = None
    recordings: list[ReplayedForward] = field(default_factory=list)
    num_replays: int = 0

    def warm_up(self, run: Callable[[], torch.Tensor]) -> None:
        """Run once."""
        run()

    def capture(self, run: Callable[[], torch.Tensor]) -> ReplayedForward:
        """Record one run, whose result nobody may rely on before a replay."""
        if self.failure is not None:
            raise self.failure
        recording = ReplayedForward(run, torch.full_like(run(), torch.nan), self)
        self.recordings.append(recording)
        return recording
