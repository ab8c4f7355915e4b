"""What a GPU must show first: that pictures are right, that bytes hold, how fast it is, what memory it takes.

    python bench/first_light.py                          everything, in the order of what it tells us
    python bench/first_light.py --only parity,invariant  some of it
    python bench/first_light.py --device cpu --only parity,invariant,advance    a rehearsal without a GPU

Each check writes its numbers to bench/results/first_light.json as soon as it has them, so that a run that is cut off
leaves what it found. Weights are random: nothing is downloaded. Needs the worker's libraries, and peft for `loras`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]

from farm.catalog import Catalog  # noqa: E402
from farm.requests import Reproducibility  # noqa: E402
from farm.schedulers import find_scheduler  # noqa: E402
from random_models import load_random, plan_of  # noqa: E402
from tiny_flow_models import save_tiny_flux, save_tiny_sd3  # noqa: E402
from tiny_models import save_tiny_sd15, save_tiny_sdxl, tiny_row, tiny_unit  # noqa: E402
from worker.engine import Engine  # noqa: E402
from worker.lora import LoraLibrary  # noqa: E402
from worker.pipelines.loading import load_pipeline  # noqa: E402
from worker.sampling import Histories, schedule_for  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from farm.jobs import Unit
    from worker.pipelines.latent import LatentModel
    from worker.seat import Rendered

GIB = 2**30
RESULTS = ROOT / "bench" / "results" / "first_light.json"
TFLOP_PER_IMAGE = {"sd15": 34.7, "sdxl": 416.4, "flux-dev": 2098.0}
"""At native size with the catalog's steps and guidance: shared facts of the project, FLOP = 2 x multiply-add."""

DIFFUSION = ("euler", "euler_ancestral", "dpmpp_2m_karras", "dpmpp_2m_sde", "unipc", "heun", "ddim", "lcm")
FLOW = ("flow_euler",) * 6  # the only one that diffusers' pipelines for flows can be given without help
TINY: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "sd15": (save_tiny_sd15, {}),
    "sdxl": (save_tiny_sdxl, {}),
    "flux": (lambda folder: save_tiny_flux(folder, guidance_embeds=True), {"guidance": "embedded"}),
    "sd3": (save_tiny_sd3, {}),
}


def render(pipeline: LatentModel, units: Sequence[Unit], *, max_batch: int) -> list[Rendered]:
    """Render `units` on an engine of their own; all at once."""
    engine = Engine(lambda _: pipeline, max_batch=max_batch)
    futures = [engine.submit(unit) for unit in units]
    engine.start()
    images = [future.result(timeout=500) for future in futures]
    engine.stop()
    return images


def tiny_units(family: str, **fields: Any) -> list[Unit]:
    """Return one unit for each scheduler, all else different too."""
    flows = family in ("flux", "sd3")
    own = {"guided": False, "guidance_scale": 3.5} if family == "flux" else {}
    return [
        tiny_unit(
            **{
                "index": i,
                "seed": i,
                "scheduler": name,
                "prompt": f"a thing of number {i}",
                "negative_prompt": "grey",
                "num_inference_steps": 3 + i % 4,
                **own,
                **fields,
            }
        )
        for i, name in enumerate(FLOW if flows else DIFFUSION)
    ]


def by_diffusers(pipeline: Any, config: dict[str, Any], family: str, unit: Unit) -> np.ndarray:
    """Render `unit` with diffusers' own pipeline; uint8 [h, w, 3]."""
    row = find_scheduler(unit.scheduler)
    pipeline.scheduler = getattr(diffusers, row.diffusers_class).from_config({**config, **row.config})
    arguments: dict[str, Any] = {} if family == "flux" else {"negative_prompt": unit.negative_prompt}
    images = pipeline(
        unit.prompt,
        height=unit.height,
        width=unit.width,
        num_inference_steps=unit.num_inference_steps,
        guidance_scale=unit.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(unit.seed),
        output_type="np",
        **({"max_sequence_length": 40} if family in ("flux", "sd3") else {}),
        **arguments,
    ).images
    return (images[0] * 255).round().astype(np.uint8)


def parity(device: torch.device) -> dict[str, Any]:
    """Compare tiny models in the precision of the card, in mixed company, with diffusers' pipelines there."""
    found = {}
    for family, (save, fields) in TINY.items():
        folder = save(Path(tempfile.mkdtemp()) / family)
        row = tiny_row(folder, family=family, **{**fields, "max_sequence_length": 40})
        ours = load_pipeline(row, models_dir=folder, device=device)
        reference = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=ours.dtype).to(device)
        reference.set_progress_bar_config(disable=True)
        config = dict(reference.scheduler.config)
        units = tiny_units(family)
        differences: dict[str, list[float]] = {}
        for unit, image in zip(units, render(ours, units, max_batch=3), strict=True):
            theirs = by_diffusers(reference, config, family, unit)
            gap = np.abs(image.pixels.astype(int) - theirs.astype(int))
            worst = differences.setdefault(unit.scheduler, [0, 0])
            differences[unit.scheduler] = [max(worst[0], int(gap.max())), max(worst[1], round(float(gap.mean()), 4))]
        found[family] = {"dtype": str(ours.dtype), "levels of 255 [max, mean]": differences}
    return found


