"""Which scheduler a run uses and where it begins, and how diffusers' pipelines bring one to that point.

Owns every call that a pipeline makes on a scheduler, so that probing and own steps make the same ones. Raises whatever
diffusers raises; worker/sampling/schedules.py translates.
"""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from farm.schedulers import Scheduler

_TAKES_SHIFTED_SIGMAS: Final = "LTXEulerAncestralRFScheduler"
"""Its `sigmas` are final ones, zero included, where pipelines pass sigmas yet to be shifted: it makes its own."""


@dataclass(frozen=True)
class TimestepOptions:
    """What a pipeline tells `set_timesteps` beside the number of steps; each class is given what it understands.

    Flux passes `sigmas` and `mu`, SD 3 `mu` for models with dynamic shifting. As in diffusers' pipelines `sigmas` do
    not reach schedulers with `use_flow_sigmas`. Where those pipelines fail, because a class takes no `sigmas` or no
    `mu`, the class uses its own instead.
    """

    sigmas: tuple[float, ...] | None = None
    mu: float | None = None
    original_inference_steps: int | None = None  # of LCM and TCD: the steps of the teacher, of which they take some


@dataclass(frozen=True)
class RunSpec:
    """A run of a scheduler before anything is computed. Hashable: two equal specs have the same table."""

    name: str
    diffusers_class: str
    config: str  # JSON
    num_inference_steps: int
    first_step: int
    options: TimestepOptions

    @classmethod
    def of(
        cls,
        row: Scheduler,
        model_config: Mapping[str, Any],
        num_inference_steps: int,
        first_step: int,
        options: TimestepOptions,
    ) -> RunSpec:
        """Return the spec of `row` for a model with this scheduler config; the row's own config has the last word."""
        config = {**model_config, **row.config}
        if config.get("use_flow_sigmas") and "shift" in config:
            # The flow schedulers' name for it; the solvers that also know flow call it otherwise.
            config.setdefault("flow_shift", config["shift"])
        text = json.dumps(config, sort_keys=True, default=list)
        return cls(row.name, row.diffusers_class, text, num_inference_steps, first_step, options)

    @property
    def prediction_type(self) -> str:
        """Return what the model predicts, as diffusers calls it; schedulers that are not told know flow alone."""
        config = _construct(self.diffusers_class, self.config).config
        return str(config.get("prediction_type", "flow_prediction"))

    def __str__(self) -> str:
        begin = f" from step {self.first_step}" if self.first_step else ""
        return f"scheduler {self.name} with {self.num_inference_steps} steps{begin}"

    def prepare(self) -> PreparedScheduler:
        """Return a fresh scheduler, set to the first step of the run."""
        scheduler = copy.deepcopy(_construct(self.diffusers_class, self.config))
        self._set_timesteps(scheduler)
        begin = self.first_step * scheduler.order
        timesteps = scheduler.timesteps[begin:]
        # Text-to-image pipelines leave this out: then a scheduler looks its first timestep up, which finds the same
        # step, or, where two steps are rounded to one timestep (many steps with beta sigmas), one too far and no end.
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        if len(timesteps) == 0:
            raise ValueError("no steps are left")
        return PreparedScheduler(scheduler, timesteps, begin)

    def _set_timesteps(self, scheduler: Any) -> None:
        """Call `set_timesteps` with the options that this class takes."""
        known = inspect.signature(scheduler.set_timesteps).parameters
        options = self.options
        kwargs: dict[str, Any] = {}
        if options.original_inference_steps is not None and "original_inference_steps" in known:
            kwargs["original_inference_steps"] = options.original_inference_steps
        # Without dynamic shifting flow schedulers ignore `mu`, or assert that there is none.
        if options.mu is not None and "mu" in known and scheduler.config.get("use_dynamic_shifting"):
            kwargs["mu"] = options.mu
        takes_sigmas = "sigmas" in known and self.diffusers_class != _TAKES_SHIFTED_SIGMAS
        if options.sigmas is not None and takes_sigmas and not scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(sigmas=list(options.sigmas), **kwargs)
        else:
            scheduler.set_timesteps(self.num_inference_steps, **kwargs)


@lru_cache(maxsize=64)
def _construct(diffusers_class: str, config: str) -> Any:
    """Return a scheduler to copy from: some make a table of a thousand steps when made, which takes 0.2 s."""
    return getattr(diffusers, diffusers_class).from_config(json.loads(config))


class PreparedScheduler:
    """A diffusers scheduler set to a run's first step; its calls take one timestep after the other."""

    def __init__(self, scheduler: Any, timesteps: torch.Tensor, begin: int) -> None:
        self.scheduler = scheduler
        self.timesteps = timesteps  # [calls]
        self._begin = begin
        parameters = inspect.signature(scheduler.step).parameters
        self._takes_generator = "generator" in parameters
        # Pipelines pass their own default of 0 to DDIM and TCD, not the latter's.
        self._kwargs: dict[str, Any] = {"eta": 0.0} if "eta" in parameters else {}

    @property
    def init_noise_sigma(self) -> float:
        """Return what the noise is multiplied with when a run starts from noise alone."""
        return float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    @property
    def is_brownian(self) -> bool:
        """Whether noise comes from a Brownian tree over sigmas and not from the generator."""
        return hasattr(self.scheduler, "noise_sampler")

    def scale(self, call: int, latents: torch.Tensor) -> torch.Tensor:
        """Return what the model sees in `call`; pipelines of flow models show it the latents as they are."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return latents
        scaled: torch.Tensor = self.scheduler.scale_model_input(latents, self.timesteps[call])
        return scaled

    def step(
        self, call: int, prediction: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the latents after `call`."""
        kwargs = {**self._kwargs, "generator": generator} if self._takes_generator else self._kwargs
        after: torch.Tensor = self.scheduler.step(
            prediction, self.timesteps[call], latents, **kwargs, return_dict=False
        )[0]
        return after

    def add_noise(self, call: int, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return `image` as noisy as the latents before `call`, which must be the next one: some classes keep count."""
        timestep = self.timesteps[call : call + 1]
        noisy: torch.Tensor
        if hasattr(self.scheduler, "scale_noise"):
            noisy = self.scheduler.scale_noise(image, timestep, noise)
        elif hasattr(self.scheduler, "add_noise"):
            noisy = self.scheduler.add_noise(image, noise, timestep)
        else:  # one flow scheduler has neither
            sigma = self.scheduler.sigmas[self._begin + call]
            noisy = sigma * noise + (1 - sigma) * image
        return noisy
