"""What a client asks for and what becomes of it: JobSpec, Entry, Unit, states.

Everything here is frozen and pure. Parameters carry diffusers' names. How far a unit is lives in the ledger, and in
the engine's seats; never here.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.prompts import LORA_NAME, Lora

MAX_SEED: Final = 2**53 - 1
"""Largest seed: every JSON client can carry it without rounding."""

MAX_STEPS: Final = 1000
MAX_IMAGES_PER_PROMPT: Final = 1_000_000

PromptText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8_000)]
Seed = Annotated[int, Field(ge=-1, le=MAX_SEED, description="-1 or null: the farm draws one and reports it.")]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[
    float, Field(ge=0, le=100, allow_inf_nan=False, description="1 or less: no guidance, half the work.")
]
Size = Annotated[int, Field(ge=8, le=16_384)]
NumImages = Annotated[int, Field(ge=1, le=MAX_IMAGES_PER_PROMPT)]
ClipSkip = Annotated[
    int, Field(ge=0, le=22, description="CLIP layers to leave out at the end, diffusers' clip_skip: A1111's less one.")
]
Strength = Annotated[
    float, Field(gt=0, le=1, allow_inf_nan=False, description="How much of `image` gives way to noise; 1 is all.")
]
ImageSource = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    Field(
        description="A key from POST /v1/uploads, any image's key in the farm's bucket, or a URL of an allowed host."
    ),
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Priority(StrEnum):
    """Who is served first; within a priority, tenants take turns."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"


class Reproducibility(StrEnum):
    """How far the same request gives the same image.

    `fast`: noise and sampler are exact, the last bits may differ with the size of the batch. `invariant`: the bytes
    depend on request, model and kind of device alone, never on neighbours, order or retries.
    """

    FAST = "fast"
    INVARIANT = "invariant"


class Output(BaseModel):
    """The files that become of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["png", "jpeg", "webp", "avif"] = "png"
    quality: int = Field(90, ge=1, le=100, description="Of jpeg, webp and avif; png has no loss.")
    thumbnail_px: int | None = Field(
        None, ge=16, le=1024, description="Also store a WebP whose longer side has this many pixels."
    )
    upscale: Literal[2, 3, 4] | None = Field(None, description="Also store a version this many times as large.")
    upscaler: str = Field(
        "lanczos", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="`lanczos`, or a model in upscalers/."
    )
    safety_checker: bool = Field(default=False, description="Black out what the NSFW checker flags, and say so.")


class LoraSpec(BaseModel):
    """One LoRA and how strongly it acts; `<lora:name:weight>` in a prompt means the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=LORA_NAME.pattern, description="A row of the catalog or a file in loras/.")
    weight: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False)


class ControlNetSpec(BaseModel):
    """One ControlNet that steers by an image; names as in diffusers, less the prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="A ControlNet of the catalog.")
    image: ImageSource
    conditioning_scale: float = Field(1.0, ge=0, le=10, allow_inf_nan=False)
    guidance_start: Share = Field(0.0, description="Share of the steps after which it begins to act.")
    guidance_end: Share = Field(1.0, description="Share of the steps after which it ends.")


class HiresSpec(BaseModel):
    """A second pass at a larger size, over the first one's picture (A1111's hires fix)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(2.0, gt=1, le=8, allow_inf_nan=False, description="Of width and height; rounded to fit.")
    strength: Strength = 0.7
    num_inference_steps: Steps | None = Field(None, description="Of the second pass; by default as the first.")
    upscaler: Literal["latent", "lanczos"] = Field(
        "latent", description="`latent` enlarges the latents, `lanczos` the decoded picture."
    )


WebhookEvent = Literal["job.started", "job.done", "job.failed", "job.cancelled"]


class WebhookSpec(BaseModel):
    """Where to tell of a job's events, as Standard Webhooks says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    events: tuple[WebhookEvent, ...] = Field(
        ("job.done", "job.failed", "job.cancelled"), min_length=1, description="Which events to tell of."
    )


class PromptSpec(BaseModel):
    """One prompt with parameters of its own; what it leaves out comes from the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptText
    negative_prompt: Annotated[str, StringConstraints(max_length=8_000)] | None = None
    num_images_per_prompt: NumImages | None = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: str | None = None
    width: Size | None = None
    height: Size | None = None
    true_cfg_scale: Guidance | None = None
    clip_skip: ClipSkip | None = None
    loras: tuple[LoraSpec, ...] | None = Field(None, max_length=16)
    image: ImageSource | None = None
    mask_image: ImageSource | None = None
    strength: Strength | None = None
    controlnets: tuple[ControlNetSpec, ...] | None = Field(None, max_length=4)
    hires: HiresSpec | None = None


class JobSpec(BaseModel):
    """A batch of prompts as a client POSTs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="A name from GET /v1/models.")
    prompts: list[PromptText | PromptSpec] = Field(min_length=1)
    num_images_per_prompt: NumImages = 1
    seed: Seed | None = Field(None, description="Image i of a prompt has seed + i. Drawn when absent or -1.")
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: str | None = Field(None, description="Our name, diffusers' class or A1111's label.")
    negative_prompt: Annotated[str, StringConstraints(max_length=8_000)] = ""
    width: Size | None = None
    height: Size | None = None
    true_cfg_scale: Guidance | None = Field(
        None, description="Guidance by a negative prompt, for models that take guidance_scale as an input (Flux)."
    )
    clip_skip: ClipSkip | None = None
    loras: tuple[LoraSpec, ...] = Field((), max_length=16)
    image: ImageSource | None = Field(None, description="Where to start from instead of pure noise (img2img).")
    mask_image: ImageSource | None = Field(None, description="White is painted anew, black is kept (inpainting).")
    strength: Strength | None = None
    controlnets: tuple[ControlNetSpec, ...] = Field((), max_length=4)
    hires: HiresSpec | None = None
    output: Output = Output()
    priority: Priority = Priority.NORMAL
    reproducibility: Reproducibility = Reproducibility.FAST
    reuse: bool = Field(
        default=False,
        description="Answer images that were made before, byte for byte the same, from storage; `invariant` only.",
    )
    webhook: WebhookSpec | None = Field(None, description="Where to tell of the job's events.")
    labels: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=256)],
    ] = Field(default_factory=dict, max_length=32, description="Yours to set; returned as they are.")


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
