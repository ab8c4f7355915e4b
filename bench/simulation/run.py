"""One scenario from empty servers to the last image: so many cards, so many images; what it took."""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

import httpx

from cli.processes import tail
from simulation.cards import Card
from simulation.farm import Farm, Workers, cpu_s, machine_cpu_s, running_farm
from simulation.figures import (
    RedisFigures,
    RedisSample,
    Window,
    as_row,
    gpu_figures,
    percentiles_ms,
    refill_latencies,
)
from simulation.worker import Plan

_POLL_S: Final = 1.0
_IDLE_S: Final = 3.0
_PAGE: Final = 1000
_MAX_PROMPTS: Final = 10_000
_COLOURS: Final = ("red", "blue", "green", "yellow", "white", "black", "golden", "grey")
_THINGS: Final = ("lighthouse", "fox", "teapot", "bicycle", "castle", "violin", "harbour", "garden")


@dataclass(frozen=True)
class Scenario:
    """What to simulate. `images` 0 means as many as fill `seconds`, or two images' time, after the warm-up."""

    card: Card
    gpus: int
    images: int = 0
    seconds: float = 20.0
    dilation: float = 1.0
    max_batch: int = 8
    put_s: float = 0.05
    seed: int = 0

    @property
    def image_s(self) -> float:
        """How long an image takes in full company."""
        return self.card.slowed(self.dilation).step_s(self.max_batch) * self.card.steps

    @property
    def warm_up_s(self) -> float:
        """Until seats are filled one by one: all cards begin in the same second, with nothing in the queue."""
        return 5.0 + 1.5 * self.image_s

    @property
    def num_images(self) -> int:
        """Images of the job: what the cards ask for while they are watched, and what ends outside of the window."""
        rate = self.max_batch / self.image_s * self.gpus
        watched_s = max(self.seconds, 2 * self.image_s)
        return self.images or math.ceil(rate * (self.warm_up_s + watched_s)) + self.tail

    @property
    def tail(self) -> int:
        """Images at the end that are handed out and cannot be fed any more."""
        return 2 * self.max_batch * self.gpus


@dataclass(frozen=True)
class Moment:
    """All counters at once. CPU in seconds since the start."""

    at_s: float
    stored: int
    redis: RedisSample
    workers_s: float
    api_s: float
    machine_s: float


@dataclass(frozen=True)
class Watched:
    """What was seen while every card could be full: counters at both ends, and how long each status took."""

    first: Moment
    last: Moment
    polls_s: list[float]
    num_outages: int  # polls that were answered 503: Redis was held up for seconds


def prompts(count: int, seed: int) -> list[str]:
    """Return so many different prompts."""
    draw = random.Random(seed)
    return [
        f"a {draw.choice(_COLOURS)} {draw.choice(_THINGS)} beside a {draw.choice(_COLOURS)} {draw.choice(_THINGS)}, "
        f"soft morning light, detailed, take {number}"
        for number in range(count)
    ]


def run(scenario: Scenario) -> dict[str, Any]:
    """Run a scenario on servers of its own and return its row of the report."""
    with running_farm() as farm:
        plan = Plan(scenario.card.slowed(scenario.dilation), scenario.max_batch, scenario.put_s)
        workers = Workers(farm, plan, scenario.gpus)
        try:
            workers.start()
            idle = _idle(farm)
            job, num_prompts = _post_job(farm, scenario)
            accepted_bytes = _bytes_of(farm, f"farm:job:{job}*")
            seen = _watch(farm, workers, scenario, job)
            memory = _memory(farm, job, accepted_bytes, scenario.num_images, num_prompts)
            retries = farm.ledger.job(job).retries
            reasons = _reasons(farm, job, scenario.num_images) if retries else {}
        finally:
            diaries = [json.loads(path.read_text()) for path in workers.stop()]
        if len(diaries) < scenario.gpus:
            log = tail(farm.folder / "logs" / "workers.log")
            raise RuntimeError(f"{scenario.gpus - len(diaries)} workers left no diary:\n{log}")
    window = Window(seen.first.at_s, seen.last.at_s)
    waits = refill_latencies(diaries, window)
    figures = gpu_figures(diaries, window, scenario.card, scenario.max_batch, dilation=scenario.dilation)
    return {
        "card": scenario.card.name,
        "model": scenario.card.model,
        "gpus": scenario.gpus,
        "dilation": scenario.dilation,
        "images": scenario.num_images,
        "prompts": num_prompts,
        "retries": retries,
        "retry_reasons": reasons,
        "gpu": as_row(figures),
        "feed_latency_ms": percentiles_ms(waits),
        "seats_refilled_at_once": round(sum(wait == 0 for wait in waits) / max(1, len(waits)), 4),
        "simulator_lateness_ms": percentiles_ms(late for diary in diaries for late in diary["lateness_s"]),
        **_report(seen),
        "memory": memory,
        "idle_farm": idle,
    }


def post_large_job(num_prompts: int) -> dict[str, Any]:
    """POST a job of so many prompts to an idle farm and tell what it took."""
    with running_farm() as farm:
        body = json.dumps({"model": "sd15", "prompts": prompts(num_prompts, seed=1)})
        rounds = [_post(farm, body) for _ in range(3)]
        best = min(rounds, key=lambda each: each["cpu_s"])
        return {"prompts": num_prompts, "body_bytes": len(body), "rounds": 3, "of the best": best}


