"""diffusers' own pipeline on the same device in the same run: what the engine's rates are held against.

It gets weights of its own, whole on the device, and none of our changes: a stranger's first script, at its best.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch

from farm.schedulers import find_scheduler
from worker.bench.units import native_unit
from worker.gpu import synchronise

if TYPE_CHECKING:
    from collections.abc import Callable

    from farm.catalog import Family, ModelRow

_ROUNDS: Final = 2
_PIPELINES: Final[Mapping[Family, str]] = {
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "flux": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
}
_NO_CHECKER: Final = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_REGIONAL: Final = ("flux", "sd3")
"""Families whose blocks are alike, and compiled one for all."""


def pipeline_of(row: ModelRow, parts: Mapping[str, Any], scheduler: Any) -> Any:
    """Return diffusers' own pipeline of `parts`, by its names for them; one that a model does without may be None."""
    cls = getattr(diffusers, _PIPELINES[row.family])
    return cls(**parts, scheduler=scheduler, **(_NO_CHECKER if row.family == "sd15" else {}))


def measure_reference(
    pipeline: Any,
    row: ModelRow,
    *,
    batch: int,
    compiled: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the images/s of diffusers' `pipeline` with so many images of one prompt at a time; the best of two rounds.

    `compiled` has its denoiser compiled, in place.
    """
    device = pipeline.vae.device
    unit = native_unit(row, 0)
    scheduler = find_scheduler(unit.scheduler)
    config = {**pipeline.scheduler.config, **row.scheduler_config, **scheduler.config}
    pipeline.scheduler = getattr(diffusers, scheduler.diffusers_class).from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        compile_denoiser(pipeline, row)
    words: dict[str, Any] = {"negative_prompt": unit.negative_prompt} if unit.guided else {}
    if row.family in _REGIONAL:
        words["max_sequence_length"] = row.max_sequence_length

    def render() -> float:
        began = clock()
        pipeline(
            unit.prompt,
            height=unit.height,
            width=unit.width,
            num_inference_steps=unit.num_inference_steps,
            guidance_scale=unit.guidance_scale,
            num_images_per_prompt=batch,
            generator=torch.Generator("cpu").manual_seed(1),
            output_type="np",
            **words,
        )
        synchronise(device)
        return clock() - began

    render()
    return batch / min(render() for _ in range(_ROUNDS))


def compile_denoiser(pipeline: Any, row: ModelRow) -> None:
    """Compile as diffusers' guide says: a UNet whole and in channels last, transformers by their repeated blocks."""
    if row.family in _REGIONAL:
        pipeline.transformer.compile_repeated_blocks(fullgraph=True)
    else:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.unet.compile(mode="reduce-overhead", fullgraph=True)
