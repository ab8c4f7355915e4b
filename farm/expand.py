"""From a client's JobSpec to entries with every parameter resolved, in a fixed order. Pure.

Unit order is prompt by prompt: all images of prompt 0, then all of prompt 1. Unit `index` and the runs of a header
give entry and seed back, so nothing is ever stored per image.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, Final

from farm.acceleration import acceleration_of
from farm.catalog import ModelRow
from farm.errors import Refused
from farm.jobs import Axis, ControlNet, Entry, ExpandedJob, Header, Hires, Picture, Run, Unit
from farm.pictures import check_source, pictures_of
from farm.prompts import Lora, extract_loras
from farm.requests import MAX_SEED, ControlNetSpec, HiresSpec, JobSpec, PromptSpec, Reproducibility
from farm.schedulers import find_scheduler

_DEFAULT_STRENGTH: Final = 0.8  # as in diffusers
_PICTURE_FIELDS: Final = tuple(field.name for field in fields(Picture))


def expand(
    spec: JobSpec,
    row: ModelRow,
    *,
    job_id: str,
    tenant: str,
    created_at: float,
    drawn_seed: int,
    max_prompts: int,
    max_images: int,
    controlnets: Sequence[str] = (),
    input_hosts: Collection[str] = (),
    afterwards: Sequence[str] = (),
    grid: tuple[Axis, ...] | None = None,
) -> ExpandedJob:
    """Resolve `spec` against its catalog row.

    `drawn_seed` is the seed of prompts that name none, `controlnets` are those that fit the model, `input_hosts` those
    that pictures may come from, `afterwards` the chores that the job's end brings, `grid` the axes of its picture of
    all images. `template` and `matrix` are not looked at: whoever knows them has unfolded them. Raises Refused with
    field, value and choices when a size does not fit the model, a name is unknown, a picture may not be fetched, or a
    limit is exceeded.
    """
    if len(spec.prompts) > max_prompts:
        raise Refused(
            f"{len(spec.prompts)} prompts are more than one job takes ({max_prompts}); split the batch",
            field="prompts",
            value=len(spec.prompts),
            choices=[f"1 to {max_prompts}"],
        )
    if spec.reuse and spec.reproducibility is not Reproducibility.INVARIANT:
        raise Refused(
            "an earlier image can be taken for a new one only where their bytes are the same: under reproducibility "
            "invariant",
            field="reuse",
            value=True,
            choices=["false", "true with reproducibility invariant"],
        )
    for field_name, source in pictures_of(spec):
        check_source(source, input_hosts, field_name=field_name)
    job_seed = drawn_seed if spec.seed in (None, -1) else spec.seed
    assert job_seed is not None  # noqa: S101  narrows the type: `in` does not
    entries = tuple(
        _entry(spec, given, row, controlnets, job_seed=job_seed, at=f"prompts.{i}")
        for i, given in enumerate(spec.prompts)
    )
    total = sum(entry.num_images for entry in entries)
    if total > max_images:
        raise Refused(
            f"{total} images are more than one job takes ({max_images}); split the batch",
            field="num_images_per_prompt",
            value=total,
            choices=[f"1 to {max_images} images in all"],
        )
    header = Header(
        id=job_id,
        tenant=tenant,
        model=row.name,
        priority=spec.priority,
        reproducibility=spec.reproducibility,
        output=spec.output,
        labels=spec.labels,
        total=total,
        num_entries=len(entries),
        created_at=created_at,
        runs=runs_of([entry.num_images for entry in entries]),
        reuse=spec.reuse,
        webhook=spec.webhook,
        afterwards=tuple(afterwards),
        grid=grid,
    )
    return ExpandedJob(header=header, entries=entries)


def _entry(
    spec: JobSpec, given: str | PromptSpec, row: ModelRow, controlnets: Sequence[str], *, job_seed: int, at: str
) -> Entry:
    """Resolve the prompt `given` at place `at` of the job."""
    own = given if isinstance(given, PromptSpec) else PromptSpec.model_construct(prompt=given)

    def field_of(name: str) -> str:
        """Name the place a value came from: the prompt's own, or the job's."""
        return f"{at}.{name}" if getattr(own, name, None) is not None else name

    def asked(name: str) -> Any:
        """Return the prompt's own value, or else the job's."""
        value = getattr(own, name, None)
        return getattr(spec, name) if value is None else value

    width = asked("width") or row.width
    height = asked("height") or row.height
    check_size(width, height, row, width_field=field_of("width"), height_field=field_of("height"))
    steps = _steps(asked("num_inference_steps") or row.num_inference_steps, row, field_of("num_inference_steps"))
    num_images = asked("num_images_per_prompt")
    seed = job_seed if own.seed in (None, -1) else own.seed
    if seed is None or seed + num_images - 1 > MAX_SEED:
        raise Refused(
            f"seed + number of images exceeds the largest seed ({MAX_SEED})",
            field=field_of("seed"),
            value=seed,
        )
    guidance = row.guidance_scale if (value := asked("guidance_scale")) is None else value
    true_cfg = asked("true_cfg_scale")
    if true_cfg is not None and row.guidance != "embedded":
        raise Refused(
            f"{row.name} is guided by guidance_scale; true_cfg_scale is for models that take that as an input",
            field=field_of("true_cfg_scale"),
            value=true_cfg,
        )
    prompt, tagged = extract_loras(own.prompt, field_name=f"{at}.prompt" if isinstance(given, PromptSpec) else at)
    image, mask_image = asked("image") or "", asked("mask_image") or ""
    strength = _strength(asked("strength"), has_image=bool(image), field_name=field_of("strength"))
    if image:
        _check_steps_left(steps, strength, row, field_name=field_of("strength"))
    if mask_image and not image:
        raise Refused(
            "a mask says which part of `image` is painted anew: name both",
            field=field_of("mask_image"),
            value=mask_image,
        )
    hires = asked("hires")
    is_guided = (true_cfg or 1.0) > 1 if row.guidance == "embedded" else guidance > 1
    return Entry(
        prompt=prompt,
        negative_prompt=asked("negative_prompt"),
        num_images=num_images,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        guided=is_guided,
        scheduler=find_scheduler(
            asked("scheduler") or row.scheduler, group=row.scheduler_group, field_name=field_of("scheduler")
        ).name,
        width=width,
        height=height,
        true_cfg_scale=1.0 if true_cfg is None else true_cfg,
        clip_skip=row.clip_skip if (skip := asked("clip_skip")) is None else skip,
        loras=_merge(row.loras, [Lora(lora.name, lora.weight) for lora in asked("loras")], tagged),
        image=image,
        mask_image=mask_image,
        strength=strength,
        controlnets=tuple(
            _controlnet(net, controlnets, f"{field_of('controlnets')}.{i}")
            for i, net in enumerate(asked("controlnets"))
        ),
        hires=None if hires is None else _hires(hires, row, width, height, steps=steps, at=field_of("hires")),
        acceleration=acceleration_of(asked("acceleration"), row, is_guided=is_guided, at=field_of("acceleration")),
    )


def _steps(steps: int, row: ModelRow, field_name: str) -> int:
    if steps > row.max_steps:
        raise Refused(
            f"{row.name} takes at most {row.max_steps} steps",
            field=field_name,
            value=steps,
            choices=[f"1 to {row.max_steps}"],
        )
    return steps


def _strength(strength: float | None, *, has_image: bool, field_name: str) -> float:
    """Return diffusers' strength; 1 for pure noise, 0.8 for an image where none is named."""
    if strength is None:
        return _DEFAULT_STRENGTH if has_image else 1.0
    if not has_image:
        raise Refused("strength says how much of `image` gives way: name both", field=field_name, value=strength)
    return strength


