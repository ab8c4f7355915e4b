"""One scenario from empty servers to the last image: so many cards, so many images; what it took."""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

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
            row = _render(farm, workers, scenario)
        finally:
            diaries = [json.loads(path.read_text()) for path in workers.stop()]
        window: Window = row.pop("window")
        if len(diaries) < scenario.gpus:
            log = tail(farm.folder / "logs" / "workers.log")
            raise RuntimeError(f"{scenario.gpus - len(diaries)} workers left no diary:\n{log}")
        waits = refill_latencies(diaries, window)
        figures = gpu_figures(diaries, window, scenario.card, scenario.max_batch, dilation=scenario.dilation)
        return {
            "card": scenario.card.name,
            "model": scenario.card.model,
            "gpus": scenario.gpus,
            "dilation": scenario.dilation,
            "gpu": as_row(figures),
            "feed_latency_ms": percentiles_ms(waits),
            "seats_refilled_at_once": round(sum(wait == 0 for wait in waits) / max(1, len(waits)), 4),
            "simulator_lateness_ms": percentiles_ms(late for diary in diaries for late in diary["lateness_s"]),
            **row,
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
    clients = int(farm.redis.info("clients")["connected_clients"])
    return {"commands_per_s": figures.commands_per_s, "redis_cpu_share": figures.cpu_share, "connections": clients}


def _render(farm: Farm, workers: Workers, scenario: Scenario) -> dict[str, Any]:
    """Send the job, watch it to its end, and measure meanwhile."""
    total = scenario.num_images
    num_prompts = min(_MAX_PROMPTS, max(1, total // 10))
    texts = prompts(num_prompts, scenario.seed)
    each, more = divmod(total, num_prompts)
    body = {
        "model": scenario.card.model,
        "num_inference_steps": scenario.card.steps,
        "seed": scenario.seed,
        "priority": "bulk",
        "prompts": [
            {"prompt": text, "num_images_per_prompt": each + (number < more)} for number, text in enumerate(texts)
        ],
    }
    began = time.monotonic()
    answer = farm.api.post("/v1/jobs", json=body)
    answer.raise_for_status()
    job = answer.json()["id"]
    accepted_s, accepted_bytes = time.monotonic() - began, _bytes_of(farm, f"farm:job:{job}*")
    polls: list[float] = []
    first: Moment | None = None
    last: Moment | None = None
    while True:
        asked = time.monotonic()
        counts = _counts(farm, job)
        polls.append(time.monotonic() - asked)
        now = time.monotonic()
        if now - began >= scenario.warm_up_s and counts["queued"] > scenario.tail:
            moment = Moment(now, counts["stored"], _sample(farm), workers.cpu_s(), cpu_s(farm.api_pid), machine_cpu_s())
            first, last = first or moment, moment
        done = counts["stored"] + counts["failed"] + counts["cancelled"]
        if len(polls) % 5 == 0 or done == total:
            print(f"  {now - began:6.0f} s  {counts['stored']:>9,} of {total:,} images stored", flush=True)
        if done == total:
            break
        time.sleep(_POLL_S)
    assert counts["stored"] == total, f"{counts} after the end"
    status = farm.ledger.job(job)
    assert first is not None, "the job was over before the warm-up"
    assert last is not None
    window = Window(first.at_s, last.at_s)
    assert window.length_s >= _POLL_S, "the window is empty: more images, please"
    images = last.stored - first.stored
    redis = RedisFigures.between(first.redis, last.redis, images)
    return {
        "images": total,
        "prompts": num_prompts,
        "retries": status.retries,
        "window_s": round(window.length_s, 1),
        "window": window,
        "counted_images_per_s": round(images / window.length_s, 1),
        "redis": asdict(redis),
        "worker_cpu_ms_per_image": round((last.workers_s - first.workers_s) / images * 1000, 2),
        "api": {
            "accept_s": round(accepted_s, 3),
            "status_ms": percentiles_ms(polls),
            "cpu_share": round((last.api_s - first.api_s) / window.length_s, 3),
        },
        "memory": _memory(farm, job, accepted_bytes, total, num_prompts),
        "machine_cpu_share": round((last.machine_s - first.machine_s) / window.length_s / (os.cpu_count() or 1), 3),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _counts(farm: Farm, job: str) -> dict[str, int]:
    answer = farm.api.get(f"/v1/jobs/{job}")
    answer.raise_for_status()
    counts: dict[str, int] = answer.json()["counts"]
    return counts


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
