"""How many may watch a farm: a thousand clients that poll and fifty that listen, while thousands of images are stored.

    python bench/watchers.py                      the acceptance line of docs/watching.md: about two minutes
    python bench/watchers.py --pollers 100 --streams 5 --units 500 --seconds 10 --out /tmp/w.json    a try

One API process, Valkey as `farm up` runs it, a process that stores images through the real ledger at an even pace, and
one process for all clients. Beside them an empty FastAPI application in a process of its own, served the same way, is
polled through the same client: what it takes is what this machine takes for any answer at that moment.

Every stream is compared with the truth: each image of its job once, in the order of the ledger's log, then the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import httpx
import uvloop

from cli import embedded
from crowd.clients import Listener, Poller, Tally
from crowd.workers import finish
from farm.machine import processor
from simulation.farm import Farm, cpu_s, machine_cpu_s, running_farm

RESULTS = Path(__file__).resolve().parent / "results"
MODEL = "sd15"
PROMPTS = 10  # of a job
MAX_JOB_P99_MS = 50.0
MAX_EMPTY_P99_MS = 25.0  # or the machine was too busy with other things to tell
RAMP_S = 4.0  # to connect, and for each poller to have asked once or twice
START_LIMIT_S = 60.0
END_LIMIT_S = 30.0


@dataclass(frozen=True)
class Load:
    """Who watches what."""

    pollers: int
    streams: int
    units: int
    seconds: float
    jobs: int
    empty_pollers: int
    interval_s: tuple[float, float]
    seed: int


@dataclass
class Watched:
    """What the clients have seen."""

    job: Tally
    empty: Tally
    health: Tally
    listeners: list[Listener]
    took_s: float
    api_cpu_s: float
    machine_cpu_s: float
    redis_cpu_s: float
    left_undone: int = 0  # pollers that were not told of their job's end


def post_jobs(farm: Farm, load: Load) -> list[str]:
    """Post the jobs, each of its own tenant, so that all of them go on at the same time."""
    each, more = divmod(load.units, load.jobs)
    ids = []
    for number in range(load.jobs):
        prompts = [
            {"prompt": f"a lighthouse, take {take}", "num_images_per_prompt": part}
            for take, part in enumerate(_parts(each + (number < more), PROMPTS))
        ]
        body = {"model": MODEL, "prompts": prompts, "seed": 1}
        answer = farm.api.post("/v1/jobs", json=body, headers={"Farm-Tenant": f"tenant{number}"})
        ids.append(answer.raise_for_status().json()["id"])
    return ids


def _parts(count: int, num_parts: int) -> list[int]:
    each, more = divmod(count, num_parts)
    return [part for number in range(num_parts) if (part := each + (number < more))]


@contextmanager
def empty_api() -> Iterator[tuple[int, int]]:
    """Serve the empty application; yields its port and process id."""
    (port,) = embedded.pick_ports(1)
    command = [sys.executable, str(Path(__file__).parent / "crowd" / "empty.py"), str(port)]
    process = subprocess.Popen(command)
    try:
        deadline_s = time.monotonic() + START_LIMIT_S
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(10)


async def watch(farm: Farm, load: Load, jobs: Sequence[str], *, empty_port: int, pool: Pool) -> Watched:
    """Let the crowd watch while the units are stored, in the pool's process; return what it has seen."""
    loop = asyncio.get_running_loop()
    rng = random.Random(load.seed)
    tallies = {name: Tally() for name in ("job", "empty", "health")}
    api_port = farm.api.base_url.port

    def interval_s() -> float:
        return rng.uniform(*load.interval_s)

    async def poll(count: int, name: str, port: int, path: str) -> list[Poller]:
        pollers = []
        for number in range(count):
            job = number % len(jobs)
            poller = Poller(path.format(job=jobs[job]), tallies[name], interval_s, headers=_tenant(job))
            await loop.create_connection(lambda one=poller: one, "127.0.0.1", port)
            pollers.append(poller)
        return pollers

    listeners = [Listener(jobs[n % len(jobs)], headers=_tenant(n % len(jobs))) for n in range(load.streams)]
    for listener in listeners:
        await loop.create_connection(lambda one=listener: one, "127.0.0.1", api_port)
        await asyncio.wait_for(listener.opened.wait(), START_LIMIT_S)
    pollers = await poll(load.pollers, "job", api_port, "/v1/jobs/{job}")
    pollers += await poll(load.empty_pollers, "empty", empty_port, "/")
    pollers += await poll(load.empty_pollers, "health", api_port, "/healthz")
    # A collection among the clients takes longer than an answer: now, and then no more of all that they are.
    gc.collect()
    gc.freeze()
    await asyncio.sleep(RAMP_S)
    for tally in tallies.values():
        tally.took_s.clear()
    used_s, machine_s, redis_s = cpu_s(farm.api_pid), machine_cpu_s(), _redis_cpu_s(farm)
    arguments = {"model": MODEL, "units": load.units, "seconds": load.seconds}
    took_s = await asyncio.to_thread(pool.apply, finish, (farm.settings,), arguments)
    used_s, machine_s = cpu_s(farm.api_pid) - used_s, machine_cpu_s() - machine_s
    redis_s = _redis_cpu_s(farm) - redis_s
    for tally in tallies.values():
        tally.close()
    seen = Watched(tallies["job"], tallies["empty"], tallies["health"], listeners, took_s, used_s, machine_s, redis_s)
    with contextlib.suppress(TimeoutError):  # what did not end is counted
        await asyncio.wait_for(asyncio.gather(*(listener.ended.wait() for listener in listeners)), END_LIMIT_S)
    # Every poller asks once more, and finds its job done; those whose connection broke are counted, and ask no more.
    ended_s = time.perf_counter()
    deadline_s = ended_s + END_LIMIT_S

    def is_told() -> bool:
        return all(poller.has_asked_since(ended_s) for poller in pollers)

    while time.perf_counter() < deadline_s and not is_told():  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    for poller in pollers:
        poller.stop()
    seen.left_undone = sum(
        not poller.is_lost and json.loads(poller.last or b"{}").get("state") != "done"
        for poller in pollers[: load.pollers]
    )
    return seen


