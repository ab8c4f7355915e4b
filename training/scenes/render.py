"""Owns the parts put together as diffusers' own pipeline, and pictures made by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer


def build_pipeline(
    tokenizer: CLIPTokenizer, text: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderKL, noise: DDIMScheduler
) -> StableDiffusionPipeline:
    """Put the parts together as diffusers' own Stable Diffusion."""
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=noise,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def render(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    steps: int = 20,
    guidance: float = 5.0,
    batch: int = 16,
    first_seed: int = 0,
) -> list[npt.NDArray[np.uint8]]:
    """Make one picture per prompt with DPM++ 2M; picture i has seed `first_seed` + i."""
    sampler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    kept, pipeline.scheduler = pipeline.scheduler, sampler
    found: list[npt.NDArray[np.uint8]] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        dice = [torch.Generator().manual_seed(first_seed + start + number) for number in range(len(part))]
        made = pipeline(part, num_inference_steps=steps, guidance_scale=guidance, generator=dice).images
        found += [np.asarray(image) for image in made]
    pipeline.scheduler = kept
    return found
