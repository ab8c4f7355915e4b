"""What becomes of a request: entries, units, and the states of images and jobs.

Everything here is frozen and pure; what clients send is in farm.requests. How far a unit is lives in the ledger, and in
the engine's seats; never here.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, NamedTuple

from farm.prompts import Lora
from farm.requests import Output, Priority, Reproducibility, WebhookSpec


class ControlNet(NamedTuple):
    """A ControlNet as a unit carries it."""

    model: str
    image: str
    conditioning_scale: float = 1.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0


class Hires(NamedTuple):
    """The second pass of a unit, resolved. Sizes are pixels."""

    width: int
    height: int
    strength: float
    num_inference_steps: int
    upscaler: Literal["latent", "lanczos"]


class Acceleration(NamedTuple):
    """What a picture gives up to be made sooner; by default nothing."""

    guidance_start: float = 0.0  # shares of a run's model calls
    guidance_end: float = 1.0
    first_block_cache: float = 0.0  # the largest change that skips a transformer's other blocks; 0: none does
    deep_cache_interval: int = 1  # of so many calls of a UNet one is whole

    def is_guiding(self, call: int, calls: int) -> bool:
        """Return whether `call` of `calls`, counted from 0, is guided where the picture is; rounded as ControlNets'."""
        return call / calls >= self.guidance_start and (call + 1) / calls <= self.guidance_end

    @property
    def has_cache(self) -> bool:
        """Whether features are kept from one call for the next."""
        return self.first_block_cache > 0 or self.deep_cache_interval > 1

    @property
    def approximations(self) -> tuple[str, ...]:
        """What it changes in the picture, in words for the recipe."""
        told = []
        if (self.guidance_start, self.guidance_end) != (0, 1):
            told.append(f"guided from {self.guidance_start:g} to {self.guidance_end:g} of the run")
        if self.first_block_cache:
            told.append(f"first-block cache at {self.first_block_cache:g}")
        if self.deep_cache_interval > 1:
            told.append(f"deep features kept for {self.deep_cache_interval} calls")
        return tuple(told)


EXACT: Final = Acceleration()
"""Nothing given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one picture is made of, every parameter resolved; nothing of which job asked for it.

    Named as in diffusers. `prompt` is free of `<lora:…>` tags: they are in `loras`.
    """

    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    guided: bool  # whether a negative prompt is run beside the prompt (do_classifier_free_guidance)
    true_cfg_scale: float = 1.0
    clip_skip: int = 0
    loras: tuple[Lora, ...] = ()
    image: str = ""
    mask_image: str = ""
    strength: float = 1.0
    controlnets: tuple[ControlNet, ...] = ()
    hires: Hires | None = None
    acceleration: Acceleration = EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Picture):
    """One distinct prompt of a job; it stands for `num_images` units, seeds counting up from its own."""

    num_images: int


@dataclass(frozen=True, slots=True)
class Header:
    """What all units of a job share. Immutable, so workers may cache it."""

    id: str
    tenant: str
    model: str
    priority: Priority
    reproducibility: Reproducibility
    output: Output
    labels: dict[str, str]
    total: int
    num_entries: int
    created_at: float  # Unix time, seconds
    runs: tuple[Run, ...]
    reuse: bool = False
    webhook: WebhookSpec | None = None
    afterwards: tuple[str, ...] = ()  # kinds of chores that its end brings, beside the manifest
    grid: tuple[Axis, ...] | None = None  # of one labelled picture of all images; None: nobody asked for it


class Axis(NamedTuple):
    """A field that varies over the images of each prompt, and its values in words; the last axis varies fastest."""

    name: str
    labels: tuple[str, ...]


class Run(NamedTuple):
    """Consecutive entries with the same number of images: what locates a unit without a table of all units."""

    first_index: int
    first_entry: int
    num_images: int


@dataclass(frozen=True, slots=True)
class ExpandedJob:
    """A validated job, ready for the ledger: its header and its distinct prompts, never its images."""

    header: Header
    entries: tuple[Entry, ...]


class Hint(NamedTuple):
    """What a Celery message says: this unit may be rendered. The ledger decides whether it is so."""

    job: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody needs of a hint
    attempt: int


class UrgentHint(Hint):
    """A hint that workers read before others: its job is interactive. The same unit, the same hint."""

    __slots__ = ()


class Watch(NamedTuple):
    """That somebody looks on while a job's images are made. Changes nothing about them."""

    every_steps: int  # between two pictures of an image
    for_s: float  # from now on


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Picture):
    """One image to make, as a worker gets it from a granted claim."""

    job: str
    index: int
    attempt: int
    model: str
    reproducibility: Reproducibility
    output: Output
    reuse: bool = False
    alone: bool = False  # suspected of killing workers: rendered with nothing beside it
    watch: Watch | None = None  # at the time of the claim

    @property
    def hint(self) -> Hint:
        """The message this unit came with."""
        return Hint(self.job, self.index, self.attempt)

    @property
    def cfg_scale(self) -> float:
        """How far a guided prediction goes from the negative prompt to the prompt."""
        return self.true_cfg_scale if self.true_cfg_scale > 1 else self.guidance_scale


class UnitState(StrEnum):
    """Where one image is."""

    QUEUED = "queued"  # nobody renders it yet, or again
    RENDERING = "rendering"  # a worker holds a lease
    STORED = "stored"  # in S3, counted once
    FAILED = "failed"  # given up, with a reason
    CANCELLED = "cancelled"  # it, or its job, was cancelled first


class JobState(StrEnum):
    """Where a job is; derived from its counts, never stored."""

    QUEUED = "queued"  # no image has been started
    RENDERING = "rendering"  # some image has been started, some is not settled
    PAUSED = "paused"  # nothing of it starts until it is resumed; images that had been started are finished
    DONE = "done"  # every image is stored, but for those cancelled singly
    FAILED = "failed"  # every image is settled, at least one failed
    CANCELLED = "cancelled"  # cancelled before every image was settled

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Counts:
    """Images of a job by state; they always sum to `total`."""

    total: int
    queued: int
    rendering: int
    stored: int
    failed: int
    cancelled: int


def derive_state(counts: Counts, *, cancelled: bool, paused: bool = False) -> JobState:
    """Return the state of a job with these counts."""
    is_settled = counts.stored + counts.failed + counts.cancelled == counts.total
    if counts.cancelled and (cancelled or counts.cancelled == counts.total):
        return JobState.CANCELLED
    if is_settled:
        return JobState.FAILED if counts.failed else JobState.DONE
    if paused and not counts.rendering:
        return JobState.PAUSED
    if counts.stored or counts.failed or counts.rendering:
        return JobState.RENDERING
    return JobState.QUEUED


_CROCKFORD: Final = "0123456789abcdefghjkmnpqrstvwxyz"

JOB_ID_FORM: Final = re.compile(r"job_[0-9a-z]{20}")
"""What `new_job_id` makes."""


def new_job_id(now_s: float | None = None) -> str:
    """Return a fresh id, `job_` and 20 characters: 48 bits of time in ms, so that ids sort by age, then random ones."""
    now_ms = int((time.time() if now_s is None else now_s) * 1000)
    number = (now_ms << 50) | secrets.randbits(50)
    return "job_" + "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(95, -1, -5))
