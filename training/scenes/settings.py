"""Owns every number of the training: one frozen dataclass, read once by `train` and passed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Where the training works and with which numbers; the defaults made the model in `models/scenes`."""

    work: Path = Path("out/training/scenes")
    model: Path = Path("models/scenes")
    seed: int = 20
    threads: int = 2
    checkpoint_every_s: float = 120.0
    sample_every_s: float = 480.0

    # the autoencoder
    vae_minutes: float = 25.0
    vae_pool: int = 6000  # drawings held in memory
    vae_channels: tuple[int, ...] = (16, 32, 64, 128)
    vae_groups: int = 8
    vae_lr: float = 1.5e-3
    vae_crop_px: int = 64
    vae_crop_batch: int = 24
    vae_crop_share: float = 0.6  # of the time, before whole drawings
    vae_batch: int = 16
    vae_kl: float = 1e-4  # on the mean divergence of a latent value
    vae_crop_thing_weight: float = 7.0  # of a pixel of a thing, against one of the background
    vae_thing_weight: float = 2.5
    vae_edge_weight: float = 1.0

    # the text encoder, taught to read scenes before it meets a picture
    text_minutes: float = 11.0
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    text_tokens: int = 77
    text_batch: int = 128
    text_lr: float = 1.5e-3
    vocabulary: int = 1400

    # the latents
    latents: int = 14000
    latents_batch: int = 16

    # the UNet; the text encoder is done by now and stays as it is
    unet_minutes: float = 73.0
    unet_channels: tuple[int, ...] = (64, 128)
    unet_groups: int = 16
    unet_heads: int = 4
    unet_batch: int = 16
    unet_lr: float = 1.3e-3
    unet_warmup_steps: int = 100
    unet_snr: float = 5.0
    unet_time_power: float = 0.65  # of an even spread over the timesteps; below 1 prefers noisy ones
    unet_ema: float = 0.997
    unet_drop: float = 0.1  # captions replaced by nothing, or by words that say nothing

    # the check
    check_captions: int = 200
    check_steps: int = 20
    check_guidance: float = 5.0
    reader_scenes: int = 10000
    reader_steps: int = 2000
    reader_batch: int = 64
    reader_lr: float = 2e-3