def _post(farm: Farm, body: str) -> dict[str, float]:
    used_s, began, held = cpu_s(farm.api_pid), time.monotonic(), _bytes_of(farm, "farm:job:*")
    answer = farm.api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    took_s = time.monotonic() - began
    answer.raise_for_status()
    return {
        "took_s": round(took_s, 3),
        "cpu_s": round(cpu_s(farm.api_pid) - used_s, 3),
        "redis_bytes": _bytes_of(farm, "farm:job:*") - held,
    }


def _idle(farm: Farm) -> dict[str, float]:
    """Return what the workers ask of Redis while there is no work."""
    before = _sample(farm)
    time.sleep(_IDLE_S)
    figures = RedisFigures.between(before, _sample(farm), images=1)
    return {
        "commands_per_s": figures.commands_per_s,
        "redis_cpu_share": figures.cpu_share,
        "connections": figures.connections,
    }


def _post_job(farm: Farm, scenario: Scenario) -> tuple[str, int]:
    """Send the scenario's job; return its id and its number of distinct prompts."""
    total = scenario.num_images
    num_prompts = min(_MAX_PROMPTS, max(1, total // 10))
    each, more = divmod(total, num_prompts)
    body = {
        "model": scenario.card.model,
        "num_inference_steps": scenario.card.steps,
        "seed": scenario.seed,
        "priority": "bulk",
        "prompts": [
            {"prompt": text, "num_images_per_prompt": each + (number < more)}
            for number, text in enumerate(prompts(num_prompts, scenario.seed))
        ],
    }
    answer = farm.api.post("/v1/jobs", json=body)
    answer.raise_for_status()
    return answer.json()["id"], num_prompts


def _watch(farm: Farm, workers: Workers, scenario: Scenario, job: str) -> Watched:
    """Ask the API for the job's counts until every image is stored, as a client does, and read all counters."""
    total, began = scenario.num_images, time.monotonic()
    polls_s: list[float] = []
    moments: list[Moment] = []
    stored = num_outages = 0
    while stored < total:
        time.sleep(_POLL_S)
        asked_at = time.monotonic()
        answer = farm.api.get(f"/v1/jobs/{job}")
        polls_s.append(time.monotonic() - asked_at)
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            num_outages += 1  # a client asks again
            continue
        counts = answer.raise_for_status().json()["counts"]
        stored = counts["stored"]
        assert not counts["failed"] + counts["cancelled"], f"images are lost: {counts}"
        now = time.monotonic()
        if now - began >= scenario.warm_up_s and counts["queued"] > scenario.tail:
            moments.append(Moment(now, stored, _sample(farm), workers.cpu_s(), cpu_s(farm.api_pid), machine_cpu_s()))
        if len(polls_s) % 5 == 0 or stored == total:
            print(f"  {now - began:6.0f} s  {stored:>9,} of {total:,} images stored", flush=True)
    assert len(moments) > 1, "the job was over before the cards were warm: more images, please"
    return Watched(moments[0], moments[-1], polls_s, num_outages)


def _report(seen: Watched) -> dict[str, Any]:
    """Divide what the counters have moved by images, seconds and cores."""
    first, last = seen.first, seen.last
    images, took_s, cores = last.stored - first.stored, last.at_s - first.at_s, os.cpu_count() or 1
    workers_s, api_s = last.workers_s - first.workers_s, last.api_s - first.api_s
    redis_s = last.redis.cpu_s - first.redis.cpu_s
    return {
        "window_s": round(took_s, 1),
        "counted_images_per_s": round(images / took_s, 1),
        "redis": asdict(RedisFigures.between(first.redis, last.redis, images)),
        "worker_cpu_ms_per_image": round(workers_s / images * 1000, 2),
        "api": {
            "status_ms": percentiles_ms(seen.polls_s),
            "cpu_share": round(api_s / took_s, 3),
            "answered_503": seen.num_outages,
        },
        "own_cpu_share": round((workers_s + api_s + redis_s) / took_s / cores, 3),
        "machine_cpu_share": round((last.machine_s - first.machine_s) / took_s / cores, 3),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _reasons(farm: Farm, job: str, images: int) -> dict[str, int]:
    """Count why units were handed out again, whichever worker had them."""
    pages = (farm.ledger.images(job, offset=offset, limit=_PAGE) for offset in range(0, images, _PAGE))
    reasons = (reason for page in pages for status in page for reason in status.history)
    return dict(Counter(re.sub(r"gpu\d+#\w+", "a worker", reason) for reason in reasons))


def _memory(farm: Farm, job: str, accepted_bytes: int, images: int, num_prompts: int) -> dict[str, float]:
    """Return what the finished job and the rest of the ledger occupy."""
    job_bytes = _bytes_of(farm, f"farm:job:{job}*")
    return {
        "accepted_bytes_per_prompt": round(accepted_bytes / num_prompts, 1),
        "finished_job_bytes": job_bytes,
        "added_bytes_per_image": round((job_bytes - accepted_bytes) / images, 2),
        "rates_bytes": _bytes_of(farm, "farm:rate:*"),  # expire within two hours
        "all_bytes": _bytes_of(farm, "*"),
        "keys": farm.redis.dbsize(),
        "peak_with_connections_bytes": int(farm.redis.info("memory")["used_memory_peak"]),
    }


def _bytes_of(farm: Farm, pattern: str) -> int:
    """Return the bytes of all keys of a pattern, their values weighed whole."""
    keys = farm.redis.scan_iter(match=pattern, count=1000)
    return sum(farm.redis.memory_usage(key, samples=0) or 0 for key in keys)


def _sample(farm: Farm) -> RedisSample:
    return RedisSample.of(farm.redis.info(), farm.redis.info("commandstats"), time.monotonic())
