"""How fast the engine renders the model that ships, by batch size, beside diffusers' own pipeline in the same run.

    python bench/engine_cpu.py [--images 16] [--steps 20]

Writes bench/results/engine_cpu.json and prints the table that the README quotes. All requests are the same work: 128
px, guided, DPM++ 2M. The model is loaded and warm before any clock starts, and the order of the contestants is
shuffled in each of three rounds, so that a slow minute of the machine hits all of them. Reported is the best round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from farm.catalog import Catalog
from farm.jobs import Unit
from farm.machine import processor
from farm.requests import Output, Reproducibility
from worker.bench.pools import leaving_no_pool
from worker.engine import Engine
from worker.pipelines.base import Pipeline
from worker.pipelines.loading import load_pipeline

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
BATCHES = (1, 2, 4, 8, 16)
ROUNDS = 3


def unit(index: int, steps: int) -> Unit:
    """Return one request; prompts and seeds differ."""
    return Unit(
        job="bench",
        index=index,
        attempt=1,
        model="scenes",
        prompt=f"a {('red', 'blue', 'green', 'yellow')[index % 4]} star in the sky",
        negative_prompt="",
        seed=index,
        num_inference_steps=steps,
        guidance_scale=5.0,
        guided=True,
        scheduler="dpmpp_2m",
        width=128,
        height=128,
        reproducibility=Reproducibility.FAST,
        output=Output(),
    )


def through_engine(pipeline: Pipeline, units: list[Unit], max_batch: int) -> float:
    """Return the seconds that the engine takes for all units."""
    engine = Engine(lambda _: pipeline, max_batch=max_batch)
    engine.start()
    engine.submit(units[0]).result()  # first use of buffers
    began = time.perf_counter()
    for future in [engine.submit(each) for each in units]:
        future.result()
    took_s = time.perf_counter() - began
    engine.stop()
    return took_s


def through_diffusers(pipeline: StableDiffusionPipeline, units: list[Unit]) -> float:
    """Return the seconds that diffusers' pipeline takes for all units, one after the other."""
    began = time.perf_counter()
    for each in units:
        pipeline(
            each.prompt,
            num_inference_steps=each.num_inference_steps,
            guidance_scale=each.guidance_scale,
            height=each.height,
            width=each.width,
            generator=torch.Generator("cpu").manual_seed(each.seed),
        )
    return time.perf_counter() - began


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    units = [unit(index, arguments.steps) for index in range(arguments.images)]
    load = partial(load_pipeline, Catalog().row("scenes"), models_dir=ROOT / "models", device=CPU)
    load_theirs = partial(StableDiffusionPipeline.from_pretrained, ROOT / "models" / "scenes", dtype=torch.float32)
    ours, theirs = leaving_no_pool(CPU, load), leaving_no_pool(CPU, load_theirs)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    leaving_no_pool(CPU, lambda: through_diffusers(theirs, units[:1]))

    contestants = {"diffusers, one at a time": lambda: through_diffusers(theirs, units)}
    for batch in BATCHES:
        contestants[f"engine, {batch} seats"] = lambda batch=batch: through_engine(ours, units, batch)
    best_s = dict.fromkeys(contestants, float("inf"))
    for number in range(ROUNDS):
        order = list(contestants)
        random.Random(number).shuffle(order)
        for name in order:
            best_s[name] = min(best_s[name], leaving_no_pool(CPU, contestants[name]))
            print(f"round {number + 1}/{ROUNDS}  {name:26}  {arguments.images / best_s[name]:.2f} images/s", flush=True)

    baseline = best_s["diffusers, one at a time"]
    result = {
        "hardware": f"{os.cpu_count()} cores, {processor()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "workload": f"scenes, 128x128, {arguments.steps} steps of DPM++ 2M, guided, fp32, {arguments.images} images",
        "load_average_at_end": os.getloadavg()[0],
        "images_per_s": {name: round(arguments.images / took_s, 3) for name, took_s in best_s.items()},
        "ratio_to_diffusers": {name: round(baseline / took_s, 3) for name, took_s in best_s.items()},
    }
    path = ROOT / "bench" / "results" / "engine_cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
