"""Owns the model as others see it: diffusers' own pipeline, its folder, and pictures from it."""

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

from training.scenes.settings import Settings


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
    pipeline: Any, prompts: Sequence[str], *, steps: int = 20, guidance: float = 5.0, batch: int = 16, first_seed: int = 0
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


def export(settings: Settings) -> None:
    """Write the last checkpoint to the model's folder, in half precision."""
    from training.scenes.text import load_text
    from training.scenes.unet import build_noise, load_unet
    from training.scenes.vae import load_vae

    tokenizer, text = load_text(settings)
    vae = load_vae(settings)
    vae.register_to_config(scaling_factor=float(torch.load(settings.work / "latents.pt", weights_only=True)["scale"]))
    pipeline = build_pipeline(tokenizer, text, load_unet(settings), vae, build_noise())
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(settings.model)
    size_bytes = sum(part.stat().st_size for part in settings.model.rglob("*") if part.is_file())
    print(f"exported to {settings.model}: {size_bytes / 1e6:.1f} MB", flush=True)
