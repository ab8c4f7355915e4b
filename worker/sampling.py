"""Samplers as tables: any diffusers scheduler becomes rows of nine weights, and one product advances all seats.

A sampler without clipping is a linear recurrence: the next latents are a weighted sum of the last four latents, the
last four predictions and the step's noise. The weights depend on the scheduler's config and the number of steps alone.
So diffusers' own scheduler is run once, in float64, on random probes; the weights are read off by least squares on one
half of the probes, and must reproduce the whole run on the other half. Samplers that call the model twice per step
(Heun, DPM2, PNDM's start) merely have more rows.

This module knows tensors and schedulers, but no models, seats or lanes.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import diffusers
import numpy as np
import torch

from farm.errors import RenderFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from farm.schedulers import Scheduler

DEPTH: Final = 4
"""Latents and predictions that a table may look back on. LMS and PNDM need all four, UniPC three, the others less."""

NUM_WEIGHTS: Final = 2 * DEPTH + 1

MAX_RESIDUAL: Final = 1e-6
"""Largest error of a table, relative to the latents. Schedulers that keep float32 sigmas leave some 1e-7."""

_NUM_PROBES: Final = 64
_NOISE: Final = NUM_WEIGHTS - 1


@dataclass(frozen=True, eq=False)
class Schedule:
    """What a scheduler does in a run of `len(schedule)` model calls, as data.

    `weights[i]` multiplies x[i] … x[i-3], m[i] … m[i-3] and the noise of call i, and gives x[i+1].
    """

    timesteps: NDArray[np.float64]  # [calls]
    input_scale: NDArray[np.float64]  # [calls], the model sees input_scale[i] * x[i]
    weights: NDArray[np.float64]  # [calls, 9]
    draws_noise: tuple[bool, ...]  # [calls], whether diffusers draws, be the weight zero or not
    init_noise_sigma: float
    residual: float  # of the whole run on probes that the fit has not seen

    def __len__(self) -> int:
        return len(self.timesteps)


def schedule_for(row: Scheduler, model_config: Mapping[str, Any], num_inference_steps: int) -> Schedule:
    """Return the table of `row` for a model with this scheduler config; cached.

    Raises RenderFailed when diffusers refuses the combination, or the sampler is no linear recurrence.
    """
    config = json.dumps({**model_config, **row.config}, sort_keys=True, default=list)
    return _tabulate(row.name, row.diffusers_class, config, num_inference_steps)


@lru_cache(maxsize=256)
def _tabulate(name: str, diffusers_class: str, config: str, num_inference_steps: int) -> Schedule:
    """Run the scheduler on probes and read its table off the run."""
    what = f"scheduler {name} with {num_inference_steps} steps"
    try:
        scheduler = getattr(diffusers, diffusers_class).from_config(json.loads(config))
        scheduler.set_timesteps(num_inference_steps)
        run = _probe(scheduler)
    except (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError) as error:
        raise RenderFailed(f"{what}: {error}") from error
    weights = np.stack([_fit(run, call) for call in range(len(run.predictions))])
    residual = _replay_error(run, weights)
    # A NaN residual must fail as well, hence not `residual > MAX_RESIDUAL`.
    if not residual <= MAX_RESIDUAL:
        raise RenderFailed(
            f"{what} is no linear recurrence over {DEPTH} calls (residual {residual:.1e}): "
            "samplers that clip or threshold cannot share a batch"
        )
    return Schedule(
        timesteps=run.timesteps,
        input_scale=run.input_scale,
        weights=weights,
        draws_noise=tuple(noise is not None for noise in run.noise),
        init_noise_sigma=float(scheduler.init_noise_sigma),
        residual=residual,
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """A scheduler's whole run on independent scalar probes; the first half is for the fit, the rest for the check."""

    timesteps: NDArray[np.float64]  # [calls]
    input_scale: NDArray[np.float64]  # [calls]
    latents: list[NDArray[np.float64]]  # calls + 1 times [probes]
    predictions: list[NDArray[np.float64]]  # calls times [probes]
    noise: list[NDArray[np.float64] | None]  # calls times [probes], None where nothing was drawn

    def columns(self, call: int, depth: int) -> dict[int, NDArray[np.float64]]:
        """Return what call `call` may look back on, by its place in a row of weights."""
        columns = {}
        for age in range(min(depth, call + 1)):
            columns[age] = self.latents[call - age]
            columns[DEPTH + age] = self.predictions[call - age]
        if (noise := self.noise[call]) is not None:
            columns[_NOISE] = noise
        return columns


def _probe(scheduler: Any) -> _Run:
    """Run `scheduler` on random latents and predictions, with a generator of its own to draw noise from."""
    shape = (1, _NUM_PROBES, 1, 1)  # some schedulers insist on four dimensions
    probes = torch.Generator("cpu").manual_seed(0)
    generator = torch.Generator("cpu").manual_seed(1)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    kwargs: dict[str, Any] = {"generator": generator} if takes_generator else {}

    def random_probe() -> torch.Tensor:
        return torch.randn(shape, generator=probes, dtype=torch.float64)

    def flat(tensor: torch.Tensor) -> NDArray[np.float64]:
        return tensor.double().flatten().numpy()

    sample = random_probe()
    ones = torch.ones(shape, dtype=torch.float64)
    timesteps, input_scale, noise = [], [], []
    latents, predictions = [flat(sample)], []
    for timestep in scheduler.timesteps:
        input_scale.append(float(scheduler.scale_model_input(ones, timestep).mean()))
        prediction = random_probe()
        before = generator.get_state()
        sample = scheduler.step(prediction, timestep, sample, **kwargs, return_dict=False)[0]
        drawn = _redraw(before, generator.get_state(), shape)
        timesteps.append(float(timestep))
        predictions.append(flat(prediction))
        latents.append(flat(sample))
        noise.append(None if drawn is None else flat(drawn))
    return _Run(np.array(timesteps), np.array(input_scale), latents, predictions, noise)


