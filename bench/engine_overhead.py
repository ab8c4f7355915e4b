"""What the farm's own Python costs a card: CPU per step and per image, with a model that computes nothing.

    python bench/engine_overhead.py [--only steps,png,worker] [--rounds 3]       4 minutes
    python bench/engine_overhead.py --before ../other-checkout                   the same of both, taking turns
    python bench/engine_overhead.py --profile                                    where the engine's thread spends it

Writes bench/results/engine_overhead.json. Three questions: what a pass of the engine's thread costs
(overhead/steps.py), what a PNG costs (overhead/png.py), and what an image costs the whole worker, as it is, with real
Redis and S3 (overhead/worker.py). Reported are CPU seconds, which other load moves less than the clock. Each
measurement is a process of its own, rounds take turns, and the best round counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from farm.machine import processor
from overhead.farm import watch_worker

ROOT: Final = Path(__file__).resolve().parents[1]
RESULT: Final = ROOT / "bench/results/engine_overhead.json"
PARTS: Final = ("steps", "png", "worker")
WORKLOADS: Final = {
    "512 px, as fast as it goes": (512, 0.0),
    "1024 px, as fast as it goes": (1024, 0.0),
    "512 px, a card of 40 ms a step": (512, 40.0),
}
"""Size and milliseconds of a step; 40 are twice as fast as any card that figures were published of."""
MAX_BATCH: Final = 16
_MEASURE: Final = {"steps": "engine_ms_per_step", "png": "cpu_ms", "worker": "cpu_ms"}

Row = dict[str, Any]


def in_child(part: str, tree: Path) -> dict[str, Row]:
    """Return one round of a part, measured on the code of the checkout `tree`."""
    env = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'bench'}", "OMP_NUM_THREADS": "1"}
    argv = (sys.executable, "-m", f"overhead.{part}")
    answer = subprocess.run(argv, env=env, cwd=ROOT / "bench", check=True, stdout=subprocess.PIPE)
    rows: dict[str, Row] = json.loads(answer.stdout)
    return rows


def of_worker(tree: Path, num_images: int) -> dict[str, Row]:
    """Return one round of the whole worker."""
    return {
        name: watch_worker(num_images=num_images, size_px=size_px, max_batch=MAX_BATCH, step_ms=step_ms, tree=tree)
        for name, (size_px, step_ms) in WORKLOADS.items()
    }


def best(rounds: list[dict[str, Row]], measure: str) -> dict[str, Row]:
    """Return each row of the round in which it took the least CPU."""
    return {name: min((each[name] for each in rounds), key=lambda row: row[measure]) for name in rounds[0]}


def measured(part: str, trees: Mapping[str, Path], *, rounds: int, num_images: int) -> dict[str, Any]:
    """Return the rows of a part for each checkout, and what the first takes of the second's CPU."""
    found: dict[str, list[dict[str, Row]]] = {name: [] for name in trees}
    for number in range(rounds):
        for name in random.Random(number).sample(sorted(trees), len(trees)):
            print(f"{part}, round {number + 1}/{rounds}, {name}", flush=True)
            tree = trees[name]
            found[name].append(of_worker(tree, num_images) if part == "worker" else in_child(part, tree))
    measure = _MEASURE[part]
    rows = {name: best(each, measure) for name, each in found.items()}
    if "before" in rows:
        rows["ratio"] = {
            name: {measure: row[measure] / rows["before"][name][measure]} for name, row in rows["now"].items()
        }
    return rows


def rounded(value: Any) -> Any:
    """Return numbers to three digits behind the point, wherever they stand."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="comma list (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400, help="of each round of the worker")
    parser.add_argument("--before", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument(
        "--profile", action="store_true", help="print where the engine's thread spends its time, and end"
    )
    arguments = parser.parse_args()
    if arguments.profile:
        subprocess.run((sys.executable, "-m", "overhead.steps", "--profile"), cwd=ROOT / "bench", check=True)
        return
    trees = {"now": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {
        "what": "CPU milliseconds of the farm's own work, the model computing nothing; see bench/engine_overhead.py",
        "hardware": f"{os.cpu_count()} cores, {processor()}",
        "torch": torch.__version__,
        "workload": "8 samplers, 8 to 50 steps, guided, a picture of its own for each image; 16 seats in the worker",
    }
    for part in arguments.only.split(","):
        found = measured(part, trees, rounds=arguments.rounds, num_images=arguments.images)
        result[part] = rounded(found) | {"load_average": round(os.getloadavg()[0], 2), "rounds": arguments.rounds}
        print(json.dumps(result[part], indent=2), flush=True)
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
