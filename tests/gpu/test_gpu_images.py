"""Pictures made on a card: beside diffusers' pipelines there, and, where that is promised, byte for byte the same."""

from __future__ import annotations

import random
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from farm.catalog import Catalog
from farm.requests import Reproducibility
from farm.schedulers import find_scheduler
from units_of_all_kinds import render, units_of_all_kinds
from worker.bench.published import builders
from worker.bench.random_weights import RandomModel

pytestmark = pytest.mark.gpu
FAMILIES = ("sd15", "sdxl", "flux", "sd3")
LEVELS = {torch.float32: 0.05, torch.float16: 2.0, torch.bfloat16: 6.0}
"""Mean difference of a picture's levels of 255; in 16 bits two ways to compute the same differ by the last digits."""


def by_diffusers(pipeline, config, family, unit):
    """Render `unit` with diffusers' own pipeline; uint8 [h, w, 3]."""
    row = find_scheduler(unit.scheduler)
    pipeline.scheduler = getattr(diffusers, row.diffusers_class).from_config({**config, **row.config})
    arguments = {} if family == "flux" else {"negative_prompt": unit.negative_prompt}
    if family in ("flux", "sd3"):
        arguments["max_sequence_length"] = 40
    images = pipeline(
        unit.prompt,
        height=unit.height,
        width=unit.width,
        num_inference_steps=unit.num_inference_steps,
        guidance_scale=unit.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(unit.seed),
        output_type="np",
        **arguments,
    ).images
    return (images[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_diffusers_own(models, card, family):
    """Whoever sat beside it and whatever made its steps fast, an image is what diffusers makes of it on this card."""
    folder, _, ours = models[family]
    reference = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=ours.dtype).to(card.torch)
    reference.set_progress_bar_config(disable=True)
    config = dict(reference.scheduler.config)
    units = units_of_all_kinds(family)
    gaps = {}
    for unit, image in zip(units, render(ours, units, max_batch=3), strict=True):
        theirs = by_diffusers(reference, config, family, unit)
        gap = np.abs(image.pixels.astype(int) - theirs.astype(int)).mean()
        gaps[unit.scheduler] = max(gaps.get(unit.scheduler, 0.0), float(gap))
    assert max(gaps.values()) <= LEVELS[ours.dtype], gaps


def assert_same_bytes(pipeline, units, *, max_batch):
    """Render `units` alone and in three orders of company."""
    alone = {unit.index: render(pipeline, [unit], max_batch=max_batch)[0].pixels.tobytes() for unit in units}
    different = set()
    for seed in range(3):
        shuffled = random.Random(seed).sample(units, len(units))  # noqa: S311  an order
        for unit, image in zip(shuffled, render(pipeline, shuffled, max_batch=max_batch), strict=True):
            if image.pixels.tobytes() != alone[unit.index]:
                different.add(unit.scheduler)
    assert different == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_invariant_pictures_have_the_same_bytes_in_any_company(models, family):
    """At one padded shape a row's bits do not depend on its neighbours, its place or the order on this card."""
    units = units_of_all_kinds(family, reproducibility=Reproducibility.INVARIANT)
    assert_same_bytes(models[family][2], units, max_batch=4)


def test_invariant_pictures_of_full_size_have_the_same_bytes(card):
    """The same for SD 1.5 as it is published: large convolutions and attention choose their kernels by other rules."""
    if card.torch.type == "cpu":
        pytest.skip("takes minutes on a CPU")
    pipeline = RandomModel(Catalog().row("sd15"), builders("sd15"), card).load()
    units = [
        replace(unit, width=512, height=512, model="sd15")
        for unit in units_of_all_kinds("sd15", reproducibility=Reproducibility.INVARIANT)
    ]
    assert_same_bytes(pipeline, units, max_batch=8)
