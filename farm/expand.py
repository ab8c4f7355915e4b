"""From a client's JobSpec to entries with every parameter resolved, in a fixed order. Pure.

Unit order is prompt by prompt: all images of prompt 0, then all of prompt 1. Unit `index` and the runs of a header
give entry and seed back, so nothing is ever stored per image.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from farm.catalog import ModelRow
from farm.errors import Refused
from farm.jobs import MAX_SEED, Entry, ExpandedJob, Header, JobSpec, PromptSpec, Run, Unit
from farm.schedulers import find_scheduler


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
) -> ExpandedJob:
    """Resolve `spec` against its catalog row.

    `drawn_seed` is the seed of prompts that name none. Raises Refused with field, value and choices when a size does
    not fit the model, a scheduler is unknown, or a limit is exceeded.
    """
    if len(spec.prompts) > max_prompts:
        raise Refused(
            f"{len(spec.prompts)} prompts are more than one job takes ({max_prompts}); split the batch",
            field="prompts",
            value=len(spec.prompts),
            choices=[f"1 to {max_prompts}"],
        )
    job_seed = drawn_seed if spec.seed in (None, -1) else spec.seed
    assert job_seed is not None  # noqa: S101  narrows the type: `in` does not
    entries = tuple(
        _entry(spec, given, row, job_seed=job_seed, at=f"prompts.{i}" if isinstance(given, PromptSpec) else "")
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
    )
    return ExpandedJob(header=header, entries=entries)


def _entry(spec: JobSpec, given: str | PromptSpec, row: ModelRow, *, job_seed: int, at: str) -> Entry:
    own = given if isinstance(given, PromptSpec) else PromptSpec.model_construct(prompt=given)

    def field_of(name: str) -> str:
        """Name the place a value came from: the prompt's own, or the job's."""
        return f"{at}.{name}" if at and getattr(own, name, None) is not None else name

    width = own.width or spec.width or row.width
    height = own.height or spec.height or row.height
    check_size(width, height, row, width_field=field_of("width"), height_field=field_of("height"))
    steps = own.num_inference_steps or spec.num_inference_steps or row.num_inference_steps
    if steps > row.max_steps:
        raise Refused(
            f"{row.name} takes at most {row.max_steps} steps",
            field=field_of("num_inference_steps"),
            value=steps,
            choices=[f"1 to {row.max_steps}"],
        )
    guidance = own.guidance_scale if own.guidance_scale is not None else spec.guidance_scale
    num_images = own.num_images_per_prompt or spec.num_images_per_prompt
    seed = job_seed if own.seed in (None, -1) else own.seed
    if seed is None or seed + num_images - 1 > MAX_SEED:
        raise Refused(
            f"seed + number of images exceeds the largest seed ({MAX_SEED})",
            field=field_of("seed"),
            value=seed,
        )
    scheduler = own.scheduler or spec.scheduler or row.scheduler
    return Entry(
        prompt=own.prompt,
        negative_prompt=spec.negative_prompt if own.negative_prompt is None else own.negative_prompt,
        num_images=num_images,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=row.guidance_scale if guidance is None else guidance,
        scheduler=find_scheduler(scheduler, field_name=field_of("scheduler")).name,
        width=width,
        height=height,
    )


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


def unit_of(header: Header, entry: Entry, *, index: int, attempt: int) -> Unit:
    """Return unit `index` of a job, whose prompt entry is `entry`."""
    _, image = locate(header.runs, index)
    return Unit(
        job=header.id,
        index=index,
        attempt=attempt,
        model=header.model,
        prompt=entry.prompt,
        negative_prompt=entry.negative_prompt,
        seed=entry.seed + image,
        num_inference_steps=entry.num_inference_steps,
        guidance_scale=entry.guidance_scale,
        scheduler=entry.scheduler,
        width=entry.width,
        height=entry.height,
        reproducibility=header.reproducibility,
        output=header.output,
    )