def invariant(device: torch.device) -> dict[str, Any]:
    """Check that invariant units have the same bytes alone and in any company, order and seat."""
    found: dict[str, Any] = {}
    models: dict[str, LatentModel] = {}
    for family, (save, fields) in TINY.items():
        folder = save(Path(tempfile.mkdtemp()) / family)
        row = tiny_row(folder, family=family, **{**fields, "max_sequence_length": 40})
        models[family] = load_pipeline(row, models_dir=folder, device=device)
    for family, pipeline in models.items():
        units = tiny_units(family, reproducibility=Reproducibility.INVARIANT)
        found[family] = _same_bytes(pipeline, units, max_batch=4)
    if device.type == "cuda":
        del models
        pipeline = load_random("sd15", plan_of("sd15", 24 * GIB), device).ours
        units = [
            replace(unit, width=512, height=512, model="sd15")
            for unit in tiny_units("sd15", reproducibility=Reproducibility.INVARIANT)
        ]
        found["sd15 at full size"] = _same_bytes(pipeline, units, max_batch=8)
    return found


def _same_bytes(pipeline: LatentModel, units: Sequence[Unit], *, max_batch: int) -> dict[str, Any]:
    alone = {unit.index: render(pipeline, [unit], max_batch=max_batch)[0].pixels.tobytes() for unit in units}
    different: set[str] = set()
    for seed in range(3):
        shuffled = random.Random(seed).sample(list(units), len(units))
        for unit, image in zip(shuffled, render(pipeline, shuffled, max_batch=max_batch), strict=True):
            if image.pixels.tobytes() != alone[unit.index]:
                different.add(unit.scheduler)
    return {"units": len(units), "differ from alone": sorted(different)}


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of one large matrix product on this card."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    rounds = 50 if device.type == "cuda" else 5
    for _ in range(5):
        a @ b
    _settle(device)
    began = time.perf_counter()
    for _ in range(rounds):
        a @ b
    _settle(device)
    return rounds * 2 * size**3 / (time.perf_counter() - began) / 1e12


def throughput(device: torch.device) -> dict[str, Any]:
    """Measure images/s by batch size at full size, beside diffusers' pipeline one image at a time, in this run."""
    found: dict[str, Any] = {}
    for name, batches in (("sd15", (1, 2, 4, 8, 16, 32)), ("sdxl", (1, 2, 4, 8)), ("flux-dev", (1, 2))):
        pipeline, parts = load_random(name, plan_of(name, 78 * GIB), device)
        row = Catalog().row(name)
        peak = ceiling(device, pipeline.dtype)
        rates: dict[str, Any] = {}
        for batch in batches:
            units = [_native_unit(name, i) for i in range(batch * (2 if name == "sd15" else 1))]
            render(pipeline, units[:1], max_batch=batch)
            began = time.perf_counter()
            images = render(pipeline, units, max_batch=batch)
            rate = len(units) / (time.perf_counter() - began)
            share = rate * TFLOP_PER_IMAGE[name] / peak
            assert share <= 1, f"{rate} images/s of {name} is more than the card can do: the benchmark is wrong"
            timings = images[-1].timings
            rates[str(batch)] = {
                "images_per_s": round(rate, 3),
                "share_of_ceiling": round(share, 3),
                "step_ms": round(1000 * timings.denoise_s / timings.steps, 2),
                "decode_ms": round(1000 * timings.decode_s, 1),
                "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if device.type == "cuda" else None,
            }
            print(f"  {name} batch {batch}: {rates[str(batch)]}", flush=True)
        found[name] = {
            "workload": f"{row.width}x{row.height}, {row.num_inference_steps} steps, guidance {row.guidance_scale}",
            "dtype": str(pipeline.dtype),
            "ceiling_tflops": round(peak, 1),
            "by_batch": rates,
            "diffusers_images_per_s": _diffusers_rate(name, pipeline.scheduler_config, parts),
        }
        del pipeline, parts
        torch.cuda.empty_cache()
    return found


def _native_unit(name: str, index: int) -> Unit:
    row = Catalog().row(name)
    return tiny_unit(
        index=index,
        seed=index,
        model=name,
        prompt=f"a picture of number {index}",
        width=row.width,
        height=row.height,
        num_inference_steps=row.num_inference_steps,
        guidance_scale=row.guidance_scale,
        guided=row.guidance == "cfg" and row.guidance_scale > 1,
        scheduler=row.scheduler,
    )


