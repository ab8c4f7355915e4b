"""The engine's images of SD 3.5 are diffusers' images: every flow scheduler, guided or not, alone and in company."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from statistics import fmean

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import RenderFailed
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from flow_parity import FLOW_PROMPTS, MAX_SEQUENCE_LENGTH, FlowStudio, any_flow_units, picture
from parity import MAX_DIFFERENCE, units_of
from tiny_flow_models import SIZE_MULTIPLE_PX, save_tiny_sd3
from tiny_models import SIZE_PX, tiny_row, tiny_unit
from worker.pipelines.base import NO_INPUTS
from worker.pipelines.loading import load_pipeline
from worker.pipelines.sd3 import Sd3Pipeline

SCHEDULERS = schedulers_of("flow")
GUIDANCE = pytest.mark.parametrize("guidance_scale", [1.0, 4.0], ids=["unguided", "guided"])


def studio_of(folder, **parts):
    """Return the studio of a model saved in `folder`; `parts` replace some of its own."""
    reference = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **parts)
    return FlowStudio(Sd3Pipeline, reference, diffusers.StableDiffusion3Img2ImgPipeline)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a model with the scheduler config of SD 3.5, whose schedule is the same at every size."""
    return save_tiny_sd3(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def static(folder):
    """Set up that one."""
    return studio_of(folder)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """Set up a model that shifts its schedule with the size."""
    return studio_of(save_tiny_sd3(tmp_path_factory.mktemp("models") / "tiny", use_dynamic_shifting=True, seed=1))


@pytest.fixture(params=["static", "dynamic"])
def studio(request):
    """Return each of the two."""
    return request.getfixturevalue(request.param)


def various(units, *, seed=0):
    """Return `units` with guidance of their own, and prompts that are longer, too."""
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    return [
        replace(
            unit,
            prompt=chance.choice(FLOW_PROMPTS),
            guidance_scale=unit.guidance_scale + 3 * chance.random() * unit.guided,
        )
        for unit in units
    ]


@pytest.mark.parametrize(
    ("studio", "guidance_scale"),
    [("static", 1.0), ("static", 4.0), ("dynamic", 4.0), pytest.param("dynamic", 1.0, marks=pytest.mark.long)],
    indirect=["studio"],
)
def test_alone_and_in_mixed_company(studio, guidance_scale):
    """Each scheduler's image is diffusers', rendered alone and among all others that join at random steps."""
    units = various(units_of(SCHEDULERS, seed=1, guidance_scale=guidance_scale))
    for unit in units:
        studio.assert_all_same([unit], seed=0, max_batch=1)
    images = studio.assert_all_same(units, seed=3, max_batch=5)
    assert fmean(rendered.timings.mean_batch for rendered in images) > 2


def test_all_that_steers_shows(static):
    """Words, guidance and clip skip change the image by far more than is tolerated, or others would prove little."""
    unit = tiny_unit(scheduler="flow_euler")
    for change in ({"prompt": "a red circlf"}, {"negative_prompt": "x"}, {"guidance_scale": 4.7}, {"clip_skip": 1}):
        difference = (static.by_diffusers(unit) - static.by_diffusers(replace(unit, **change))).abs().max()
        assert difference > 10 * MAX_DIFFERENCE, change


def test_sizes_and_guidance_side_by_side(studio):
    """Each unit's schedule is shifted for its own size, whatever the sizes of those who run at the same time."""
    sides = [SIZE_MULTIPLE_PX, SIZE_PX, SIZE_PX + SIZE_MULTIPLE_PX, 2 * SIZE_PX]
    units = [
        tiny_unit(index=index, seed=index, width=width, height=height, scheduler="flow_euler", guidance_scale=scale)
        for scale in (1.0, 5.0)
        for index, (width, height) in enumerate(zip(sides, reversed(sides), strict=True))
    ]
    studio.assert_all_same(units, seed=4, max_batch=2)


@settings(max_examples=settings.default.max_examples // 20, print_blob=True)
@given(
    units=any_flow_units(guidance_scale=st.sampled_from([0.0, 1.0, 3.5, 7.0]), clip_skip=st.integers(0, 1)),
    seed=st.integers(0, 2**32),
    max_batch=st.integers(1, 4),
)
def test_any_company(static, units, seed, max_batch):
    """Whatever units come in whatever order at whatever step, each image is diffusers' image of that unit."""
    static.assert_all_same(units, seed=seed, max_batch=max_batch)


@GUIDANCE
def test_invariant_bytes_do_not_depend_on_company(static, guidance_scale):
    """Alone, in any order and seat, at a padded shape: not a bit differs."""
    units = units_of(SCHEDULERS[::3], seed=5, guidance_scale=guidance_scale, reproducibility=Reproducibility.INVARIANT)
    static.assert_company_is_of_no_account(various(units), max_batch=4)


@pytest.mark.parametrize(
    ("studio", "strength"),
    [
        ("static", 0.3),
        ("dynamic", 0.55),
        ("dynamic", 0.7),
        ("static", 1.0),
        *(pytest.param("dynamic", strength, marks=pytest.mark.long) for strength in (0.3, 1.0)),
        *(pytest.param("static", strength, marks=pytest.mark.long) for strength in (0.55, 0.7)),
    ],
    indirect=["studio"],
)
def test_image_to_image(studio, strength):
    """From a picture of another size, under as much noise as diffusers gives it, beside text-to-image in one lane."""
    units = units_of(SCHEDULERS, seed=6, strength=strength, image="a.png", num_inference_steps=5)
    pictures = [picture(unit.index, height=SIZE_PX + 8, width=SIZE_PX) for unit in units]
    plain = tiny_unit(index=len(units), scheduler="flow_euler")
    studio.assert_all_same([*units, plain], [*pictures, NO_INPUTS], seed=7, max_batch=4)


def test_without_t5(folder, tmp_path):
    """Zeros stand for a T5 that was left out; the images are still diffusers', and the loader misses nothing."""
    studio = studio_of(folder, text_encoder_3=None, tokenizer_3=None)
    units = units_of(SCHEDULERS[:5], seed=8, guidance_scale=4.0)
    images = studio.assert_all_same(units, seed=9, max_batch=3)
    light = shutil.copytree(folder, tmp_path / "light", ignore=shutil.ignore_patterns("*_3"))
    row = tiny_row(light, family="sd3", max_sequence_length=MAX_SEQUENCE_LENGTH)
    studio.ours = load_pipeline(row, models_dir=light, device=torch.device("cpu"))
    for image, again in zip(images, studio.render(units, seed=9, max_batch=3), strict=True):
        assert (image.pixels == again.pixels).all()


def test_prompts_too_long_for_an_encoder_are_told(static):
    """What is cut for the CLIPs is told once for the two, and not for T5 that read it all."""
    (image,) = static.render([tiny_unit(scheduler="flow_euler", prompt="red " * 30)], seed=0, max_batch=1)
    assert [warning.split(" is ")[0] for warning in image.warnings] == ["prompt, as CLIP reads it,"]


def test_sides_of_half_a_patch_are_refused(static):
    """A size that leaves half a patch fails with what sizes there are, not with a shape error in a step."""
    unit = tiny_unit(scheduler="flow_euler", height=SIZE_PX + SIZE_MULTIPLE_PX // 2)
    with pytest.raises(RenderFailed, match=f"multiples of {SIZE_MULTIPLE_PX}"):
        static.render([unit], seed=0, max_batch=1)


def test_loaded_from_its_folder(static, folder):
    """The loader brings an SD 3.5 with all of its parts, and it renders the same."""
    row = tiny_row(folder, family="sd3", max_sequence_length=MAX_SEQUENCE_LENGTH)
    loaded = load_pipeline(row, models_dir=folder, device=torch.device("cpu"))
    (image,) = static.render([tiny_unit(scheduler="flow_euler")], seed=0, max_batch=1)
    ours, static.ours = static.ours, loaded
    try:
        (again,) = static.render([tiny_unit(scheduler="flow_euler")], seed=0, max_batch=1)
    finally:
        static.ours = ours
    assert (again.pixels == image.pixels).all()
