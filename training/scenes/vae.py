"""Owns the autoencoder's training: from drawings to an `AutoencoderKL` whose latents have unit deviation.

Most of the time goes to crops around things, where the detail is; whole drawings come last, because group norms
see the whole picture.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from training.scenes.clock import Clock
from training.scenes.data import draw_all, mark_all, sample_scenes, save_grid
from training.scenes.draw import SIDE_PX, boxes
from training.scenes.settings import Settings


def build_vae(settings: Settings) -> AutoencoderKL:
    """Build an untrained autoencoder, factor 8, four latent channels."""
    levels = len(settings.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.vae_channels,
        layers_per_block=1,
        norm_num_groups=settings.vae_groups,
        latent_channels=4,
        sample_size=SIDE_PX,
        mid_block_add_attention=False,
    )


def train_vae(settings: Settings) -> None:
    """Train for the settings' minutes, going on from the last checkpoint if there is one."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed + os.getpid())
    scenes = sample_scenes(settings.vae_pool, settings.seed)
    pool = torch.from_numpy(draw_all(scenes)).permute(0, 3, 1, 2)  # [pool, 3, 128, 128]
    marks = torch.from_numpy(mark_all(scenes))  # [pool, 128, 128]
    middles = [[(x, y) for x, y, _ in boxes(scene)] or [(64, 64)] for scene in scenes]
    shown = torch.from_numpy(draw_all(sample_scenes(16, 7, held_out=True))).permute(0, 3, 1, 2)

    vae = build_vae(settings)
    optimizer = torch.optim.AdamW(vae.parameters(), settings.vae_lr, weight_decay=0.0, betas=(0.9, 0.99))
    path, step, spent_s = settings.work / "vae.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent_s = int(state["step"]), float(state["spent_s"])
    clock = Clock(settings.vae_minutes, spent_s=spent_s)
    while not clock.is_over:
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(settings.vae_lr, step=step, warmup_steps=50)
        if clock.share < settings.vae_crop_share:
            chosen = rng.integers(0, len(scenes), settings.vae_crop_batch)
            side, thing_weight = settings.vae_crop_px, settings.vae_crop_thing_weight
            corners = [_corner(middles[number], side, rng) for number in chosen]
        else:
            chosen = rng.integers(0, len(scenes), settings.vae_batch)
            side, thing_weight = SIDE_PX, settings.vae_thing_weight
            corners = [(0, 0)] * len(chosen)
        pixels = torch.stack(
            [pool[n, :, y : y + side, x : x + side] for n, (x, y) in zip(chosen, corners, strict=True)]
        )
        mark = torch.stack([marks[n, y : y + side, x : x + side] for n, (x, y) in zip(chosen, corners, strict=True)])
        figures = _step(vae, optimizer, to_signal(pixels), 1.0 + (thing_weight - 1.0) * mark[:, None].float(), settings)
        step += 1
        if step % 20 == 0:
            clock.say("vae", step, **{name: value.item() for name, value in figures.items()})
        if clock.is_time_to("save", settings.checkpoint_every_s) or clock.is_over:
            save_state(
                path,
                {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent_s": clock.spent_s},
            )
            with torch.no_grad():
                again = to_pixels(vae.decode(vae.encode(to_signal(shown)).latent_dist.mode()).sample)
            rows = [item.permute(1, 2, 0).numpy() for item in torch.cat([shown[:8], again[:8], shown[8:], again[8:]])]
            save_grid(rows, settings.work / "grids" / f"vae-{step:05d}.png")


def load_vae(settings: Settings) -> AutoencoderKL:
    """Load the trained autoencoder, ready to encode."""
    vae = build_vae(settings)
    vae.load_state_dict(torch.load(settings.work / "vae.pt", weights_only=True)["vae"])
    return vae.eval()


def save_state(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def to_signal(pixels: torch.Tensor) -> torch.Tensor:
    """Turn bytes [n, 3, h, w] into the model's range, -1 to 1."""
    return pixels.float() / 127.5 - 1.0


def to_pixels(signal: torch.Tensor) -> torch.Tensor:
    """Turn the model's range into bytes, [n, 3, h, w]."""
    return ((signal.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _corner(middles: list[tuple[int, int]], side: int, rng: np.random.Generator) -> tuple[int, int]:
    x, y = middles[rng.integers(len(middles))]
    left = x - side // 2 + int(rng.integers(-24, 25))
    top = y - side // 2 + int(rng.integers(-24, 25))
    return min(max(left, 0), SIDE_PX - side), min(max(top, 0), SIDE_PX - side)


def _step(
    vae: AutoencoderKL, optimizer: torch.optim.Optimizer, signal: torch.Tensor, weight: torch.Tensor, settings: Settings
) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(signal).latent_dist
        again = vae.decode(latents.sample()).sample
    miss = again.float() - signal
    weight = weight / weight.mean()
    pixel = (weight * (miss.abs() + miss.square())).mean()
    across, down = miss.diff(dim=3), miss.diff(dim=2)
    edge = (weight[..., 1:] * across.abs()).mean() + (weight[..., 1:, :] * down.abs()).mean()
    mean, logvar = latents.mean.float(), latents.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    loss = pixel + settings.vae_edge_weight * edge + settings.vae_kl * divergence
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return {
        "loss": loss.detach(),
        "miss": functional.l1_loss(again.float(), signal).detach(),
        "kl": divergence.detach(),
    }