def _check_steps_left(steps: int, strength: float, row: ModelRow, *, field_name: str) -> None:
    """Raise Refused where diffusers would: a run from a picture makes steps x strength steps, rounded down.

    Its pipelines for flow models round up.
    """
    if row.scheduler_group == "diffusion" and int(steps * strength) < 1:
        raise Refused(
            f"{steps} steps at strength {strength:g} leave none to make",
            field=field_name,
            value=strength,
            choices=[f"{math.ceil(1000 / steps) / 1000:g} to 1"],
        )


def _merge(*groups: Sequence[Lora]) -> tuple[Lora, ...]:
    """Return all LoRAs in order of their names, the weights of one named twice added up; those of weight 0 do nothing.

    The order decides who may share a batch, not what the picture looks like.
    """
    weights: dict[str, float] = {}
    for lora in (lora for group in groups for lora in group):
        weights[lora.name] = weights.get(lora.name, 0.0) + lora.weight
    return tuple(Lora(name, weight) for name, weight in sorted(weights.items()) if weight)


def _controlnet(spec: ControlNetSpec, known: Sequence[str], at: str) -> ControlNet:
    if spec.model not in known:
        raise Refused(
            f"no ControlNet of this model's family is called {spec.model!r}",
            field=f"{at}.model",
            value=spec.model,
            choices=list(known),
        )
    if spec.guidance_start >= spec.guidance_end:
        raise Refused("must lie before guidance_end", field=f"{at}.guidance_start", value=spec.guidance_start)
    return ControlNet(spec.model, spec.image, spec.conditioning_scale, spec.guidance_start, spec.guidance_end)


