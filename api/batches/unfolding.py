"""From a job with a template or a matrix to one of plain prompts, and back from its errors to what the client wrote.

Order: prompt by prompt; of each, the texts of its template; of each of these, the matrix, its last axis fastest.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api.batches.templates import templated
from api.batches.wildcards import Wildcards
from farm.errors import Refused
from farm.jobs import Axis
from farm.requests import MAX_AXES, JobSpec, PromptSpec, TemplateSpec

MAX_GRID_IMAGES: Final = 1_000
"""Images that stand on one picture."""

_MAX_LABEL_CHARS: Final = 120
_PROMPT_FIELD: Final = re.compile(r"prompts\.(\d{1,9})(?:\.(.+))?")


@dataclass(frozen=True, slots=True)
class Unfolded:
    """A job of plain prompts, and which of the client's each of them came from."""

    spec: JobSpec
    grid: tuple[Axis, ...] | None = None
    sources: tuple[int, ...] | None = None  # of each prompt, the place of the client's; None: they are the client's
    axes: tuple[tuple[str, int], ...] = ()  # fields of the matrix, with the number of values of each
    written_as_text: frozenset[int] = frozenset()  # places of the client's prompts that are no objects

    def written(self, field: str | None) -> str | None:
        """Return what the client called the field of an error: `prompts.7.width` may be `matrix.width.1`."""
        match = _PROMPT_FIELD.fullmatch(field or "")
        if match is None or self.sources is None or int(match[1]) >= len(self.sources):
            return field
        place, name = int(match[1]), match[2]
        source, cell = self.sources[place], place
        for axis, number in reversed(self.axes):
            if axis == name:
                return f"matrix.{name}.{cell % number}"
            cell //= number
        return f"prompts.{source}" if name is None or source in self.written_as_text else f"prompts.{source}.{name}"


def unfold(spec: JobSpec, wildcards: Wildcards, *, drawn_seed: int, max_prompts: int, max_chars: int) -> Unfolded:
    """Return the job in plain prompts; one without template, matrix and grid comes back as it is.

    `drawn_seed` is the seed of a job that names none, `max_chars` bounds all texts together. Raises Refused with field
    and value, and, before anything is made, with the number of prompts where that is beyond `max_prompts`.
    """
    axes = _axes_of(spec)
    if spec.template.mode == "off" and not axes:
        return Unfolded(spec, grid=_grid_of(spec, {}, spec.prompts) if spec.grid else None)
    cells = math.prod(len(values) for values in axes.values())
    _check_number(len(spec.prompts), cells, max_prompts)
    job_seed = drawn_seed if spec.seed is None or spec.seed == -1 else spec.seed
    texts: list[PromptSpec] = []
    sources: list[int] = []
    num_chars = 0
    lora_chars = _chars_of_loras(axes, cells)
    for source, prompt in _plain(spec, wildcards, job_seed=job_seed, max_prompts=max_prompts // cells):
        num_chars += cells * (len(prompt.prompt) + len(prompt.negative_prompt or "")) + lora_chars
        if num_chars > max_chars:
            raise Refused(f"the job's texts have more than {max_chars:,} characters; split the batch", field="prompts")
        texts.append(prompt)
        sources += [source] * cells
    prompts = [
        prompt.model_copy(update=dict(zip(axes, row, strict=True)))
        for prompt in texts
        for row in itertools.product(*axes.values())
    ]
    plain = spec.model_copy(update={"prompts": prompts, "matrix": None, "template": TemplateSpec()})
    return Unfolded(
        plain,
        grid=_grid_of(spec, axes, texts) if spec.grid else None,
        sources=tuple(sources),
        axes=tuple((name, len(values)) for name, values in axes.items()),
        written_as_text=frozenset(place for place, each in enumerate(spec.prompts) if isinstance(each, str)),
    )


def _plain(spec: JobSpec, wildcards: Wildcards, *, job_seed: int, max_prompts: int) -> Iterable[tuple[int, PromptSpec]]:
    """Return the prompts as objects with their texts settled, each with the place of the client's."""
    if spec.template.mode != "off":
        return templated(spec, wildcards, job_seed=job_seed, max_prompts=max_prompts)
    as_objects = (each if isinstance(each, PromptSpec) else PromptSpec(prompt=each) for each in spec.prompts)
    return enumerate(as_objects)


def _axes_of(spec: JobSpec) -> dict[str, list[Any]]:
    axes = {} if spec.matrix is None else spec.matrix.axes
    if len(axes) > MAX_AXES:
        raise Refused(
            f"varies {len(axes)} fields at once, and {MAX_AXES} are the most",
            field="matrix",
            value=len(axes),
            choices=[f"1 to {MAX_AXES} fields"],
        )
    for name, values in axes.items():
        for place, value in enumerate(values):
            if value in values[:place]:
                raise Refused("stands there twice", field=f"matrix.{name}.{place}", value=value)
    return axes


def _chars_of_loras(axes: dict[str, list[Any]], cells: int) -> int:
    """Return how long the LoRAs' names in all combinations are together."""
    values = axes.get("loras", [])
    return sum(len(lora.name) for value in values for lora in value) * cells // max(1, len(values))


def _check_number(num_prompts: int, cells: int, max_prompts: int) -> None:
    if num_prompts * cells > max_prompts:
        raise Refused(
            f"{num_prompts:,} prompts with {cells:,} combinations of values each are {num_prompts * cells:,}, more "
            f"than one job takes ({max_prompts:,})",
            field="matrix",
            value=num_prompts * cells,
            choices=[f"1 to {max_prompts} prompts in all"],
        )


def _grid_of(spec: JobSpec, axes: dict[str, list[Any]], prompts: Sequence[str | PromptSpec]) -> tuple[Axis, ...]:
    """Return the axes of the grid: the matrix. Its prompts, and the images of each, are known by the ledger."""
    numbers = {
        (isinstance(each, PromptSpec) and each.num_images_per_prompt) or spec.num_images_per_prompt for each in prompts
    }
    if len(numbers) > 1:
        raise Refused(
            "a grid needs as many images of each prompt as of the others", field="grid", value=True, choices=["false"]
        )
    num_images = numbers.pop()
    total = num_images * len(prompts) * math.prod(len(values) for values in axes.values())
    if total > MAX_GRID_IMAGES:
        raise Refused(
            f"{total:,} images are more than a grid shows ({MAX_GRID_IMAGES:,})",
            field="grid",
            value=True,
            choices=["false", f"true with 1 to {MAX_GRID_IMAGES} images"],
        )
    return tuple(Axis(name, tuple(map(_label, values))) for name, values in axes.items())


def _label(value: object) -> str:
    """Return a value of an axis in words; of LoRAs the names and weights, as they stand in a tag."""
    match value:
        case float():
            text = f"{value:g}"
        case tuple():
            text = " + ".join(f"{lora.name}:{lora.weight:g}" for lora in value) or "none"
        case _:
            text = " ".join(str(value).split())
    return text if len(text) <= _MAX_LABEL_CHARS else f"{text[: _MAX_LABEL_CHARS - 1]}…"
