"""What OpenAI's clients ask for, and the job that it becomes: their parameters, ours beside them. Pure.

Fields that mean nothing to a Stable Diffusion are taken and ignored, each says so; a field that nobody knows is an
error, as it is at OpenAI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.catalog import ModelRow
from farm.errors import Refused
from farm.expand import check_size
from farm.requests import Guidance, JobSpec, Output, Priority, PromptSpec, PromptText, Seed, Steps, Strength

MAX_IMAGES: Final = 10

_DEFAULT_QUALITY: Final = 90  # of lossy formats, as in jobs
_STEPS_BY_QUALITY: Final = {"low": 0.5, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 2.0}
"""Times the model's steps; the others leave them as they are."""
_NAMES: Final = {"width": "size", "height": "size", "num_images_per_prompt": "n", "mask_image": "mask"}
_KEEPING: Final = {"high": 0.5, "low": 0.8}  # strength, by input_fidelity

Size = Annotated[
    str,
    StringConstraints(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$"),
    Field(description="`WIDTHxHEIGHT` as the model allows; `auto` is the model's own."),
]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["url", "b64_json"]


class ImageRequest(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    prompt: PromptText
    model: str | None = Field(
        None,
        max_length=128,
        description="A name from GET /v1/models; see docs/openai.md for none and for OpenAI's own.",
    )
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="How many images; 1.")
    size: Size | None = None
    quality: Quality | None = Field(
        None, description="Steps: `low` half of the model's, `high` and `hd` 1.5 times, `xhigh` and `max` twice."
    )
    response_format: ResponseFormat | None = Field(None, description="`b64_json`, unless `url` is asked for.")
    output_format: OutputFormat | None = Field(None, description="png.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of jpeg and webp; 90.")
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="Previews to send on the way; with `stream`.")
    user: str | None = Field(None, max_length=256, description="Kept as the job's label `user`.")
    safety_identifier: str | None = Field(None, max_length=256, description="Likewise; it comes before `user`.")
    background: Literal["transparent", "opaque", "auto"] | None = Field(None, description="Ignored: always opaque.")
    moderation: Literal["low", "auto"] | None = Field(None, description="Ignored.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Ignored.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Ignored.")
    # -- ours, by `extra_body`
    negative_prompt: Annotated[str, StringConstraints(max_length=8_000)] | None = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: Annotated[str, StringConstraints(max_length=128)] | None = None

    @property
    def num_images(self) -> int:
        """How many images are asked for."""
        return self.n or 1

    @property
    def answers_urls(self) -> bool:
        """Whether URLs are wanted instead of the images themselves."""
        return self.response_format == "url"

    @property
    def output(self) -> Output:
        """The files that become of it."""
        quality = _DEFAULT_QUALITY if self.output_compression is None else max(1, self.output_compression)
        return Output(format=self.output_format or "png", quality=quality)

    def check_stream(self) -> None:
        """Raise Refused for a stream that there cannot be."""
        if self.partial_images and not self.stream:
            raise Refused("are sent by a stream only", field="partial_images", value=self.partial_images, choices=["0"])
        if self.partial_images and self.num_images > 1:
            raise Refused("nobody could tell partial images of several apart", field="n", value=self.n, choices=["1"])


class GenerationRequest(ImageRequest):
    """An image from a prompt."""


class EditRequest(ImageRequest):
    """An image from another one; the pictures themselves are files beside it."""

    input_fidelity: Literal["high", "low"] | None = Field(
        None, description="How much of the image is kept: a strength of 0.5 or 0.8. With a mask it means nothing."
    )
    strength: Strength | None = Field(None, description="How much of the image gives way; 1 where there is a mask.")


def prompt_of(asked: ImageRequest, row: ModelRow) -> PromptSpec:
    """Return the prompt of a job that a request asks for; raises Refused for a size that the model does not render."""
    width, height = size_of(asked.size, row) or (row.width, row.height)
    return PromptSpec(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        num_images_per_prompt=asked.num_images,
        seed=asked.seed,
        num_inference_steps=steps_of(asked, row),
        guidance_scale=asked.guidance_scale,
        scheduler=asked.scheduler,
        width=width,
        height=height,
    )


def job_of(asked: ImageRequest, row: ModelRow, **fields: Any) -> JobSpec:
    """Return the job that a waiting client asks for; `fields` are further ones of its prompt."""
    prompt = prompt_of(asked, row).model_copy(update=fields)
    user = asked.safety_identifier or asked.user
    return JobSpec(
        model=row.name,
        prompts=[prompt],
        output=asked.output,
        priority=Priority.INTERACTIVE,
        labels={} if user is None else {"user": user},
    )


def pictures_of(asked: EditRequest, row: ModelRow, *, image: str, mask: str | None) -> Mapping[str, Any]:
    """Return the fields of a prompt that starts from the picture under the key `image`."""
    strength = asked.strength
    if strength is None:
        strength = 1.0 if mask is not None else _KEEPING[asked.input_fidelity or "low"]
    steps = steps_of(asked, row) or row.num_inference_steps
    if int(steps * strength) < 1 and asked.strength is None:
        strength = 1.0  # a model of so few steps makes all of them or none
    return {"image": image, "mask_image": mask, "strength": strength}


def steps_of(asked: ImageRequest, row: ModelRow) -> int | None:
    """Return how many steps are asked for, by number or by quality; None for the model's."""
    if asked.num_inference_steps is not None:
        return asked.num_inference_steps
    factor = _STEPS_BY_QUALITY.get(asked.quality or "auto")
    return None if factor is None else min(row.max_steps, math.ceil(row.num_inference_steps * factor))


def size_of(size: str | None, row: ModelRow) -> tuple[int, int] | None:
    """Return width and height, None for `auto`; raises Refused for what the model does not render."""
    if size in (None, "auto"):
        return None
    width, height = (int(side) for side in size.split("x"))
    check_size(width, height, row, width_field="size", height_field="size")
    return width, height


def fitting_size(width: int, height: int, row: ModelRow) -> tuple[int, int]:
    """Return the size that the model renders which comes closest to a picture's: its own, as far as that may be."""
    multiple = row.size_multiple
    least, most = (math.ceil(row.min_size / multiple) * multiple, row.max_size // multiple * multiple)
    scale = min(1.0, most / max(width, height), math.sqrt(row.max_pixels / (width * height)))
    scale = max(scale, least / min(width, height))

    def side(length: int) -> int:
        return min(most, max(least, math.floor(length * scale / multiple + 0.5) * multiple))

    fit_width, fit_height = side(width), side(height)
    while fit_width * fit_height > row.max_pixels:  # rounded up, or a strip that is far too long
        if fit_width >= fit_height:
            fit_width -= multiple
        else:
            fit_height -= multiple
    return fit_width, fit_height


def in_openai_words(error: Refused) -> Refused:
    """Return an error of a job that a request became, with the request's name for the field at fault."""
    field = error.field or ""
    if field.startswith("prompts."):
        field = ".".join(field.split(".")[2:]) or "prompt"
    field = _NAMES.get(field, field)
    error.field = field or None
    return error
