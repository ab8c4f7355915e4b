"""One run of a scheduler on random numbers: what it was given, what it made of them, and what it drew.

Reads nothing into the numbers; worker/sampling/schedules.py does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worker.sampling.specs import PreparedScheduler

NUM_PROBES: Final = 64
_SHAPE: Final = (1, NUM_PROBES, 1, 1)  # some schedulers insist on four dimensions


@dataclass(frozen=True, eq=False)
class BrownianPath:
    """Which pieces of a Brownian path a run's noise comes from: sigmas, exactly as the scheduler computes them."""

    sigma_min: float
    sigma_max: float
    intervals: tuple[tuple[float, float] | None, ...]  # [calls], None where nothing is drawn


@dataclass(frozen=True, eq=False)
class ProbeRun:
    """A whole run on independent scalar probes."""

    timesteps: NDArray[np.float64]  # [calls]
    input_scale: NDArray[np.float64]  # [calls]
    before: NDArray[np.float64]  # [calls, probes], latents that each call was given
    predictions: NDArray[np.float64]  # [calls, probes]
    noise: NDArray[np.float64]  # [calls, probes], zero where nothing was drawn
    after: NDArray[np.float64]  # [calls, probes], latents that each call returned
    draws_noise: tuple[bool, ...]  # [calls]
    brownian: BrownianPath | None
    start: tuple[float, float]  # weights of (image, noise) in noisy latents before the first call
    renoise: NDArray[np.float64]  # [calls, 2], likewise after each call; (1, 0) after the last


class DrawsTwiceError(Exception):
    """A step drew noise in a way that a table has no column for."""


def probe(prepared: PreparedScheduler, *, free: bool) -> ProbeRun:
    """Run a scheduler on random predictions, and `free` on random latents for every call, else on its own.

    Raises what diffusers raises, and DrawsTwiceError.
    """
    probes = torch.Generator("cpu").manual_seed(0)
    generator = torch.Generator("cpu").manual_seed(1)
    calls = len(prepared.timesteps)
    recorder = _BrownianRecorder(probes) if prepared.is_brownian else None
    if recorder is not None:
        prepared.scheduler.noise_sampler = recorder

    predictions = torch.randn((calls, *_SHAPE), generator=probes, dtype=torch.float64)
    latents = torch.randn((calls, *_SHAPE), generator=probes, dtype=torch.float64)
    noise = torch.zeros((calls, *_SHAPE), dtype=torch.float64)
    after = torch.zeros((calls, *_SHAPE), dtype=torch.float64)
    ones = torch.ones(_SHAPE, dtype=torch.float64)
    input_scale, draws, intervals = [], [], []
    renoise = np.zeros((calls, 2))
    start = _noising(prepared, 0)
    for call in range(calls):
        input_scale.append(float(prepared.scale(call, ones).mean()))
        before_state = generator.get_state()
        after[call] = prepared.step(call, predictions[call], latents[call], generator)
        drawn = _redraw(before_state, generator.get_state())
        interval = None
        if recorder is not None:
            interval, drawn = recorder.take()
        draws.append(drawn is not None)
        intervals.append(interval)
        if drawn is not None:
            noise[call] = drawn
        if call + 1 < calls:
            renoise[call] = _noising(prepared, call + 1)
            if not free:
                latents[call + 1] = after[call]
    renoise[-1] = (1.0, 0.0)

    def flat(tensor: torch.Tensor) -> NDArray[np.float64]:
        return tensor.view(calls, NUM_PROBES).numpy()

    return ProbeRun(
        timesteps=prepared.timesteps.double().numpy(),
        input_scale=np.array(input_scale),
        before=flat(latents),
        predictions=flat(predictions),
        noise=flat(noise),
        after=flat(after),
        draws_noise=tuple(draws),
        brownian=None if recorder is None else recorder.path(prepared.scheduler, intervals),
        start=start,
        renoise=renoise,
    )


def _noising(prepared: PreparedScheduler, call: int) -> tuple[float, float]:
    """Return the weights of (image, noise) in latents as noisy as those before `call`."""
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64).view(1, 2, 1, 1)
    kept, added = prepared.add_noise(call, image, 1 - image).flatten().tolist()
    return kept, added


def _redraw(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor | None:
    """Return the noise whose drawing took a generator from state `before` to `after`, None when none was drawn."""
    if torch.equal(before, after):
        return None
    twin = torch.Generator("cpu")
    # Most schedulers draw in the prediction's type (float64 here), DPM-Solver and flow schedulers always in float32.
    for dtype in (torch.float64, torch.float32):
        twin.set_state(before)
        noise = torch.randn(_SHAPE, generator=twin, dtype=dtype)
        if torch.equal(twin.get_state(), after):
            return noise.double()
    raise DrawsTwiceError


class _BrownianRecorder:
    """Stands in for a scheduler's Brownian tree: notes which interval is asked for, and answers with a probe."""

    def __init__(self, probes: torch.Generator) -> None:
        self._probes = probes
        self._asked: list[tuple[tuple[float, float], torch.Tensor]] = []

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(_SHAPE, generator=self._probes, dtype=torch.float64)
        self._asked.append(((float(sigma), float(sigma_next)), noise))
        return noise

    def take(self) -> tuple[tuple[float, float], torch.Tensor] | tuple[None, None]:
        """Return the interval asked for since the last time and what was answered."""
        asked, self._asked = self._asked, []
        if len(asked) > 1:
            raise DrawsTwiceError
        return asked[0] if asked else (None, None)

    @staticmethod
    def path(scheduler: Any, intervals: list[tuple[float, float] | None]) -> BrownianPath:
        """Return the path that the scheduler itself would span for its run."""
        sigmas = scheduler.sigmas
        return BrownianPath(float(sigmas[sigmas > 0].min()), float(sigmas.max()), tuple(intervals))
