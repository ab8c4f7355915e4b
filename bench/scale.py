"""How far one farm goes: the real ledger, Celery, workers and API, with simulated GPUs and no bucket.

    python bench/scale.py                                                     the curve, 5 minutes
    python bench/scale.py --card 4090 --model sdxl --gpus 256 --images 100000   20 minutes on two cores
    python bench/scale.py --card 4090 --model sdxl --gpus 256 --images 1000000  three hours

Writes bench/results/scale.json and scale.png and prints a table; scenarios given by hand go to a file of their own
(`--out`). Each GPU is a process that runs the worker as it is; only its engine is arithmetic over a table of published
step times (bench/simulation/cards.py), and its bucket is a pause. So nothing here says how fast a GPU renders. It says
how long the farm lets GPUs of that speed wait, at cards' full speed unless `--dilation` says otherwise, and what the
farm's traffic costs Redis.

All workers share this machine's cores with Redis and the API, where a farm has a CPU for each GPU or two. Once the
cores are full (`machine_cpu_share` near 1), waits measure this machine and not the farm.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from farm.machine import processor
from simulation.cards import CARDS
from simulation.chart import draw
from simulation.run import Scenario, post_large_job, run

RESULTS = Path(__file__).resolve().parent / "results"
CURVE = (
    ("4090", "sd15", 8),
    ("4090", "sd15", 16),
    ("4090", "sd15", 32),
    ("4090-plain", "sd15", 64),
    ("4090", "sd15", 64),
)
LARGE_JOB_PROMPTS = 10_000
WHAT_IS_SIMULATED = (
    "step times are a model made of published numbers (cards), not measurements",
    "writing the PNG of full size and its PUT are a pause of put_s; a PNG of 8 x 8 pixels is written",
    "one forked process per GPU shares this machine's cores with Redis and the API",
    "Redis is Valkey with appendonly and appendfsync always, as `farm up` runs it",
)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    head = (
        "cards",
        "offered",
        "images/s",
        "GPU idle",
        "lost",
        "refill p95",
        "p99",
        "Redis CPU",
        "commands",
        "retries",
        "cores: ours + others",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        gpu, redis, waits = row["gpu"], row["redis"], row["feed_latency_ms"]
        cells = (
            f"{row['gpus']} x {row['card']} {row['model']}",
            f"{gpu['offered_images_per_s']:.1f}/s",
            f"{gpu['images_per_s']:.1f}",
            f"{gpu['idle_share']:.2%}",
            f"{gpu['lost_share']:.2%}",
            f"{waits['p95']:.0f} ms",
            f"{waits['p99']:.0f} ms",
            f"{redis['cpu_ms_per_image']:.2f} ms/image",
            f"{redis['commands_per_image']:.0f}/image",
            str(row["retries"]),
            f"{row['own_cpu_share']:.0%} + {row['machine_cpu_share'] - row['own_cpu_share']:.0%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scenarios(arguments: argparse.Namespace) -> list[Scenario]:
    """Return what to run: what was asked for, or the curve."""
    asked = [(arguments.card, arguments.model, gpus) for gpus in arguments.gpus]
    return [
        Scenario(
            CARDS[card, model],
            gpus,
            images=arguments.images,
            seconds=arguments.seconds,
            dilation=arguments.dilation,
            max_batch=arguments.max_batch,
            put_s=arguments.put_ms / 1000,
            seed=arguments.seed,
        )
        for card, model, gpus in asked or CURVE
    ]


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="4090", choices=sorted({name for name, _ in CARDS}))
    parser.add_argument("--model", default="sd15", choices=sorted({model for _, model in CARDS}))
    parser.add_argument("--gpus", type=int, nargs="*", default=[], help="one scenario for each number; none: the curve")
    parser.add_argument("--images", type=int, default=0, help="0: as many as the cards take in --seconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="to watch, after a warm-up (default: %(default)s)")
    parser.add_argument("--dilation", type=float, default=1.0, help="cards are slower by this factor")
    parser.add_argument("--max-batch", type=int, default=8, help="seats of a card (default: %(default)s)")
    parser.add_argument("--put-ms", type=float, default=50.0, help="of writing and putting an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-large-job", action="store_true", help="leave out the POST of 10,000 prompts")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/scale.json, or scale-custom.json)")
    arguments = parser.parse_args()
    if (arguments.card, arguments.model) not in CARDS:
        parser.error(f"no times are known for {arguments.model} on {arguments.card}: {sorted(CARDS)}")
    return arguments


def main() -> None:
    """Simulate, print, write."""
    arguments = read_arguments()
    out = arguments.out or RESULTS / ("scale-custom.json" if arguments.gpus else "scale.json")
    result: dict[str, Any] = {
        "what": "simulated GPUs on the real ledger, Celery, workers and API; see bench/scale.py",
        "simulated": WHAT_IS_SIMULATED,
        "hardware": f"{os.cpu_count()} cores, {processor()}, shared with other work",
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "settings": {name: getattr(arguments, name) for name in ("max_batch", "put_ms", "seconds", "seed")},
        "cards": {},
        "rows": [],
    }
    for scenario in scenarios(arguments):
        card = scenario.card
        began = time.monotonic()
        print(f"{scenario.gpus} x {card.name} {card.model}: {scenario.num_images:,} images", flush=True)
        result["cards"][f"{card.name} {card.model}"] = {
            "step_s_of_1": card.step_s(1),
            f"step_s_of_{scenario.max_batch}": card.step_s(scenario.max_batch),
            "steps": card.steps,
            "source": card.source,
        }
        result["rows"].append(run(scenario))
        print(table(result["rows"][-1:]) + f"\ntook {time.monotonic() - began:.0f} s\n", flush=True)
        out.write_text(json.dumps(result, indent=2) + "\n")  # a long run that is stopped keeps what it has
    if not arguments.no_large_job:
        result["large_job"] = post_large_job(LARGE_JOB_PROMPTS)
        print(result["large_job"])
        out.write_text(json.dumps(result, indent=2) + "\n")
    draw(result["rows"], out.with_suffix(".png"))
    print(table(result["rows"]))


if __name__ == "__main__":
    main()
