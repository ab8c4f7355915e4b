"""What giving something up saves and costs: the model that ships, exact and with each acceleration.

    OMP_NUM_THREADS=1 python bench/approximations.py       some three minutes on one core

Writes bench/results/approximations.json and docs/images/approximations.png and prints a table: how far pictures are
from the exact ones, what is left of the denoiser's work and of the CPU time. The work of a shallow call of the
published UNets, and of a call of Flux that its cache cuts short, is counted on them at full size.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cli.sheet import place
from farm.catalog import Catalog
from farm.expand import expand, unit_of
from farm.jobs import Acceleration, Unit
from farm.requests import JobSpec
from worker.bench.published import build
from worker.bench.work import tflop_of
from worker.caching import CachedRow, DeepCache, FirstBlockCache, Memory
from worker.engine import Engine
from worker.pipelines.latent import LatentModel
from worker.pipelines.loading import load_pipeline

ROOT: Final = Path(__file__).resolve().parents[1]
OUT: Final = ROOT / "bench" / "results" / "approximations.json"
SHEET: Final = ROOT / "docs" / "images" / "approximations.png"
PROMPTS: Final = (
    "a red heart left of a green house at night",
    "a yellow star above a blue boat on the sea",
    "a purple flower on grass",
    "a small white circle in the middle",
    "two orange fish under water",
    "a big pink tree on the right in the snow",
    "a black triangle above a red square",
    "a green boat on the left at sunset",
)
CASES: Final[dict[str, dict[str, Any]]] = {
    "exact": {},
    "guidance_end 0.8": {"guidance_end": 0.8},
    "guidance_end 0.6": {"guidance_end": 0.6},
    "guidance_end 0.4": {"guidance_end": 0.4},
    "deep_cache_interval 2": {"deep_cache_interval": 2},
    "deep_cache_interval 3": {"deep_cache_interval": 3},
    "deep_cache_interval 5": {"deep_cache_interval": 5},
    "guidance_end 0.6, deep_cache_interval 2": {"guidance_end": 0.6, "deep_cache_interval": 2},
}
ROUNDS: Final = 3
SHOWN: Final = 6  # pictures of a line of the sheet
PICTURE_PX, LABEL_PX, GAP_PX, FONT_PX = 128, 210, 12, 15


def units_with(acceleration: dict[str, Any]) -> list[Unit]:
    """Return a unit for each prompt, at the model's own settings."""
    row = Catalog().row("scenes")
    spec = JobSpec.model_validate({"model": "scenes", "prompts": PROMPTS, "acceleration": acceleration})
    limits = {"max_prompts": len(PROMPTS), "max_images": len(PROMPTS)}
    job = expand(spec, row, job_id="job_bench", tenant="bench", created_at=0.0, drawn_seed=7, **limits)
    return [unit_of(job.header, entry, index=index, attempt=1) for index, entry in enumerate(job.entries)]


def rendered(pipeline: LatentModel, units: list[Unit]) -> tuple[list[np.ndarray], float, dict[str, int]]:
    """Render `units` in one lane; return pictures, seconds of CPU, and rows of the denoiser: all, and whole ones."""
    unet = pipeline._unet  # type: ignore[attr-defined]  # noqa: SLF001
    rows = {"all": 0, "whole": 0}

    def count(kind: str) -> Any:
        def add(_module: object, args: tuple[torch.Tensor, ...]) -> None:
            rows[kind] += len(args[0])

        return add

    hooks = [unet.conv_out.register_forward_pre_hook(count("all"))]
    hooks.append(unet.mid_block.register_forward_pre_hook(count("whole")))
    engine = Engine(lambda _name: pipeline, max_batch=len(units))
    futures = [engine.submit(unit) for unit in units]
    began = time.process_time()
    engine.start()
    pictures = [future.result().pixels for future in futures]
    cpu_s = time.process_time() - began
    engine.stop()
    for hook in hooks:
        hook.remove()
    return pictures, cpu_s, rows


def difference(pictures: list[np.ndarray], exact: list[np.ndarray]) -> dict[str, float]:
    """Return how far pictures are from the exact ones, of 0 to 255."""
    errors = [one.astype(float) - other for one, other in zip(pictures, exact, strict=True)]
    squares = [fmean((error**2).ravel()) for error in errors]
    return {
        "psnr_db": round(10 * math.log10(255**2 / max(fmean(squares), 1e-9)), 1),
        "worst_psnr_db": round(10 * math.log10(255**2 / max(*squares, 1e-9)), 1),
        "mean_abs_difference": round(fmean(np.abs(error).mean() for error in errors), 2),
    }


def unet_work(unet: Any, side: int, pooled: int | None) -> dict[str, float]:
    """Return the TFLOP of a whole and of a shallow call of a UNet on the meta device, for one row."""
    config, empty = unet.config, lambda *shape: torch.empty(*shape, device="meta")
    inputs: dict[str, Any] = {
        "sample": empty(1, config.in_channels, side, side),
        "timestep": empty(1),
        "encoder_hidden_states": empty(1, 77, config.cross_attention_dim),
    }
    if pooled is not None:
        inputs["added_cond_kwargs"] = {"text_embeds": empty(1, pooled), "time_ids": empty(1, 6)}
    cache, row = DeepCache(unet), CachedRow(Memory(), "toward", 0.0)
    whole = tflop_of(lambda: cache.whole([row], **inputs))
    row.memory.keep()
    shallow = tflop_of(lambda: cache.shallow([row], **inputs))
    return {"whole": whole, "short": shallow}


