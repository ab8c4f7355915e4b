"""A mixed load in simulated time: three models, three tenants of weight 1, 2 and 4, two priorities, 2,000 images.

    python bench/mixed.py          one to four cards, tenants everywhere and tenants with a model each; some minutes

Writes bench/results/mixed.json and prints a table: the longest wait of a model that nobody renders against what was
promised, changes of models against the fewest that any schedule could do with, GPU time against the tenants' weights.
The ledger and the policy are real, cards and time are not (bench/simulation/mixed.py).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from redis import Redis

from farm.ledger import Ledger
from farm.settings import Settings
from simulation.farm import running_farm
from simulation.mixed import IMAGES, LOADS_S, WEIGHTS, Outcome, Scenario, Simulation, settings_for

OUT = Path(__file__).resolve().parent / "results" / "mixed.json"


def simulate(scenario: Scenario, redis: Redis, url: str) -> Outcome:
    """Run a scenario on an emptied server."""
    redis.flushdb()
    redis.config_set("appendonly", "no")  # durability costs time and decides nothing
    settings = Settings(**settings_for(url))
    return Simulation(scenario, lambda clock: Ledger.connect(settings, clock=clock)).run()


def row_of(scenario: Scenario, outcome: Outcome) -> dict[str, Any]:
    """Return what is told of a run."""
    longest = {
        model: max((end - begin for name, begin, end in outcome.waits if name == model), default=0.0)
        for model in IMAGES
    }
    return {
        "workers": scenario.workers,
        "tenants": "a model each" if scenario.is_bound else "in all models",
        "seconds": round(outcome.finished_at),
        "longest_wait_s": {model: round(wait_s) for model, wait_s in longest.items()},
        "promised_s": round(max(promised_s for _, promised_s in outcome.promises)),
        "drain_s": round(scenario.drain_s),
        "switches": outcome.switches,
        "fewest": outcome.fewest(scenario),
        "loading_share": round(outcome.loading_s / outcome.finished_at / scenario.workers, 3),
        "furthest_from_weight": round(outcome.unfairness(), 4),
    }


def main() -> None:
    """Run all scenarios, print and write."""
    rows = []
    with running_farm() as farm:
        for is_bound in (False, True):
            for workers in (1, 2, 3, 4):
                began = time.monotonic()
                scenario = Scenario(workers, is_bound=is_bound)
                rows.append(row_of(scenario, simulate(scenario, farm.redis, farm.settings.redis_url)))
                print(rows[-1], f"took {time.monotonic() - began:.0f} s", flush=True)
    about = {"images": IMAGES, "loads_s": LOADS_S, "weights": WEIGHTS, "priorities": ["normal", "bulk"]}
    OUT.write_text(json.dumps({"what": __doc__.splitlines()[0], **about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
