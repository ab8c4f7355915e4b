"""Tables of weights, read off a scheduler's runs on probes and checked on probes that the fit has not seen.

Two fits are tried. The free one gives every call latents of its own, so that only one set of weights explains it. Where
a scheduler remembers what cannot be seen in its outputs (UniPC, PLMS, SA-Solver), a fit on its own unbroken run may
still explain it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from farm.errors import RenderFailed
from worker.sampling.estimates import denoising_weights
from worker.sampling.probing import NUM_PROBES, BrownianPath, DrawsTwiceError, ProbeRun, probe
from worker.sampling.specs import RunSpec, TimestepOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from farm.schedulers import Scheduler

DEPTH: Final = 4
"""Latents and predictions that a table may look back on. LMS and PNDM need all four, UniPC three, the others less."""

NUM_WEIGHTS: Final = 2 * DEPTH + 1
NOISE: Final = NUM_WEIGHTS - 1
"""The place of the noise's weight, behind those of the latents and those of the predictions."""

LATENT_COLUMNS: Final = (0, 2, 5, 7)
"""Where Histories keeps the last latents of a run; each is followed by the prediction made from it."""

NOISE_COLUMN: Final = 4
NUM_SHALLOW_COLUMNS: Final = 5
"""Columns of runs that look back on one call at most: two latents, two predictions and the noise."""

NUM_COLUMNS: Final = NUM_WEIGHTS

MAX_RESIDUAL: Final = 1e-6
"""Largest error of a table, relative to the latents. Schedulers that compute in float32 leave some 1e-7."""

_NEGLIGIBLE: Final = 1e-7
"""Weights this much smaller than their row's largest are rounding errors of the fit."""

_NO_OPTIONS: Final = TimestepOptions()
_REFUSALS: Final = (
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,  # NotImplementedError as well
    AssertionError,
    ArithmeticError,
    AttributeError,
    UnboundLocalError,
)
"""What diffusers' schedulers raise on steps and configs that they cannot do."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """What a scheduler does in a run of `len(schedule)` model calls, as data.

    `weights[i]` multiplies x[i] … x[i-3], m[i] … m[i-3] and the noise of call i, and gives x[i+1]. They are None where
    the model's config has the scheduler clip or threshold: then the run needs the scheduler's own steps (OwnSteps).
    """

    spec: RunSpec
    timesteps: NDArray[np.float64]  # [calls]
    input_scale: NDArray[np.float64]  # [calls], the model sees input_scale[i] * x[i]
    weights: NDArray[np.float64] | None  # [calls, 9]
    draws_noise: tuple[bool, ...]  # [calls], whether diffusers draws, be the weight zero or not
    brownian: BrownianPath | None  # where the noise comes from, if not from the generator
    init_noise_sigma: float  # what the noise is multiplied with when a run starts from noise alone
    start: tuple[float, float]  # weights of (image, noise) in the initial latents of a run from an image
    renoise: NDArray[np.float64]  # [calls, 2], weights of (image, noise) in the known part, after call i
    residual: float  # of the table on probes that the fit has not seen; of the better fit where there is no table

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def is_shallow(self) -> bool:
        """Return whether no call looks back further than on the call before it; so do all but a few samplers."""
        return self.weights is None or not self.weights[:, [2, 3, DEPTH + 2, DEPTH + 3]].any()

    @property
    def ring(self) -> int:
        """Return how many latents, and as many predictions, a run must keep."""
        return 2 if self.is_shallow else DEPTH

    @cached_property
    def column_weights(self) -> NDArray[np.float32]:
        """Return the weights as they stand in Histories' columns, [calls, 9]."""
        if self.weights is None:
            raise ValueError(f"{self.spec} has no table")
        placed = np.zeros((len(self), NUM_COLUMNS), dtype=np.float32)
        placed[:, NOISE_COLUMN] = self.weights[:, NOISE]
        calls = np.arange(len(self))
        for age in range(self.ring):
            columns = np.array(LATENT_COLUMNS)[(calls - age) % self.ring]
            placed[calls, columns] = self.weights[:, age]
            placed[calls, columns + 1] = self.weights[:, DEPTH + age]
        return placed

    @cached_property
    def denoising(self) -> NDArray[np.float64]:
        """Return the weights of a call's (latents, prediction) in its estimate of the picture, [calls, 2]."""
        noising = np.array([self.start, *self.renoise[:-1]])
        return denoising_weights(noising, self.input_scale, self.spec.prediction_type)


def schedule_for(
    row: Scheduler,
    model_config: Mapping[str, Any],
    num_inference_steps: int,
    *,
    first_step: int = 0,
    timestep_options: TimestepOptions = _NO_OPTIONS,
) -> Schedule:
    """Return the table of `row` for a model with this scheduler config; cached.

    `first_step` is the step at which a run from an image begins, `t_start` of diffusers' img2img pipelines. Raises
    RenderFailed when diffusers refuses the combination.
    """
    return _tabulate(RunSpec.of(row, model_config, num_inference_steps, first_step, timestep_options))