def _diffusers_rate(name: str, config: Mapping[str, Any], parts: Mapping[str, Any]) -> float:
    """Return the images/s of diffusers' own pipeline on the same weights, eager, one image at a time."""
    classes = {
        "sd15": "StableDiffusionPipeline",
        "sdxl": "StableDiffusionXLPipeline",
        "flux-dev": "FluxPipeline",
    }
    unit = _native_unit(name, 0)
    row = find_scheduler(unit.scheduler)
    if name == "sd15":
        parts = {**parts, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = getattr(diffusers, row.diffusers_class).from_config({**config, **row.config})
    reference = getattr(diffusers, classes[name])(**parts, scheduler=scheduler)
    reference.set_progress_bar_config(disable=True)

    def once() -> float:
        began = time.perf_counter()
        reference(
            unit.prompt,
            height=unit.height,
            width=unit.width,
            num_inference_steps=unit.num_inference_steps,
            guidance_scale=unit.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(1),
        )
        return time.perf_counter() - began

    once()
    return round(1 / min(once() for _ in range(2)), 3)


def memory(device: torch.device) -> dict[str, Any]:
    """Render under a cap of 24 GiB as planned for it, and hold the measured peak beside the plan's."""
    found = {}
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(24 * GIB / total)
    for name in ("sd15", "sdxl", "flux-dev"):
        plan = plan_of(name, 24 * GIB)
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        pipeline = load_random(name, plan, device).ours
        loaded_s = time.perf_counter() - began
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        render(pipeline, [_native_unit(name, 0)], max_batch=1)
        found[name] = {
            "plan": plan.summary,
            "planned_gib": {str(phase.name): round(phase.peak_bytes / GIB, 2) for phase in plan.phases},
            "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
            "made_s": round(loaded_s, 1),
            "image_s": round(time.perf_counter() - began, 2),
        }
        print(f"  {name}: {found[name]}", flush=True)
        del pipeline
        torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)
    return found


def loras(device: torch.device) -> dict[str, Any]:
    """Measure putting a LoRA of rank 32 into SDXL and taking it out again."""
    from lora_files import save_peft_lora  # noqa: PLC0415  needs peft

    folder = Path(tempfile.mkdtemp())
    library = LoraLibrary(Catalog(), folder, fetch=_no_hub)
    pipeline, parts = load_random("sdxl", plan_of("sdxl", 40 * GIB), device, loras=library)
    reference = diffusers.StableDiffusionXLPipeline(**parts, scheduler=diffusers.EulerDiscreteScheduler())
    save_peft_lora(reference, folder / "style.safetensors", seed=1, rank=32, alpha=32.0)
    units = [replace(_native_unit("sdxl", 0), loras=((("style", 0.8),) if with_lora else ())) for with_lora in (0, 1)]
    took = {}
    for label, unit in (("first, file read", units[1]), ("out", units[0]), ("in", units[1]), ("out again", units[0])):
        with torch.inference_mode():
            began = time.perf_counter()
            pipeline.adapt(tuple(_lora(*lora) for lora in unit.loras))
            _settle(device)
        took[label] = round(time.perf_counter() - began, 3)
    return {"sdxl, rank 32, seconds": took}


def _lora(name: str, weight: float) -> Any:
    from farm.prompts import Lora  # noqa: PLC0415

    return Lora(name, weight)


def _no_hub(source: object) -> Path:
    raise AssertionError(f"{source} was asked for")


def advance(device: torch.device) -> dict[str, Any]:
    """Measure the samplers' share of a step: 16 seats of 4 x 64 x 64, mixed samplers."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    schedules = [schedule_for(find_scheduler(DIFFUSION[i % 7]), config, 20) for i in range(16)]
    histories = Histories(16, (4, 64, 64), device)
    for slot, schedule in enumerate(schedules):
        histories.begin(slot, torch.randn(1, 4, 64, 64, device=device), schedule)
    predictions = torch.randn(16, 4, 64, 64, device=device)
    noise = [torch.randn(1, 4, 64, 64) for _ in schedules]
    times = []
    with torch.inference_mode():
        for call in range(19):
            drawn = [
                one if schedule.draws_noise[call] else None for schedule, one in zip(schedules, noise, strict=True)
            ]
            _settle(device)
            began = time.perf_counter()
            histories.advance(range(16), [call] * 16, schedules, predictions, drawn)
            _settle(device)
            times.append(time.perf_counter() - began)
    return {"median_ms": round(1000 * float(np.median(times)), 3), "threads": torch.get_num_threads()}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CHECKS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "parity": parity,
    "invariant": invariant,
    "throughput": throughput,
    "memory": memory,
    "loras": loras,
    "advance": advance,
}


def main() -> None:
    """Run the checks asked for; one that fails leaves its error and the others their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=",".join(CHECKS), help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results["hardware"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    results |= {"torch": torch.__version__, "diffusers": diffusers.__version__}
    for name in arguments.only.split(","):
        print(f"{name} …", flush=True)
        began = time.perf_counter()
        try:
            results[name] = CHECKS[name](device)
        except Exception:  # noqa: BLE001  the other checks' numbers are worth having
            results[name] = {"error": traceback.format_exc(limit=-6)}
        results[name]["took_s"] = round(time.perf_counter() - began, 1)
        arguments.out.parent.mkdir(exist_ok=True, parents=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(results[name], indent=2), flush=True)


if __name__ == "__main__":
    main()
