"""The noise of a run: which numbers it draws, and from where, so that they are diffusers' for the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BatchedBrownianTree

if TYPE_CHECKING:
    from worker.sampling.probing import BrownianPath
    from worker.sampling.schedules import Schedule

_DIGITS: Final = 6
"""To which a Brownian tree rounds sigmas, as diffusers sets it up."""


def draw_noise(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Return standard normal noise [1, *shape], float32 on the CPU, as diffusers' pipelines draw it.

    Always on the CPU and in float32, so that a seed means the same noise on every device and in every precision.
    """
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)


class BrownianTree:
    """The noise that DPMSolverSDEScheduler draws with `noise_sampler_seed=seed`, but the same on every device."""

    def __init__(self, path: BrownianPath, shape: tuple[int, ...], seed: int) -> None:
        self._tree = BatchedBrownianTree(
            torch.zeros((1, *shape)), torch.tensor(path.sigma_min), torch.tensor(path.sigma_max), seed
        )
        self._ends = round(path.sigma_min, _DIGITS), round(path.sigma_max, _DIGITS)

    def draw(self, sigma: float, sigma_next: float) -> torch.Tensor:
        """Return the path's increment between two sigmas as standard normal noise, [1, *shape], float32 on the CPU."""
        low, high = self._ends
        # The tree rounds its ends and cuts off what is beyond, as is done here, but with a warning each time.
        increment: torch.Tensor = self._tree(*(min(max(end, low), high) for end in (sigma, sigma_next)))
        return increment / (torch.tensor(sigma_next) - torch.tensor(sigma)).abs().sqrt()


class NoiseSource:
    """The noise of one run, call after call, from its generator or its own Brownian tree.

    The noise of the latest call is kept: asking again, as after a failure, draws nothing.
    """

    def __init__(self, schedule: Schedule, generator: torch.Generator, shape: tuple[int, ...], *, seed: int) -> None:
        self._schedule = schedule
        self._generator = generator
        self._shape = shape
        path = schedule.brownian
        self._tree = None if path is None else BrownianTree(path, shape, seed)
        self._call = -1
        self._noise: torch.Tensor | None = None

    def draw(self, call: int) -> torch.Tensor | None:
        """Return the noise of `call`, [1, *shape], float32 on the CPU; None where the sampler draws none."""
        if call != self._call:
            self._noise = self._draw(call)
            self._call = call
        return self._noise

    def _draw(self, call: int) -> torch.Tensor | None:
        if not self._schedule.draws_noise[call]:
            return None
        if self._tree is None:
            return draw_noise(self._generator, self._shape)
        path = self._schedule.brownian
        interval = None if path is None else path.intervals[call]
        if interval is None:
            raise ValueError(f"call {call} has no piece of the Brownian path")
        return self._tree.draw(*interval)