@lru_cache(maxsize=256)
def _tabulate(spec: RunSpec) -> Schedule:
    """Run the scheduler on probes and read its table off the run."""
    try:
        prepared = spec.prepare()
        run = _finite(probe(prepared, free=True))
        weights, residual = _fit_free(run)
        if residual > MAX_RESIDUAL:
            chain = _finite(probe(spec.prepare(), free=False))
            weights, residual = min((weights, residual), _fit_chain(chain), key=lambda fit: fit[1])
    except DrawsTwiceError:
        raise RenderFailed(f"{spec} draws noise more than once per call") from None
    except _REFUSALS as error:
        raise RenderFailed(f"{spec}: {error}") from error
    return Schedule(
        spec=spec,
        timesteps=run.timesteps,
        input_scale=run.input_scale,
        weights=weights if residual <= MAX_RESIDUAL else None,
        draws_noise=run.draws_noise,
        brownian=run.brownian,
        init_noise_sigma=prepared.init_noise_sigma,
        start=run.start,
        renoise=run.renoise,
        residual=residual,
    )


def _finite(run: ProbeRun) -> ProbeRun:
    """Return `run` if all its numbers are finite; raise ValueError if a picture would be none."""
    if not all(np.isfinite(numbers).all() for numbers in (run.timesteps, run.input_scale, run.after, run.renoise)):
        raise ValueError("diffusers computes numbers that are not finite")
    return run


def _columns(run: ProbeRun) -> NDArray[np.float64]:
    """Return what each call may look back on, [calls, probes, 9]; zero where there was nothing yet."""
    columns = np.zeros((*run.before.shape, NUM_WEIGHTS))
    calls = len(columns)
    for age in range(min(DEPTH, calls)):
        columns[age:, :, age] = run.before[: calls - age]
        columns[age:, :, DEPTH + age] = run.predictions[: calls - age]
    columns[:, :, NOISE] = run.noise
    return columns


def _fit_free(run: ProbeRun) -> tuple[NDArray[np.float64], float]:
    """Return the only weights [calls, 9] that explain a free run, and their residual on unseen probes."""
    half = NUM_PROBES // 2
    columns = _columns(run)
    weights = (np.linalg.pinv(columns[:, :half]) @ run.after[:, :half, None])[:, :, 0]
    weights[np.abs(weights) < _NEGLIGIBLE * np.abs(weights).max(axis=1, keepdims=True)] = 0.0
    error = np.abs((columns[:, half:] @ weights[:, :, None])[:, :, 0] - run.after[:, half:]).max(axis=1)
    size = np.maximum(1.0, np.abs(run.after[:, half:]).max(axis=1))
    return weights, float((error / size).max())


def _fit_chain(run: ProbeRun) -> tuple[NDArray[np.float64], float]:
    """Return the weights [calls, 9] of a run on its own outputs, and how far their own whole run ends up from it."""
    columns = _columns(run)
    weights = np.stack([_fit_call(columns[call], run.after[call], call) for call in range(len(columns))])
    return weights, _replay_error(run, weights)


def _fit_call(columns: NDArray[np.float64], after: NDArray[np.float64], call: int) -> NDArray[np.float64]:
    """Return the nine weights of `call`: the shortest memory that explains it as well as any does."""
    half = NUM_PROBES // 2
    target = after[:half]
    fits: list[tuple[float, NDArray[np.float64]]] = []
    for depth in range(1, min(DEPTH, call + 1) + 1):
        places = [*range(depth), *range(DEPTH, DEPTH + depth), NOISE]
        matrix = columns[:half, places]
        solution = np.linalg.lstsq(matrix, target, rcond=None)[0]
        weights = np.zeros(NUM_WEIGHTS)
        weights[places] = solution
        fits.append((float(np.abs(matrix @ solution - target).max()), weights))
    # Latents are themselves sums of older ones, so that long memories have many solutions; the shortest has one.
    good_enough = 4 * min(error for error, _ in fits) + 1e-12
    return next(weights for error, weights in fits if error <= good_enough)


def _replay_error(run: ProbeRun, weights: NDArray[np.float64]) -> float:
    """Return how far the table alone, from the first latents on, ends up from the scheduler, on unseen probes."""
    half = NUM_PROBES // 2
    latents = [run.before[0, half:]]
    worst = 0.0
    for call, row in enumerate(weights):
        following = row[NOISE] * run.noise[call, half:]
        for age in range(min(DEPTH, call + 1)):
            following = following + row[age] * latents[call - age]
            following = following + row[DEPTH + age] * run.predictions[call - age, half:]
        latents.append(following)
        truth = run.after[call, half:]
        error = np.abs(following - truth).max() / max(1.0, np.abs(truth).max())
        worst = float(np.maximum(worst, error))  # np.maximum keeps a NaN, max() may lose it
    return worst
