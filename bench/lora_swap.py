"""What putting a LoRA of rank 32 into SDXL takes, and taking it out again, on a card.

    python bench/lora_swap.py

Full size with random weights; writes bench/results/lora_swap.json. Needs peft, which writes the file that is read.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import diffusers
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from farm.catalog import Catalog  # noqa: E402
from farm.prompts import Lora  # noqa: E402
from lora_files import save_peft_lora  # noqa: E402  as the tests write them
from worker.bench.machine import describe  # noqa: E402
from worker.bench.published import build, builders  # noqa: E402
from worker.bench.random_weights import RandomModel  # noqa: E402
from worker.gpu import choose_device, synchronise  # noqa: E402
from worker.lora import LoraLibrary  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "lora_swap.json"
RANK = 32
STYLE = (Lora("style", 0.8),)


def no_hub(source: object) -> Path:
    """Refuse to download: the file is there."""
    raise AssertionError(f"{source} was asked for")


def save_lora(path: Path) -> None:
    """Save a LoRA of SDXL's UNet, whose shapes are asked of a UNet without weights."""
    parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = diffusers.EulerDiscreteScheduler()
    like = diffusers.StableDiffusionXLPipeline(**parts, unet=build("sdxl", "unet"), scheduler=scheduler)
    save_peft_lora(like, path, seed=1, rank=RANK, alpha=float(RANK), with_text=False)


def main() -> None:
    """Swap twice, the first time with the file to read, and write what it took."""
    device = choose_device("cuda")
    row = Catalog().row("sdxl")
    with tempfile.TemporaryDirectory() as name:
        save_lora(Path(name) / "style.safetensors")
        model = RandomModel(row, builders("sdxl"), device)
        pipeline = model.load(loras=LoraLibrary(Catalog(), Path(name), fetch=no_hub))
        took = {}
        for label, loras in (("first, file read", STYLE), ("out", ()), ("in", STYLE), ("out again", ())):
            with torch.inference_mode():
                began = time.perf_counter()
                pipeline.adapt(loras)
                synchronise(device.torch)
            took[label] = round(time.perf_counter() - began, 4)
    found = {"machine": describe(device), "model": "sdxl", "rank": RANK, "seconds": took}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
