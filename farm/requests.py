"""What a client asks for: a job's body, and the parts of it. Parameters carry diffusers' names.

Form and bounds are checked here, field by field; whether it fits a model is for farm.expand to say. What becomes of it
is in farm.jobs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from farm.prompts import LORA_NAME

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


MAX_LORAS: Final = 16
"""LoRAs that a job or a prompt names, beside those in tags."""

_MAX_NAME_CHARS: Final = 512


class LoraSpec(BaseModel):
    """One LoRA and how strongly it acts; `<lora:name:weight>` in a prompt means the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=LORA_NAME.pattern, max_length=_MAX_NAME_CHARS, description="A row of the catalog or a file in loras/."
    )
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


class AccelerationSpec(BaseModel):
    """What a picture gives up to be made sooner; each is off unless asked for, and told in the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    guidance_start: Share = Field(0.0, description="Share of the run after which it is guided.")
    guidance_end: Share = Field(
        1.0, description="Share of the run after which it is guided no more: the rest runs without a negative row."
    )
    first_block_cache: Share = Field(
        0.0,
        description="Threshold of diffusers' FirstBlockCacheConfig, say 0.1: the other blocks are skipped where the"
        " first one's residual has changed by no more than this share. 0: off. Flux only.",
    )
    deep_cache_interval: int = Field(
        1,
        ge=1,
        le=MAX_STEPS,
        description="DeepCache's cache_interval: the whole UNet runs every so many calls, in between only its outermost"
        " blocks. 1: off. UNets only (sd15, sdxl).",
    )


WebhookEvent = Literal["job.started", "job.done", "job.failed", "job.cancelled"]


class WebhookSpec(BaseModel):
    """Where to tell of a job's events, as Standard Webhooks says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    events: tuple[WebhookEvent, ...] = Field(
        ("job.done", "job.failed", "job.cancelled"), min_length=1, description="Which events to tell of."
    )


class TemplateSpec(BaseModel):
    """What prompts with `{a|b}` and `__wildcard__` in them stand for; see docs/batches.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["off", "random", "combinatorial"] = Field(
        "off",
        description="`random`: each prompt becomes `num_prompts` drawn ones. `combinatorial`: all that it can say. "
        "`off`: braces are braces.",
    )
    num_prompts: int | None = Field(
        None, ge=1, le=1_000_000, description="`random`: prompts drawn of each, 1 by default. Else: at most so many."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of what is drawn; by default the job's seed. Not of the images."
    )


MAX_AXES: Final = 4
"""Fields that a matrix varies at once."""

_MAX_AXIS_VALUES: Final = 64
_AxisLength = Field(None, min_length=1, max_length=_MAX_AXIS_VALUES)


class MatrixSpec(BaseModel):
    """Fields of which every prompt takes each value, in all combinations: one to four lists.

    The order of the lists is that of the axes: the last one varies fastest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"maxProperties": MAX_AXES})

    seed: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] | None = _AxisLength
    num_inference_steps: list[Steps] | None = _AxisLength
    guidance_scale: list[Guidance] | None = _AxisLength
    scheduler: list[str] | None = _AxisLength
    negative_prompt: list[Annotated[str, StringConstraints(max_length=8_000)]] | None = _AxisLength
    width: list[Size] | None = _AxisLength
    height: list[Size] | None = _AxisLength
    true_cfg_scale: list[Guidance] | None = _AxisLength
    clip_skip: list[ClipSkip] | None = _AxisLength
    strength: list[Strength] | None = _AxisLength
    loras: list[Annotated[list[LoraSpec], Field(max_length=MAX_LORAS)]] | None = Field(
        None, min_length=1, max_length=_MAX_AXIS_VALUES, description="Each value a list of LoRAs; an empty one: none."
    )

    _axes: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _keep_order(cls, given: object, validate: ModelWrapValidatorHandler[MatrixSpec]) -> MatrixSpec:
        """Remember in which order the axes came: pydantic has them in its own."""
        matrix = validate(given)
        if isinstance(given, dict):
            matrix._axes = tuple(name for name in given if getattr(matrix, name, None) is not None)  # noqa: SLF001
        return matrix

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each field that varies, as a prompt has them, in the order of the request."""
        values = {name: getattr(self, name) for name in self._axes}
        return {name: list(map(tuple, each)) if name == "loras" else each for name, each in values.items()}


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
    loras: tuple[LoraSpec, ...] | None = Field(None, max_length=MAX_LORAS)
    image: ImageSource | None = None
    mask_image: ImageSource | None = None
    strength: Strength | None = None
    controlnets: tuple[ControlNetSpec, ...] | None = Field(None, max_length=4)
    hires: HiresSpec | None = None
    acceleration: AccelerationSpec | None = None


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
    loras: tuple[LoraSpec, ...] = Field((), max_length=MAX_LORAS)
    image: ImageSource | None = Field(None, description="Where to start from instead of pure noise (img2img).")
    mask_image: ImageSource | None = Field(None, description="White is painted anew, black is kept (inpainting).")
    strength: Strength | None = None
    controlnets: tuple[ControlNetSpec, ...] = Field((), max_length=4)
    hires: HiresSpec | None = None
    acceleration: AccelerationSpec = Field(
        AccelerationSpec(), description="What the pictures give up to be made sooner; nothing by default."
    )
    template: TemplateSpec = Field(TemplateSpec(), description="Prompts that stand for several; off by default.")
    matrix: MatrixSpec | None = Field(
        None, description="Values that every prompt is rendered with, in all combinations: `{field: [values]}`."
    )
    grid: bool = Field(
        default=False, description="Also make one labelled picture of all images: GET /v1/jobs/{id}/grid."
    )
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
