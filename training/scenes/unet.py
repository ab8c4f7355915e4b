"""Owns the pictures' side of the model: scenes as latents, and the UNet that learns to make them from captions."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from training.scenes.clock import Clock
from training.scenes.data import draw_all, sample_scenes, save_grid
from training.scenes.render import build_pipeline, render
from training.scenes.settings import Settings
from training.scenes.text import load_text, tokenize
from training.scenes.vae import load_vae, save_state, to_signal
from training.scenes.words import Scene, filler, noisy_caption

SHOWN = (
    "a red heart left of a green house at night",
    "a blue fish above a yellow star by the sea",
    "a small orange circle at the top left in the snow",
    "a pink tree right of a black square in the desert",
    "a beautiful painting of a purple flower in the hills, highly detailed, 4k",
    "a white boat at sunset",
)


def build_unet(settings: Settings) -> UNet2DConditionModel:
    """Build an untrained UNet for latents of 16x16, with cross attention below the first level."""
    deeper = len(settings.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        block_out_channels=settings.unet_channels,
        layers_per_block=1,
        norm_num_groups=settings.unet_groups,
        cross_attention_dim=settings.text_width,
        attention_head_dim=settings.unet_heads,  # diffusers reads it as the number of heads
    )


def build_noise() -> DDIMScheduler:
    """Build the noise schedule, which is that of SD 1.5."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def encode_latents(settings: Settings) -> None:
    """Draw the training scenes and keep the means of their latents, and the scale that gives them unit deviation.

    What an earlier run has stored is kept; the scale is that of the first thousand.
    """
    path = settings.work / "latents.pt"
    vae = load_vae(settings)
    scenes = _scenes(settings)
    found = [torch.load(path, weights_only=True)["latents"]] if path.exists() else []
    scale = float(torch.load(path, weights_only=True)["scale"]) if path.exists() else 0.0
    for start in range(len(found[0]) if found else 0, len(scenes), 1000):
        pixels = torch.from_numpy(draw_all(scenes[start : start + 1000])).permute(0, 3, 1, 2)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            parts = [
                vae.encode(to_signal(part)).latent_dist.mode().float() for part in pixels.split(settings.latents_batch)
            ]
        more = torch.cat(parts)
        if not scale:
            scale = 1.0 / more.std().item()
            by_channel = [round(value, 3) for value in (scale * more).std(dim=(0, 2, 3)).tolist()]
            print(f"latents are scaled by {scale:.4f}; channels then deviate by {by_channel}", flush=True)
        found.append((scale * more).half())
        save_state(path, {"latents": torch.cat(found), "scale": scale})
        print(f"latents {start + len(pixels)} of {len(scenes)}", flush=True)


def train_unet(settings: Settings) -> None:
    """Train for the settings' minutes, going on from the last checkpoint if there is one.

    As many processes as the settings have threads, of one thread each, hold the same weights, take a part of each
    batch and average their gradients in shared memory: on shared cores that is faster than threads that meet at
    every layer.
    """
    num_parts = settings.threads
    numel = sum(value.numel() for value in build_unet(settings).parameters())
    context = torch.multiprocessing.get_context("spawn")
    meeting = context.Barrier(num_parts)
    gradients = torch.zeros(2, num_parts, numel).share_memory_()  # two sets, so that one meeting per step is enough
    orders = torch.zeros(2, 2, dtype=torch.float64).share_memory_()  # [set, (learning rate, whether to stop)]
    others = [
        context.Process(target=_train_part, args=(part, settings, meeting, gradients, orders), daemon=True)
        for part in range(1, num_parts)
    ]
    for other in others:
        other.start()
    _train_part(0, settings, meeting, gradients, orders)
    for other in others:
        other.join()


