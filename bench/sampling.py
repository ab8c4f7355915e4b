"""What advancing all seats of a lane costs: sixteen seats of 4 x 64 x 64, samplers mixed, on this machine's CPU.

    python bench/sampling.py [--rounds 10] [--steps 100]

Writes bench/results/sampling.json and prints a table. Every step is `Histories.advance` whole: weights looked up,
predictions and noise written, latents multiplied and written. Noise is drawn before the clock starts, for its price is
diffusers' own. Beside it stands what diffusers' own `step` takes for the same seats, one after the other. Contestants
take turns, and reported is the median step of each one's best round: other load of the machine hits single rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from farm.schedulers import find_scheduler
from worker.sampling import Histories, OwnSteps, Schedule, schedule_for

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (4, 64, 64)
NUM_SEATS = 16
SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
MIXES = {
    "Euler alone": ("euler",),
    "eight that people use": (
        *("euler", "euler_ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde_karras", "heun", "lcm"),
    ),
    "with deep ones": ("euler", "dpmpp_2m", "unipc", "lms", "pndm", "dpmpp_3m", "euler_ancestral", "deis"),
}


def by_table(schedules: list[Schedule], num_steps: int) -> list[float]:
    """Return the seconds of each step of one product for all seats."""
    histories = Histories(NUM_SEATS, SHAPE, torch.device("cpu"))
    predictions = torch.randn(NUM_SEATS, *SHAPE)
    drawn = torch.randn(1, *SHAPE)
    slots = list(range(NUM_SEATS))
    seconds = []
    for step in range(num_steps):
        # Runs are of different lengths, so that seats soon are at different calls, as where units join and leave.
        calls = [step % len(schedules[slot]) for slot in slots]
        for slot in slots:
            if calls[slot] == 0:
                histories.begin(slot, torch.randn(1, *SHAPE), schedules[slot])
        noise = [drawn if schedules[slot].draws_noise[calls[slot]] else None for slot in slots]
        began = time.perf_counter()
        histories.advance(slots, calls, schedules, predictions, noise)
        seconds.append(time.perf_counter() - began)
    return seconds


def by_diffusers(schedules: list[Schedule]) -> list[float]:
    """Return the seconds of each step when every seat has its own scheduler."""
    runs = [OwnSteps(schedule, SHAPE, seed=0) for schedule in schedules]
    generator = torch.Generator("cpu").manual_seed(0)
    prediction = torch.randn(1, *SHAPE)
    latents = [torch.randn(1, *SHAPE) for _ in schedules]
    seconds = []
    for call in range(min(len(schedule) for schedule in schedules)):
        began = time.perf_counter()
        latents = [run.step(call, prediction, each, generator) for run, each in zip(runs, latents, strict=True)]
        seconds.append(time.perf_counter() - began)
    return seconds


def best_median_ms(rounds: list[list[float]]) -> float:
    """Return the median step of the best round, in milliseconds."""
    return round(min(statistics.median(seconds) for seconds in rounds) * 1000, 3)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for mix, names in MIXES.items():
            schedules = [
                schedule_for(find_scheduler(names[seat % len(names)]), SD15, 20 + seat) for seat in range(NUM_SEATS)
            ]
            table, diffusers = [], []
            with torch.inference_mode():
                for _ in range(args.rounds):
                    table.append(by_table(schedules, args.steps))
                    diffusers.append(by_diffusers(schedules))
            row = {
                "threads": threads,
                "mix": mix,
                "table_ms": best_median_ms(table),
                "diffusers_ms": best_median_ms(diffusers),
            }
            rows.append(row)
            print(f"{threads} threads, {mix:24} table {row['table_ms']} ms, diffusers {row['diffusers_ms']} ms")
    result = {
        "what": f"one step of {NUM_SEATS} seats of {' x '.join(map(str, SHAPE))}, float32; median of the best round",
        "hardware": f"{_cpu_model()}, {os.cpu_count()} cores, shared with other work",
        "torch": torch.__version__,
        "rounds": args.rounds,
        "steps": args.steps,
        "rows": rows,
    }
    (ROOT / "bench/results/sampling.json").write_text(json.dumps(result, indent=2) + "\n")


def _cpu_model() -> str:
    """Return the name of the CPU as Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


if __name__ == "__main__":
    main()