def _tenant(job: int) -> str:
    return f"Farm-Tenant: tenant{job}\r\n"


def _redis_cpu_s(farm: Farm) -> float:
    info = farm.redis.info("cpu")
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])


def dropped(farm: Farm, listeners: Sequence[Listener]) -> dict[str, int]:
    """Compare each stream with the ledger's log of its job; return what is missing, double or out of order."""
    faults = {"missing": 0, "double": 0, "out_of_order": 0, "unended": 0, "wrong_counts": 0}
    for listener in listeners:
        truth = []
        while page := farm.ledger.ended(listener.job, len(truth)):
            truth += [change.index for change in page]
        faults["missing"] += len(set(truth) - set(listener.images))
        faults["double"] += len(listener.images) - len(set(listener.images))
        faults["out_of_order"] += listener.images != truth
        faults["unended"] += listener.names["end"] != 1
        faults["wrong_counts"] += listener.last_counts.get("stored") != len(truth)
    return faults


def percentiles_ms(times_s: Sequence[float]) -> dict[str, float]:
    """Return how long answers took, in milliseconds."""
    ordered = sorted(times_s) or [float("inf")]
    return {
        "requests": len(ordered),
        **{
            f"p{p:g}": round(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] * 1000, 2)
            for p in (50, 95, 99, 99.9)
        },
        "max": round(ordered[-1] * 1000, 2),
    }


def run(load: Load) -> dict[str, Any]:
    """Run the farm and its crowd, and return the row of the report."""
    with running_farm(FARM_TRUST_TENANT_HEADER="1") as farm, empty_api() as (empty_port, _):
        jobs = post_jobs(farm, load)
        # Forked before there is an event loop: a fresh interpreter would load all that this one has.
        with multiprocessing.get_context("fork").Pool(1) as pool:
            seen = uvloop.run(watch(farm, load, jobs, empty_port=empty_port, pool=pool))
        faults = dropped(farm, seen.listeners)
    events = sum((listener.names for listener in seen.listeners), start=type(seen.listeners[0].names)())
    cores = os.cpu_count() or 1
    row = {
        "load": {
            "pollers": load.pollers,
            "interval_s": load.interval_s,
            "streams": load.streams,
            "units": load.units,
            "jobs": load.jobs,
            "empty_pollers": load.empty_pollers,
        },
        "took_s": round(seen.took_s, 1),
        "units_per_s": round(load.units / seen.took_s, 1),
        "polls_per_s": round(len(seen.job.took_s) / seen.took_s, 1),
        "job_ms": percentiles_ms(seen.job.took_s),
        "empty_ms": percentiles_ms(seen.empty.took_s),
        "healthz_of_the_same_api_ms": percentiles_ms(seen.health.took_s),
        "statuses": dict(seen.job.statuses),
        "broken_connections": seen.job.broken,
        "pollers_not_told_of_the_end": seen.left_undone,
        "events": dict(events),
        "faults": faults,
        "api_cpu_share_of_a_core": round(seen.api_cpu_s / seen.took_s, 3),
        "redis_cpu_share_of_a_core": round(seen.redis_cpu_s / seen.took_s, 3),
        "machine_cpu_share": round(seen.machine_cpu_s / seen.took_s / cores, 3),
        "load_average": round(os.getloadavg()[0], 2),
    }
    row["meets"] = {
        "job_p99_below_50_ms": row["job_ms"]["p99"] < MAX_JOB_P99_MS,
        "empty_p99_below_25_ms": row["empty_ms"]["p99"] < MAX_EMPTY_P99_MS,
        "nothing_dropped": set(seen.job.statuses) == {200}
        and not any((*faults.values(), seen.job.broken, seen.left_undone)),
    }
    return row


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pollers", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--units", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which they are stored (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=10, help="that the units are of (default: %(default)s)")
    parser.add_argument("--empty-pollers", type=int, default=50, help="of the empty API, and of /healthz")
    parser.add_argument("--interval", type=float, nargs=2, default=(1.0, 2.0), help="seconds from answer to question")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "watchers.json")
    return parser.parse_args()


def main() -> None:
    """Run, print, write."""
    given = read_arguments()
    load = Load(
        pollers=given.pollers,
        streams=given.streams,
        units=given.units,
        seconds=given.seconds,
        jobs=given.jobs,
        empty_pollers=given.empty_pollers,
        interval_s=tuple(given.interval),
        seed=given.seed,
    )
    load_before = round(os.getloadavg()[0], 2)
    result = {
        "what": "clients that poll jobs and clients that listen, while images are stored; see bench/watchers.py",
        "hardware": f"{os.cpu_count()} cores, {processor()}: for the API, Valkey, the clients and the workers' part",
        "load_average_at_start": load_before,
        "row": run(load),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["row"], indent=2))


if __name__ == "__main__":
    main()
