"""Owns the order of the training: `python -m training.scenes.train [stage ...]`, every stage resumable.

Stages: vae, text, latents, unet, export, check; without names all of them, each skipped or resumed where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from training.scenes.check import check
from training.scenes.export import export
from training.scenes.settings import Settings
from training.scenes.text import train_text
from training.scenes.unet import encode_latents, train_unet
from training.scenes.vae import train_vae

STAGES: dict[str, Callable[[Settings], object]] = {
    "vae": train_vae,
    "text": train_text,
    "latents": encode_latents,
    "unet": train_unet,
    "export": export,
    "check": check,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the named stages in their order."""
    parser = argparse.ArgumentParser(description="Train the small Stable Diffusion that ships.")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument("--minutes-vae", type=float, default=Settings.vae_minutes)
    parser.add_argument("--minutes-text", type=float, default=Settings.text_minutes)
    parser.add_argument("--minutes-unet", type=float, default=Settings.unet_minutes)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    parser.add_argument("--work", type=Path, default=Settings.work, help="checkpoints, latents and sample grids")
    parser.add_argument("--model", type=Path, default=Settings.model, help="where the finished model goes")
    given = parser.parse_args(arguments)
    unknown = set(given.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; stages are {', '.join(STAGES)}")
    settings = replace(
        Settings(), work=given.work, model=given.model, threads=given.threads,
        vae_minutes=given.minutes_vae, text_minutes=given.minutes_text, unet_minutes=given.minutes_unet,
    )  # fmt: skip
    torch.set_num_threads(settings.threads)
    for stage, run in STAGES.items():
        if not given.stages or stage in given.stages:
            run(settings)


if __name__ == "__main__":
    main()
