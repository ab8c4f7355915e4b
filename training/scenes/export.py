"""Owns the model as others find it: the folder in diffusers' own layout, in half precision."""

from __future__ import annotations

import torch

from training.scenes.render import build_pipeline
from training.scenes.settings import Settings
from training.scenes.text import load_text
from training.scenes.unet import build_noise, load_unet
from training.scenes.vae import load_vae


def export(settings: Settings) -> None:
    """Write the last checkpoint to the model's folder, in half precision."""
    tokenizer, text = load_text(settings)
    vae = load_vae(settings)
    vae.register_to_config(scaling_factor=float(torch.load(settings.work / "latents.pt", weights_only=True)["scale"]))
    pipeline = build_pipeline(tokenizer, text, load_unet(settings), vae, build_noise())
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(settings.model)
    size_bytes = sum(part.stat().st_size for part in settings.model.rglob("*") if part.is_file())
    print(f"exported to {settings.model}: {size_bytes / 1e6:.1f} MB", flush=True)