def _train_part(  # noqa: PLR0915 - a training loop reads best in one piece
    part: int, settings: Settings, meeting: Any, gradients: torch.Tensor, orders: torch.Tensor
) -> None:
    """Be one of the processes; part 0 decides, saves and speaks."""
    torch.set_num_threads(1)
    stored = torch.load(settings.work / "latents.pt", weights_only=True)
    latents, scale = stored["latents"].float(), float(stored["scale"])
    scenes = _scenes(settings)[: len(latents)]
    tokenizer, text = load_text(settings)
    text.eval().requires_grad_(requires_grad=False)
    torch.manual_seed(settings.seed)
    unet = build_unet(settings)
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, settings.unet_lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    path, step, spent_s = settings.work / "unet.pt", 0, 0.0
    average = copy.deepcopy(unet).eval().requires_grad_(requires_grad=False)
    if path.exists():
        state = torch.load(path, weights_only=True)
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent_s = int(state["step"]), float(state["spent_s"])
    torch.manual_seed(1000 * settings.seed + 10 * step + part)
    rng = random.Random(f"{settings.seed} {step} {part}")
    alphas = build_noise().alphas_cumprod
    meeting.wait()
    clock = Clock(settings.unet_minutes, spent_s=spent_s)
    losses: list[float] = []
    is_last = False
    while not is_last:
        now = step % 2
        chosen = [rng.randrange(len(scenes)) for _ in range(settings.unet_batch // settings.threads)]
        states = read(tokenizer, text, [_caption(rng, scenes[number], settings) for number in chosen])
        loss = _loss(unet, latents[chosen], states, alphas, settings)
        optimizer.zero_grad()
        loss.backward()
        gradients[now, part] = torch.cat([value.grad.flatten() for value in parameters if value.grad is not None])
        if part == 0:
            orders[now, 0] = clock.rate(settings.unet_lr, step=step, warmup_steps=settings.unet_warmup_steps)
            orders[now, 1] = float(clock.is_over)
        meeting.wait()
        shared = gradients[now].mean(dim=0).split([value.numel() for value in parameters])
        for value, gradient in zip(parameters, shared, strict=True):
            value.grad = gradient.view_as(value)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = float(orders[now, 0])
        is_last = bool(orders[now, 1])
        optimizer.step()
        step += 1
        if part:
            continue
        with torch.no_grad():
            keep = min(settings.unet_ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), parameters, 1.0 - keep)
        losses.append(loss.item())
        if step % 20 == 0:
            clock.say("unet", step, loss=float(np.mean(losses[-100:])))
        if clock.is_time_to("save", settings.checkpoint_every_s) or is_last:
            weights = {"unet": unet.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(path, {**weights, "step": step, "spent_s": clock.spent_s})
        if clock.is_time_to("sample", settings.sample_every_s) or is_last:
            vae = load_vae(settings)
            vae.register_to_config(scaling_factor=scale)
            images = render(build_pipeline(tokenizer, text, average, vae, build_noise()), SHOWN, steps=10)
            save_grid(images, settings.work / "grids" / f"unet-{step:05d}.png", columns=6)


def load_unet(settings: Settings) -> UNet2DConditionModel:
    """Load the averaged weights of the last checkpoint."""
    unet = build_unet(settings)
    unet.load_state_dict(torch.load(settings.work / "unet.pt", weights_only=True)["average"])
    return unet.eval()


def read(tokenizer: CLIPTokenizer, text: CLIPTextModel, captions: list[str]) -> torch.Tensor:
    """Turn captions into the states that the UNet attends to, [captions, tokens, width]."""
    with torch.no_grad():
        states: torch.Tensor = text(tokenize(tokenizer, captions)).last_hidden_state
    return states


def _scenes(settings: Settings) -> list[Scene]:
    return sample_scenes(settings.latents, settings.seed + 1)


def _caption(rng: random.Random, scene: Scene, settings: Settings) -> str:
    if rng.random() < settings.unet_drop:
        return "" if rng.random() < 0.7 else filler(rng)
    return noisy_caption(rng, scene).text


def _loss(
    unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, alphas: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """Miss of the predicted noise, weighted by min-SNR.

    Timesteps are spread over the batch, denser where there is more noise: that is where words decide the picture,
    while the weight leaves little to learn where there is hardly any.
    """
    batch = len(latents)
    spread = ((torch.arange(batch) + torch.rand(batch)) / batch) ** settings.unet_time_power
    times = (spread * len(alphas)).long().clamp(max=len(alphas) - 1)
    alpha = alphas[times][:, None, None, None]
    noise = torch.randn_like(latents)
    seen = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        guess = unet(seen, times, states).sample
    miss = functional.mse_loss(guess.float(), noise, reduction="none").mean(dim=(1, 2, 3))
    snr = (alpha / (1 - alpha)).flatten()
    return (miss * snr.clamp(max=settings.unet_snr) / snr).mean()
