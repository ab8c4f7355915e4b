"""What clients send and do in a soak: jobs by name, and what they do to them as the farm moves on. Pure.

The jobs are the same for every seed, so that one undisturbed run serves all of them; which images are cancelled singly
is drawn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from odd_worker import POISON

FULL = 4000
"""Units of the long form; what is not an image or a job to itself is scaled with their number."""

DEADLY_AT = 0.7
"""Share of stored units from which on a unit goes round that kills whoever renders it."""

_SAMPLERS = ("euler", "dpmpp_2m", "ddim", "euler_ancestral")
_EVENTS = ("job.started", "job.done", "job.failed", "job.cancelled")


@dataclass(frozen=True)
class Planned:
    """A job that will be posted when `at` of all units are settled."""

    name: str
    tenant: str
    body: dict[str, Any]
    at: float = 0.0
    has_webhook: bool = False

    @property
    def units(self) -> int:
        """Images of the job."""
        return len(self.body["prompts"]) * self.body["num_images_per_prompt"]

    @property
    def undisturbed(self) -> dict[str, Any]:
        """The same pictures as a body that nothing can happen to: without the prompt that kills, which comes last."""
        prompts = [prompt for prompt in self.body["prompts"] if POISON not in prompt]
        return {**self.body, "prompts": prompts, "reuse": False, "priority": "normal"}


@dataclass(frozen=True)
class Edit:
    """What a client does to a job when `at` of all units are settled."""

    at: float
    job: str
    verb: str  # pause, resume, cancel, cancel_image, mend_and_retry: the last of all, as it takes its time
    index: int = 0


@dataclass(frozen=True)
class Plan:
    """All of it. `cancelled` are the images that somebody tries to cancel singly, by job."""

    jobs: tuple[Planned, ...]
    edits: tuple[Edit, ...]
    cancelled: dict[str, frozenset[int]] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """Images of all jobs."""
        return sum(job.units for job in self.jobs)


def make_plan(units: int, rng: random.Random) -> Plan:
    """Return jobs of `units` images in all, at least 250."""
    jobs = _small() + _large(units)
    rest = units - sum(job.units for job in jobs)
    # The largest: bulk that everything else overtakes, made of what is left.
    jobs.append(_job("bulk", "alice", 1, rest, priority="bulk", at=0.0))
    thinned = next(job for job in jobs if job.name == "thinned")
    indices = sorted(rng.sample(range(thinned.units), thinned.units // 5))
    edits = [
        Edit(0.04, "paused", "pause"),
        Edit(0.35, "paused", "resume"),
        Edit(0.20, "cancelled", "cancel"),
        Edit(0.56, "corrupt", "mend_and_retry"),
        *(Edit(rng.uniform(0.0, 0.4), "thinned", "cancel_image", index) for index in indices),
    ]
    return Plan(tuple(jobs), tuple(sorted(edits, key=lambda edit: edit.at)), {"thinned": frozenset(indices)})


def _large(units: int) -> list[Planned]:
    return [
        _job("other", "bob", 10, units * 20 // 100 // 10, model="other"),
        _job("samplers", "alice", 20, units * 15 // 100 // 20, scheduler=_SAMPLERS[1], has_webhook=True),
        _job("unguided", "carol", 5, units * 10 // 100 // 5, guidance_scale=1.0, scheduler=_SAMPLERS[2]),
        _job("other bulk", "carol", 4, units * 10 // 100 // 4, model="other", priority="bulk"),
        _job("paused", "bob", 3, units * 5 // 100 // 3, has_webhook=True),
        _job("cancelled", "dave", 2, units * 5 // 100 // 2, priority="bulk", has_webhook=True),
        _job("thinned", "dave", 5, units * 4 // 100 // 5, scheduler=_SAMPLERS[3], has_webhook=True),
        _job("twin", "erin", 2, units * 2 // 100 // 2, reuse=True),
        _job("twin again", "bob", 2, units * 2 // 100 // 2, reuse=True, at=0.3, like="twin"),
    ]


def _small() -> list[Planned]:
    interactive = [
        _job(f"interactive {number}", ("erin", "frank")[number % 2], 1, 2, priority="interactive", at=at)
        for number, at in enumerate(n / 20 for n in range(1, 12))
    ]
    return [
        *interactive,
        _job("corrupt", "frank", 2, 5, model="corrupt", has_webhook=True),
        _job("deadly", "frank", 4, 1, last_prompt=f"a {POISON}", at=DEADLY_AT, has_webhook=True),
    ]


def _job(
    name: str,
    tenant: str,
    num_prompts: int,
    num_images_per_prompt: int,
    *,
    model: str = "tiny",
    at: float = 0.0,
    has_webhook: bool = False,
    last_prompt: str | None = None,
    like: str | None = None,
    **fields: Any,
) -> Planned:
    prompts = [f"{like or name}, picture {number}" for number in range(num_prompts)]
    if last_prompt is not None:
        prompts.append(last_prompt)
    body = {
        "model": model,
        "prompts": prompts,
        "num_images_per_prompt": num_images_per_prompt,
        "num_inference_steps": 4,
        "seed": 1000,
        "reproducibility": "invariant",
        "labels": {"name": name},
        **fields,
    }
    return Planned(name, tenant, body, at, has_webhook)


def events_of(job: Planned) -> tuple[str, ...]:
    """Return the events that a job with a webhook must hear of, each at least once, and of no other."""
    ends = {"cancelled": ("job.cancelled",), "deadly": ("job.failed",), "corrupt": ("job.failed", "job.done")}
    return ("job.started", *ends.get(job.name, ("job.done",)))


def webhook(url: str) -> dict[str, Any]:
    """Return what a body says of a receiver that wants to hear everything."""
    return {"url": url, "events": list(_EVENTS)}