def _redraw(before: torch.Tensor, after: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Return the noise whose drawing took a generator from state `before` to `after`, None when none was drawn."""
    if torch.equal(before, after):
        return None
    twin = torch.Generator("cpu")
    # Most schedulers draw in the prediction's type (float64 here), DPM-Solver always in float32.
    for dtype in (torch.float64, torch.float32):
        twin.set_state(before)
        noise = torch.randn(shape, generator=twin, dtype=dtype)
        if torch.equal(twin.get_state(), after):
            return noise
    raise NotImplementedError("it draws noise more than once per step")


def _fit(run: _Run, call: int) -> NDArray[np.float64]:
    """Return the nine weights of `call`: the shortest memory that explains it as well as any does."""
    half = _NUM_PROBES // 2
    target = run.latents[call + 1][:half]
    fits: list[tuple[float, NDArray[np.float64]]] = []
    for depth in range(1, DEPTH + 1):
        columns = run.columns(call, depth)
        matrix = np.stack(list(columns.values()), axis=1)[:half]
        solution = np.linalg.lstsq(matrix, target, rcond=None)[0]
        weights = np.zeros(NUM_WEIGHTS)
        weights[list(columns)] = solution
        fits.append((float(np.abs(matrix @ solution - target).max()), weights))
    # Latents are themselves sums of older ones, so that long memories have many solutions; the shortest has one.
    good_enough = 4 * min(error for error, _ in fits) + 1e-12
    return next(weights for error, weights in fits if error <= good_enough)


def _replay_error(run: _Run, weights: NDArray[np.float64]) -> float:
    """Return how far the table alone, from the first latents on, ends up from the scheduler, on unseen probes."""
    half = _NUM_PROBES // 2
    latents = [run.latents[0]]
    replay = _Run(run.timesteps, run.input_scale, latents, run.predictions, run.noise)
    worst = 0.0
    for call, row in enumerate(weights):
        columns = replay.columns(call, DEPTH)
        latents.append(np.sum([row[place] * column for place, column in columns.items()], axis=0))
        truth = run.latents[call + 1][half:]
        error = np.abs(latents[-1][half:] - truth).max() / max(1.0, np.abs(truth).max())
        worst = float(np.maximum(worst, error))  # np.maximum keeps a NaN, max() may lose it
    return worst


def draw_noise(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Return standard normal noise [1, *shape], float32 on the CPU, as diffusers' pipelines draw it.

    Always on the CPU and in float32, so that a seed means the same noise on every device and in every precision.
    """
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)


class Histories:
    """The last latents and predictions of all seats of a lane: one tensor [slots, 9, *shape], float32, on the device.

    Call i of a run keeps x[i] in column i mod 4, m[i] in column 4 + i mod 4 and its noise in column 8, so nothing
    is ever moved. Latents stay float32 whatever the model computes in.
    """

    def __init__(self, num_slots: int, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        self._columns = torch.zeros((num_slots, NUM_WEIGHTS, *shape), dtype=torch.float32, device=device)

    def begin(self, slot: int, latents: torch.Tensor) -> None:
        """Start a run in `slot` with initial `latents` [1, *shape]."""
        # What an earlier run left there could be NaN, which a weight of zero would not silence.
        self._columns[slot].zero_()
        self._columns[slot, 0] = latents[0].to(self._columns.device)

    def current(self, slots: Sequence[int], calls: Sequence[int]) -> torch.Tensor:
        """Return the latents before calls `calls` of `slots`, [seats, *shape], as a copy."""
        return self._columns[list(slots), [call % DEPTH for call in calls]]

    def advance(
        self,
        slots: Sequence[int],
        calls: Sequence[int],
        schedules: Sequence[Schedule],
        predictions: torch.Tensor,
        noise: Sequence[torch.Tensor | None],
    ) -> None:
        """Advance `slots` past their calls `calls`, each by its own schedule, in one product.

        `predictions` [seats, *shape]; `noise` [1, *shape] where the schedule draws. Other slots stay as they are.
        If this raises, calling it again with the same arguments is safe.
        """
        weights = np.zeros((len(self._columns), NUM_WEIGHTS), dtype=np.float32)
        for slot, call, schedule, drawn in zip(slots, calls, schedules, noise, strict=True):
            row = schedule.weights[call]
            ring = [(call - age) % DEPTH for age in range(DEPTH)]
            weights[slot, ring] = row[:DEPTH]
            weights[slot, [DEPTH + place for place in ring]] = row[DEPTH:_NOISE]
            weights[slot, _NOISE] = row[_NOISE]
            if drawn is not None:
                self._columns[slot, _NOISE] = drawn[0].to(self._columns.device)
        rows = list(slots)
        device = self._columns.device
        self._columns[rows, [DEPTH + call % DEPTH for call in calls]] = predictions.to(torch.float32)
        # All slots, empty ones too: the product has one shape for ever, hence the same bits in any company. It is
        # 0.3 ms for 16 seats of 4 x 64 x 64 on two cores.
        products = torch.bmm(torch.from_numpy(weights).to(device)[:, None], self._columns.flatten(2))
        following = products.view(-1, *self.shape)[rows]
        self._columns[rows, [(call + 1) % DEPTH for call in calls]] = following


def pack(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Return one float32 number per seat, [seats], on `device`."""
    return torch.tensor(values, dtype=torch.float32).to(device)