def flux_work(transformer: Any, side: int) -> dict[str, float]:
    """Return the TFLOP of a call of Flux with all blocks, and of one that its cache cuts short."""
    config, tokens = transformer.config, (side // 2) ** 2
    empty = lambda *shape: torch.empty(*shape, device="meta")  # noqa: E731
    inputs: dict[str, Any] = {
        "hidden_states": empty(1, tokens, config.in_channels),
        "timestep": empty(1),
        "guidance": empty(1),
        "pooled_projections": empty(1, config.pooled_projection_dim),
        "encoder_hidden_states": empty(1, 512, config.joint_attention_dim),
        "txt_ids": empty(512, 3),
        "img_ids": empty(tokens, 3),
    }
    cache = FirstBlockCache(transformer)
    whole = tflop_of(lambda: cache([CachedRow(Memory(), "toward", 0.1)], one_by_one=False, **inputs))
    # A row that only fills up a batch needs no other block.
    short = tflop_of(lambda: cache([None], one_by_one=False, **inputs))
    return {"whole": whole, "short": short}


def main() -> None:
    """Render, compare, draw, write."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    row = Catalog().row("scenes")
    pipeline = load_pipeline(row, models_dir=ROOT / "models", device=torch.device("cpu"))
    rendered(pipeline, units_with({})[:1])  # whoever comes first pays for all that is made once
    work = unet_work(build_on_meta(pipeline), pipeline.latent_shape(row.height, row.width)[-1], None)
    # In turns, and the quickest of each: others use this machine as well.
    earlier_cpu_s = [
        {name: rendered(pipeline, units_with(acceleration))[1] for name, acceleration in CASES.items()}
        for _ in range(ROUNDS - 1)
    ]
    exact: list[np.ndarray] = []
    exact_cpu_s, exact_tflop = 0.0, 0.0
    rows, lines = [], []
    for name, acceleration in CASES.items():
        pictures, cpu_s, counts = rendered(pipeline, units_with(acceleration))
        cpu_s = min(cpu_s, *(earlier[name] for earlier in earlier_cpu_s))
        tflop = counts["whole"] * work["whole"] + (counts["all"] - counts["whole"]) * work["short"]
        if not acceleration:
            exact, exact_cpu_s, exact_tflop = pictures, cpu_s, tflop
        told = {
            "case": name,
            "recipe": Acceleration(**acceleration).approximations,
            **(difference(pictures, exact) if acceleration else {}),
            "denoiser_rows": counts["all"],
            "whole_rows": counts["whole"],
            "work_share": round(tflop / exact_tflop, 3),
            "cpu_share": round(cpu_s / exact_cpu_s, 3),
        }
        rows.append(told)
        print(told, flush=True)
        labels = [*name.split(", "), f"{told['work_share']:.0%} of the work"]
        labels += [f"{told['psnr_db']} dB"] if acceleration else []
        lines.append((labels, [Image.fromarray(pixels) for pixels in pictures[:SHOWN]]))
    at_full_size = {
        "sd15 512x512": unet_work(build("sd15", "unet"), 64, None),
        "sdxl 1024x1024": unet_work(build("sdxl", "unet"), 128, 1280),
        "flux-dev 1024x1024": flux_work(build("flux-dev", "transformer"), 128),
    }
    calls = {
        name: {"whole_tflop": float(f"{told['whole']:.4g}"), "short_share": round(told["short"] / told["whole"], 3)}
        for name, told in {"scenes": work, **at_full_size}.items()
    }
    print(calls)
    about = {
        "images": len(PROMPTS),
        "model": f"scenes {row.width}x{row.height}, {row.num_inference_steps} steps, {row.scheduler}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}",
        "calls": calls,
    }
    OUT.write_text(json.dumps({"what": __doc__.splitlines()[0], **about, "rows": rows}, indent=2) + "\n")
    SHEET.parent.mkdir(exist_ok=True)
    sheet_of(lines).save(SHEET, optimize=True)


def sheet_of(lines: list[tuple[list[str], list[Image.Image]]]) -> Image.Image:
    """Return a sheet of a line of pictures for each case, what it is told on the left."""
    size = (LABEL_PX + SHOWN * (PICTURE_PX + GAP_PX) + GAP_PX, len(lines) * (PICTURE_PX + GAP_PX) + GAP_PX)
    sheet = Image.new("RGB", size, "#fcfbf8")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for number, (labels, pictures) in enumerate(lines):
        top = GAP_PX + number * (PICTURE_PX + GAP_PX)
        draw.multiline_text((GAP_PX, top + FONT_PX), "\n".join(labels), font=font, fill="#222222", spacing=6)
        for column, picture in enumerate(pictures):
            place(sheet, picture, LABEL_PX + column * (PICTURE_PX + GAP_PX), top, PICTURE_PX)
    return sheet


def build_on_meta(pipeline: LatentModel) -> Any:
    """Return the pipeline's UNet on the meta device."""
    unet = pipeline._unet  # type: ignore[attr-defined]  # noqa: SLF001
    with torch.device("meta"):
        return type(unet).from_config(unet.config).eval()


if __name__ == "__main__":
    main()