def _hires(spec: HiresSpec, row: ModelRow, width: int, height: int, *, steps: int, at: str) -> Hires:
    """Resolve the second pass: its size is the first one's times `scale`, to the nearest size the model renders."""
    multiple = row.size_multiple
    width, height = (max(1, math.floor(side * spec.scale / multiple + 0.5)) * multiple for side in (width, height))
    check_size(width, height, row, width_field=f"{at}.scale", height_field=f"{at}.scale")
    steps = _steps(spec.num_inference_steps or steps, row, f"{at}.num_inference_steps")
    _check_steps_left(steps, spec.strength, row, field_name=f"{at}.strength")
    return Hires(width, height, spec.strength, steps, spec.upscaler)


def check_size(
    width: int, height: int, row: ModelRow, *, width_field: str = "width", height_field: str = "height"
) -> None:
    """Raise Refused unless an image of `width` x `height` pixels fits the model."""
    for name, value in ((width_field, width), (height_field, height)):
        if value % row.size_multiple:
            below = value - value % row.size_multiple
            choices = [str(size) for size in (below, below + row.size_multiple) if size >= row.min_size]
            raise Refused(
                f"{row.name} renders multiples of {row.size_multiple} pixels",
                field=name,
                value=value,
                choices=choices,
            )
        if not row.min_size <= value <= row.max_size:
            raise Refused(f"{row.name} renders {row.min_size} to {row.max_size} pixels a side", field=name, value=value)
    if width * height > row.max_pixels:
        raise Refused(
            f"{width}x{height} is more than {row.name} renders ({row.max_pixels} pixels)",
            field=width_field,
            value=width,
        )


def runs_of(num_images: Sequence[int]) -> tuple[Run, ...]:
    """Return the runs of entries that have these numbers of images."""
    runs: list[Run] = []
    index = 0
    for position, count in enumerate(num_images):
        if not runs or runs[-1].num_images != count:
            runs.append(Run(index, position, count))
        index += count
    return tuple(runs)


def locate(runs: Sequence[Run], index: int) -> tuple[int, int]:
    """Return (entry, image within the entry) of the unit with this index."""
    run = runs[bisect_right(runs, index, key=lambda run: run.first_index) - 1]
    entry, image = divmod(index - run.first_index, run.num_images)
    return run.first_entry + entry, image


def unit_of(header: Header, entry: Entry, *, index: int, attempt: int, alone: bool = False) -> Unit:
    """Return unit `index` of a job, whose prompt entry is `entry`."""
    _, image = locate(header.runs, index)
    picture = {name: getattr(entry, name) for name in _PICTURE_FIELDS}
    return Unit(
        **{**picture, "seed": entry.seed + image},
        job=header.id,
        index=index,
        attempt=attempt,
        model=header.model,
        reproducibility=header.reproducibility,
        output=header.output,
        reuse=header.reuse,
        alone=alone,
    )
