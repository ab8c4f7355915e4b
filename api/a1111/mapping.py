"""From what an A1111 client asks to a job of the farm. Pure: the model's row and the options are given.

A1111's own defaults are Stable Diffusion 1.5's. They hold where they fit a model: 512x512 where that is its native
size, 50 steps, CFG 7 and Euler where it is guided. Of what else a client leaves out, the model's row decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from api.a1111.options import CLIP_SKIP, MODEL, Options
from api.a1111.refusals import check_eta, check_fields
from api.a1111.requests import MAX_IMAGES, Generation, Img2Img, Txt2Img
from api.a1111.samplers import scheduler_for
from api.a1111.styles import Style, styled
from farm.catalog import ModelRow
from farm.errors import Refused
from farm.requests import MAX_SEED, ControlNetSpec, HiresSpec, JobSpec, Output, Priority, PromptSpec
from farm.schedulers import Scheduler, find_scheduler

_NATIVE: Final = (512, 512)  # of the models that A1111's defaults were made for
_MIN_GUIDED: Final = 1.0
_MAX_HIRES_SCALE: Final = 8
_ONE_PIXEL_APART: Final = 1.01

HIRES_UPSCALERS: Final[Mapping[str, str]] = MappingProxyType({"latent": "latent", "lanczos": "lanczos"})
"""Ours by A1111's, in lower case."""

_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "model": MODEL,
        "num_inference_steps": "steps",
        "guidance_scale": "cfg_scale",
        "true_cfg_scale": "cfg_scale",
        "scheduler": "sampler_name",
        "num_images_per_prompt": "batch_size",
        "clip_skip": CLIP_SKIP,
        "strength": "denoising_strength",
        "image": "init_images",
        "mask_image": "mask",
        "controlnets": "alwayson_scripts.ControlNet.args",
    }
)
_HIRES_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {"scale": "hr_scale", "strength": "denoising_strength", "num_inference_steps": "hr_second_pass_steps"}
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request read against its model: what is decided before any picture is looked at."""

    asked: Generation
    row: ModelRow
    options: Options
    width: int
    height: int
    scheduler: Scheduler


@dataclass(frozen=True, slots=True)
class Inputs:
    """Keys of the pictures that a request brought along."""

    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()  # one for each image, or none
    controlnets: tuple[ControlNetSpec, ...] = ()


def wanted(asked: Generation, row: ModelRow, options: Options) -> Wanted:
    """Read a request against the row of its model; raises Refused, naming A1111's field."""
    check_fields(asked)
    if asked.num_images > MAX_IMAGES:
        raise Refused(
            "batch_size x n_iter is more than one request takes; larger batches are for POST /v1/jobs",
            field="batch_size",
            value=asked.num_images,
            choices=[f"1 to {MAX_IMAGES}"],
        )
    is_given = asked.model_fields_set
    names_sampler = bool(asked.sampler_name) or "sampler_index" in is_given
    if names_sampler or asked.scheduler or _is_guided(row):
        scheduler = scheduler_for(asked.sampler_name or asked.sampler_index, asked.scheduler, row.scheduler_group)
    else:
        scheduler = find_scheduler(row.scheduler, group=row.scheduler_group)
    check_eta(asked, scheduler)
    is_native = (row.width, row.height) == _NATIVE
    return Wanted(
        asked=asked,
        row=row,
        options=options,
        width=asked.width if is_native or "width" in is_given else row.width,
        height=asked.height if is_native or "height" in is_given else row.height,
        scheduler=scheduler,
    )


def _is_guided(row: ModelRow) -> bool:
    return row.guidance == "cfg" and row.guidance_scale > _MIN_GUIDED


def job_of(want: Wanted, inputs: Inputs, styles: Sequence[Style] = (), *, seed: int) -> JobSpec:
    """Return the job of a request; `seed` is the first image's where the request names none.

    Raises Refused. What `farm.expand` refuses of the job is told by `in_a1111s_words`.
    """
    asked, row = want.asked, want.row
    prompt, negative = styled(asked.prompt, asked.negative_prompt, asked.styles, styles)
    seed = seed if asked.seed == -1 else asked.seed
    if seed + asked.num_images - 1 > MAX_SEED:
        raise Refused("is too large for so many images", field="seed", value=seed, choices=[f"-1 to {MAX_SEED}"])
    output = Output(format=want.options.image_format, quality=want.options.quality)
    if inputs.masks:
        output = Output()  # it is laid over the original before anybody gets it: nothing may be lost on the way
    try:
        return JobSpec(
            model=row.name,
            prompts=_prompts(prompt, inputs, num_images=asked.num_images, seed=seed),
            negative_prompt=negative,
            width=want.width,
            height=want.height,
            scheduler=want.scheduler.name,
            # As A1111, which knows no other than its own for SDXL.
            clip_skip=want.options.clip_skip if row.family == "sd15" else None,
            controlnets=inputs.controlnets,
            strength=_strength(asked) if isinstance(asked, Img2Img) else None,
            hires=_hires(asked, want.width, want.height) if isinstance(asked, Txt2Img) and asked.enable_hr else None,
            output=output,
            priority=Priority.INTERACTIVE,
            labels={"api": "a1111"},
            **_steps_and_guidance(asked, row),
        )
    except ValidationError as error:  # styles have made the prompt too long
        found = error.errors(include_url=False)[0]
        field = next((str(part) for part in reversed(found["loc"]) if isinstance(part, str)), None)
        raise in_a1111s_words(Refused(str(found["msg"]), field=field)) from error


