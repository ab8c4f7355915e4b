"""A studio for flow-matching models: diffusers' pipelines, helped to run every scheduler of the farm, and our engine.

Owns what the pipelines of Flux and SD 3 must be helped with; tests/parity.py compares, the tests say which cases.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from farm.schedulers import find_scheduler, schedulers_of
from parity import PROMPTS, Studio
from tiny_flow_models import SIZE_MULTIPLE_PX
from tiny_models import SIZE_PX, tiny_unit
from worker.pipelines.base import Inputs
from worker.pipelines.latent import Loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from farm.jobs import Unit
    from worker.pipelines.flow import FlowModel

MAX_SEQUENCE_LENGTH = 40
"""Tokens of T5."""

FLOW_PROMPTS = (*PROMPTS, "(x:1.2) y, z", "a " * 60)
"""With marks that are text to these models, and more tokens than T5 is given here."""

_CALLED_AS_MEANT = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")


class FlowStudio(Studio):
    """One flow-matching model by diffusers and by us; units with a picture go to the pipeline for img2img."""

    def __init__(self, family: type[FlowModel], reference: Any, image_to_image: type[Any]) -> None:
        """Set up `family` with the parts of `reference`."""
        self.config = dict(reference.scheduler.config)
        loaded = Loaded(
            name="tiny",
            parts=reference.components,
            scheduler_config=self.config,
            model_hash="0" * 64,
            device=torch.device("cpu"),
            device_name="cpu",
            dtype=torch.float32,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
        )
        super().__init__(family(loaded), reference)
        self._image_to_image = image_to_image(**reference.components)
        self._image_to_image.set_progress_bar_config(disable=True)

    def pipeline_for(self, _unit: Unit, inputs: Inputs) -> Any:
        """Return the one for text, or for a picture to start from."""
        return self.reference if inputs.image is None else self._image_to_image

    def arguments_for(self, unit: Unit, inputs: Inputs) -> Mapping[str, Any]:
        """Return what it is called with."""
        arguments = {
            "prompt": unit.prompt,
            "height": unit.height,
            "width": unit.width,
            "num_inference_steps": unit.num_inference_steps,
            "guidance_scale": unit.guidance_scale,
            "max_sequence_length": MAX_SEQUENCE_LENGTH,
        }
        if unit.guided:
            arguments["negative_prompt"] = unit.negative_prompt
        if self.is_packed:
            arguments["true_cfg_scale"] = unit.true_cfg_scale
        else:
            arguments["clip_skip"] = unit.clip_skip or None
        if inputs.image is not None:
            arguments |= {"image": Image.fromarray(inputs.image), "strength": unit.strength}
        return arguments

    @property
    def is_packed(self) -> bool:
        """Whether the pipeline keeps latents as rows of patches, as that of Flux does."""
        return hasattr(self.reference, "_pack_latents")

    def scheduler_for(self, unit: Unit, generator: torch.Generator) -> Any:
        """Return a scheduler that the pipelines can call as if it were the flow Euler of the model."""
        row = find_scheduler(unit.scheduler, group="flow")
        changes = dict(row.config)
        if changes.get("use_flow_sigmas"):
            changes["flow_shift"] = self.config["shift"]  # what a user sets by hand
        scheduler = getattr(diffusers, row.diffusers_class).from_config(self.config, **changes)
        if "generator" in _parameters(scheduler.step):
            scheduler.step = self._drawing_from(generator, scheduler.step, unit)
        if row.diffusers_class not in _CALLED_AS_MEANT:
            _take_what_pipelines_give(scheduler)
        return scheduler

    def _drawing_from(self, generator: torch.Generator, step: Callable[..., Any], unit: Unit) -> Callable[..., Any]:
        """Return `step` drawing from `generator`, in the layout of the VAE's latents.

        Left to themselves the pipelines let it draw from the process's generator, so that no seed means anything.
        """
        if not self.is_packed:
            return partial(step, generator=generator)
        factor = self.reference.vae_scale_factor

        def unpacked(latents: torch.Tensor) -> torch.Tensor:
            return self.reference._unpack_latents(latents, unit.height, unit.width, factor)  # type: ignore[no-any-return]

        def step_unpacked(prediction: torch.Tensor, timestep: Any, latents: torch.Tensor, **_: object) -> tuple[Any]:
            after = step(unpacked(prediction), timestep, unpacked(latents), generator=generator, return_dict=False)[0]
            return (self.reference._pack_latents(after, *after.shape),)

        return step_unpacked


def any_flow_units(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Unit]]:
    """Draw some units that differ in all that units of flow models may differ in; `fields` are a family's own."""
    sizes = st.sampled_from([SIZE_PX - SIZE_MULTIPLE_PX, SIZE_PX, SIZE_PX + SIZE_MULTIPLE_PX])
    unit = st.builds(
        tiny_unit,
        scheduler=st.sampled_from([row.name for row in schedulers_of("flow")]),
        prompt=st.sampled_from(FLOW_PROMPTS),
        negative_prompt=st.sampled_from(["", *FLOW_PROMPTS]),
        seed=st.integers(0, 2**53 - 1),
        num_inference_steps=st.integers(1, 6),
        width=sizes,
        height=sizes,
        **fields,
    )
    units = st.lists(unit, min_size=1, max_size=4)
    return units.map(lambda drawn: [replace(unit, index=index) for index, unit in enumerate(drawn)])


def picture(seed: int, *, height: int, width: int) -> Inputs:
    """Return random pixels to start from."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Inputs(image=pixels)


def _take_what_pipelines_give(scheduler: Any) -> None:
    """Let a scheduler be called as pipelines of flow models call theirs, which they take for flow Euler."""
    set_timesteps, known = scheduler.set_timesteps, _parameters(scheduler.set_timesteps)

    def set_what_it_takes(
        num_inference_steps: int | None = None,
        device: object = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        kwargs: dict[str, object] = {"device": device}
        if mu is not None and "mu" in known and scheduler.config.get("use_dynamic_shifting"):
            kwargs["mu"] = mu
        set_timesteps(num_inference_steps if sigmas is None else len(sigmas), **kwargs)

    scheduler.set_timesteps = set_what_it_takes
    if not hasattr(scheduler, "scale_noise"):

        def scale_noise(sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            if hasattr(scheduler, "add_noise"):
                noisy: torch.Tensor = scheduler.add_noise(sample, noise, timestep)
                return noisy
            sigma = timestep.view(-1, *[1] * (sample.dim() - 1)) / 1000
            return sigma * noise + (1 - sigma) * sample

        scheduler.scale_noise = scale_noise


def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
