"""Runs that start from a picture give the images of diffusers' img2img pipelines, alone and beside other runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from parity import BROWNIAN_WARNING, SOME_SCHEDULERS, any_units, units_of
from picture_parity import PictureStudio, picture
from tiny_models import SIZE_PX, save_tiny_sd15, save_tiny_sdxl, tiny_unit
from worker.pipelines.base import NO_INPUTS, Inputs

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

SCHEDULERS = schedulers_of("diffusion")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Set up a tiny SD 1.5."""
    return PictureStudio.load(save_tiny_sd15(tmp_path_factory.mktemp("sd15") / "tiny"), family="sd15")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """Set up a tiny SDXL."""
    return PictureStudio.load(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"), family="sdxl")


def img2img_units(schedulers, *, seed, **fields):
    """Return one unit per scheduler, and a picture for each; every third starts from noise."""
    units = units_of(schedulers, seed=seed, **fields)
    strengths = (0.55, 0.7, 1.0, 0.85)  # of two steps or more, so that one is left
    units = [replace(unit, strength=strengths[number % 4]) for number, unit in enumerate(units)]
    return units, [Inputs(image=picture(number)) if number % 3 else NO_INPUTS for number in range(len(units))]


@pytest.mark.parametrize(
    ("guidance_scale", "schedulers"), [(4.0, SCHEDULERS), (0.0, SOME_SCHEDULERS)], ids=["guided", "unguided"]
)
def test_every_scheduler_in_mixed_company(studio, guidance_scale, schedulers):
    """Runs from pictures and from noise, of all schedulers, join one lane at random steps and come out as if alone."""
    units, inputs = img2img_units(schedulers, seed=1, guidance_scale=guidance_scale)
    images = studio.assert_all_same(units, inputs, seed=3, max_batch=6)
    assert max(rendered.timings.mean_batch for rendered in images) > 2


def test_alone(studio):
    """A lane of one seat gives the same."""
    units, inputs = img2img_units(SOME_SCHEDULERS, seed=1, guidance_scale=4.0)
    for unit, brought in zip(units, inputs, strict=True):
        studio.assert_all_same([unit], [brought], seed=0, max_batch=1)


def test_sdxl(sdxl):
    """SDXL's two encoders and size conditioning make no difference to where a run starts."""
    units, inputs = img2img_units(SOME_SCHEDULERS, seed=2, guidance_scale=4.0)
    sdxl.assert_all_same(units, inputs, seed=5, max_batch=4)


def test_the_picture_matters(studio):
    """The images that these tests compare do depend on the picture, and on how much of it is kept."""
    unit = tiny_unit(strength=0.5, num_inference_steps=4)
    images = [studio.by_diffusers(unit, Inputs(image=picture(seed))) for seed in (1, 2)]
    images.append(studio.by_diffusers(replace(unit, strength=0.8), Inputs(image=picture(1))))
    assert min(float((one - other).abs().max()) for one, other in pairwise(images)) > 0.01


def test_a_picture_of_another_size_is_resized_as_diffusers_does(studio):
    """Whatever comes in, the image has the size that was asked for."""
    unit = tiny_unit(strength=0.6, num_inference_steps=5, width=SIZE_PX + 8)
    studio.assert_all_same([unit], [Inputs(image=picture(1, 50, 37))], seed=0, max_batch=1)


@given(units=any_units(SCHEDULERS, max_size=3), data=st.data())
@settings(max_examples=settings.default.max_examples // 25, print_blob=True)
def test_whatever_is_asked_for(studio, units, data):
    """Random units, pictures and strengths, joining in random order, come out as diffusers renders each alone."""
    inputs = []
    for number, unit in enumerate(units):
        size = data.draw(st.sampled_from([None, (SIZE_PX, SIZE_PX), (23, 31)]))
        inputs.append(NO_INPUTS if size is None else Inputs(image=picture(number, *size)))
        # diffusers' img2img cannot skip CLIP layers with the transformers of today.
        units[number] = replace(unit, strength=data.draw(st.floats(0.5, 1)), clip_skip=0)
    studio.assert_all_same(units, inputs, seed=data.draw(st.integers(0, 99)), max_batch=3)


def test_invariant(studio):
    """Bit for bit the same, whoever sits beside it."""
    names = SOME_SCHEDULERS[:4]
    units, inputs = img2img_units(names, seed=4, guidance_scale=4.0, reproducibility=Reproducibility.INVARIANT)
    studio.assert_company_is_of_no_account(units, inputs, max_batch=3)