def _prompts(text: str, inputs: Inputs, *, num_images: int, seed: int) -> list[str | PromptSpec]:
    """Return one prompt for all images, or one for each where they start from several pictures in turn."""

    def prompt(at: int, count: int) -> PromptSpec:
        picture = {"image": inputs.images[at % len(inputs.images)]} if inputs.images else {}
        if inputs.masks:
            picture["mask_image"] = inputs.masks[at % len(inputs.masks)]
        spec = PromptSpec(prompt=text.strip() or "-", seed=seed + at, num_images_per_prompt=count, **picture)
        # A1111 renders the empty prompt; to POST /v1/jobs it is a slip of the pen, and so to its model.
        return spec if text.strip() else spec.model_copy(update={"prompt": ""})

    if len(inputs.images) < 2:  # noqa: PLR2004
        return [prompt(0, num_images)]
    return [prompt(at, 1) for at in range(num_images)]


def _steps_and_guidance(asked: Generation, row: ModelRow) -> dict[str, Any]:
    """Return steps and guidance, where it is not the model's row that decides."""
    is_given = asked.model_fields_set
    found: dict[str, Any] = {}
    if _is_guided(row) or "steps" in is_given:
        found["num_inference_steps"] = min(asked.steps, row.max_steps) if "steps" not in is_given else asked.steps
    if row.guidance == "embedded" and asked.distilled_cfg_scale is not None:
        found["guidance_scale"] = asked.distilled_cfg_scale
        if "cfg_scale" in is_given:
            found["true_cfg_scale"] = asked.cfg_scale
    elif _is_guided(row) or "cfg_scale" in is_given:
        found["guidance_scale"] = asked.cfg_scale
    return found


def _strength(asked: Img2Img | Txt2Img) -> float:
    if asked.denoising_strength == 0:
        raise Refused(
            "0 would give the picture back as it is", field="denoising_strength", value=0, choices=["above 0 to 1"]
        )
    return asked.denoising_strength


def _hires(asked: Txt2Img, width: int, height: int) -> HiresSpec:
    upscaler = HIRES_UPSCALERS.get((asked.hr_upscaler or "latent").casefold())
    if upscaler is None:
        raise Refused(
            "is no way to enlarge here", field="hr_upscaler", value=asked.hr_upscaler, choices=["Latent", "Lanczos"]
        )
    scale, field = asked.hr_scale, "hr_scale"
    factors = [size / first for size, first in ((asked.hr_resize_x, width), (asked.hr_resize_y, height)) if size]
    if factors:
        scale, field = factors[0], "hr_resize_x"
        if max(factors) > _ONE_PIXEL_APART * min(factors):
            raise Refused("the second pass keeps the shape of the first", field=field, value=asked.hr_resize_x)
    if not 1 < scale <= _MAX_HIRES_SCALE:
        raise Refused("must enlarge", field=field, value=scale, choices=[f"above 1 to {_MAX_HIRES_SCALE}"])
    return HiresSpec.model_validate(
        {
            "scale": scale,
            "strength": _strength(asked),
            "num_inference_steps": asked.hr_second_pass_steps or None,
            "upscaler": upscaler,
        }
    )


def in_a1111s_words(error: Refused) -> Refused:
    """Return a refusal of the job with the field by A1111's name."""
    parts = (error.field or "").split(".")
    if parts[0] == "prompts":
        parts = parts[2:] or ["prompt"]
    if parts[0] == "hires" and len(parts) > 1:
        parts = [_HIRES_FIELDS.get(parts[1], parts[1])]
    if parts[0] in _FIELDS:
        parts[0] = _FIELDS[parts[0]]
    error.field = ".".join(parts) or None
    return error
