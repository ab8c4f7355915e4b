"""The requests that are rendered: a model's own kind, and a mix of many."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from farm.jobs import Unit
from farm.requests import Output, Reproducibility

if TYPE_CHECKING:
    from farm.catalog import ModelRow

NEGATIVE_PROMPT: Final = "blurred"

MIXED_STEPS: Final = (8, 50)
MIXED_SCHEDULERS: Final = {
    "diffusion": ("euler", "dpmpp_2m_karras", "unipc"),
    "flow": ("flow_euler", "flow_unipc", "flow_dpmpp_2m"),
}
"""One call of the denoiser for each step, all of them."""


def prompt_of(index: int) -> str:
    """Return a prompt that no other index has."""
    return f"a red thing of number {index} under a wide and windy sky"


def native_unit(row: ModelRow, index: int, **fields: Any) -> Unit:
    """Return a unit at the row's own size, steps and guidance, but for `fields`; prompts and seeds differ."""
    unit = Unit(
        job="job_bench",
        index=index,
        attempt=1,
        model=row.name,
        prompt=prompt_of(index),
        negative_prompt=NEGATIVE_PROMPT,
        seed=index,
        num_inference_steps=row.num_inference_steps,
        guidance_scale=row.guidance_scale,
        guided=row.guidance == "cfg" and row.guidance_scale > 1,
        scheduler=row.scheduler,
        width=row.width,
        height=row.height,
        reproducibility=Reproducibility.FAST,
        output=Output(),
    )
    return replace(unit, **fields)


def mixed_units(row: ModelRow, count: int, *, seed: int = 0) -> list[Unit]:
    """Return units of 8 to 50 steps, three schedulers, and, where the model can be guided, half of them not."""
    chance = random.Random(seed)  # noqa: S311  the same mix every time
    guided = native_unit(row, 0).guided
    low, high = (min(steps, row.max_steps) for steps in MIXED_STEPS)
    return [
        native_unit(
            row,
            index,
            num_inference_steps=chance.randint(low, high),
            scheduler=MIXED_SCHEDULERS[row.scheduler_group][index % 3],
            guided=guided and chance.random() < 0.5,  # noqa: PLR2004  half of them
        )
        for index in range(count)
    ]
