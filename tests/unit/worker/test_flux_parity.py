"""The engine's images of Flux.1 are diffusers' images: every flow scheduler, guided or not, alone and in company."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import ModelBroken, RenderFailed
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from flow_parity import FLOW_PROMPTS, MAX_SEQUENCE_LENGTH, FlowStudio, any_flow_units, picture
from parity import MAX_DIFFERENCE, units_of
from tiny_flow_models import SIZE_MULTIPLE_PX, save_tiny_flux
from tiny_models import SIZE_PX, tiny_row, tiny_unit
from worker.pipelines.base import NO_INPUTS
from worker.pipelines.flux import FluxPipeline
from worker.pipelines.loading import load_pipeline

SCHEDULERS = schedulers_of("flow")
GUIDANCE = pytest.mark.parametrize("true_cfg_scale", [1.0, 3.0], ids=["unguided", "guided"])


@pytest.fixture(scope="module")
def dev_folder(tmp_path_factory):
    """Save a Flux that takes the guidance scale as an input and shifts its schedule with the size."""
    return save_tiny_flux(tmp_path_factory.mktemp("models") / "dev", guidance_embeds=True)


@pytest.fixture(scope="module")
def dev(dev_folder):
    """Set up that one."""
    reference = diffusers.FluxPipeline.from_pretrained(dev_folder)
    return FlowStudio(FluxPipeline, reference, diffusers.FluxImg2ImgPipeline)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    """Set up a Flux without guidance whose schedule is the same at every size."""
    folder = save_tiny_flux(tmp_path_factory.mktemp("models") / "schnell", guidance_embeds=False, seed=1)
    return FlowStudio(FluxPipeline, diffusers.FluxPipeline.from_pretrained(folder), diffusers.FluxImg2ImgPipeline)


@pytest.fixture(params=["dev", "schnell"])
def studio(request):
    """Return each of the two."""
    return request.getfixturevalue(request.param)


def flux_unit(**fields):
    """Return a unit that is guided by a negative prompt where its `true_cfg_scale` is above 1."""
    return tiny_unit(**{"scheduler": "flow_euler", "guided": fields.get("true_cfg_scale", 1.0) > 1, **fields})


def various(units, *, seed=0):
    """Return `units` with guidance of their own, and prompts that are longer, too."""
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    return [
        replace(
            unit,
            prompt=chance.choice(FLOW_PROMPTS),
            guidance_scale=1 + 4 * chance.random(),
            true_cfg_scale=unit.true_cfg_scale + chance.random() * unit.guided,
        )
        for unit in units
    ]


@pytest.mark.parametrize(
    ("studio", "true_cfg_scale"),
    [("dev", 1.0), ("dev", 3.0), ("schnell", 3.0), pytest.param("schnell", 1.0, marks=pytest.mark.long)],
    indirect=["studio"],
)
def test_alone_and_in_mixed_company(studio, true_cfg_scale):
    """Each scheduler's image is diffusers', rendered alone and among all others that join at random steps."""
    guidance = {"true_cfg_scale": true_cfg_scale, "guided": true_cfg_scale > 1}
    units = various(units_of(SCHEDULERS, seed=1, **guidance))
    for unit in units:
        studio.assert_all_same([unit], seed=0, max_batch=1)
    images = studio.assert_all_same(units, seed=3, max_batch=5)
    assert fmean(rendered.timings.mean_batch for rendered in images) > 2


def test_all_that_steers_shows(dev):
    """Words and both guidance scales change the image by far more than is tolerated, or others would prove little."""
    unit = flux_unit(true_cfg_scale=3.0)
    changes = [{"prompt": "a red circlf"}, {"negative_prompt": "x"}, {"guidance_scale": 4.9}, {"true_cfg_scale": 3.2}]
    for change in changes:
        difference = (dev.by_diffusers(unit) - dev.by_diffusers(replace(unit, **change))).abs().max()
        assert difference > 10 * MAX_DIFFERENCE, change


def test_sizes_side_by_side(studio):
    """Each unit's schedule is shifted for its own size, whatever the sizes of those who run at the same time."""
    sides = [SIZE_MULTIPLE_PX, SIZE_PX, SIZE_PX + SIZE_MULTIPLE_PX, 2 * SIZE_PX]
    units = [
        flux_unit(index=index, seed=index, width=width, height=height, num_inference_steps=4)
        for index, (width, height) in enumerate(zip(sides, reversed(sides), strict=True))
    ]
    studio.assert_all_same([*units, *(replace(unit, index=9) for unit in units)], seed=4, max_batch=2)


def test_dev_shifts_with_the_size_and_schnell_does_not(dev, schnell):
    """What makes the schedules of two sizes differ is there for one of the two models only."""
    small, large = (dev.ours.timestep_options(4, side, side) for side in (SIZE_PX, 2 * SIZE_PX))
    assert small.mu is not None
    assert large.mu is not None
    assert small.mu < large.mu
    assert schnell.ours.timestep_options(4, SIZE_PX, SIZE_PX).mu is None
    assert small.sigmas == large.sigmas == (1.0, 0.75, 0.5, 0.25)


def test_schnell_in_one_to_four_steps(schnell):
    """The few steps that schnell is made for come out right, the single one as well."""
    units = [flux_unit(index=steps, seed=steps, num_inference_steps=steps) for steps in (1, 2, 3, 4)]
    schnell.assert_all_same(units, seed=2, max_batch=3)


@settings(max_examples=settings.default.max_examples // 20, print_blob=True)
@given(
    units=any_flow_units(guidance_scale=st.sampled_from([0.0, 1.0, 3.5]), true_cfg_scale=st.sampled_from([1.0, 2.5])),
    seed=st.integers(0, 2**32),
    max_batch=st.integers(1, 4),
)
def test_any_company(dev, units, seed, max_batch):
    """Whatever units come in whatever order at whatever step, each image is diffusers' image of that unit."""
    units = [replace(unit, guided=unit.true_cfg_scale > 1) for unit in units]
    dev.assert_all_same(units, seed=seed, max_batch=max_batch)


@GUIDANCE
def test_invariant_bytes_do_not_depend_on_company(dev, true_cfg_scale):
    """Alone, in any order and seat, at a padded shape: not a bit differs."""
    units = units_of(
        SCHEDULERS[::3],
        seed=5,
        true_cfg_scale=true_cfg_scale,
        guided=true_cfg_scale > 1,
        reproducibility=Reproducibility.INVARIANT,
    )
    dev.assert_company_is_of_no_account(various(units), max_batch=4)


@pytest.mark.parametrize(
    ("studio", "strength"),
    [
        ("dev", 0.3),
        ("schnell", 0.55),
        ("schnell", 0.7),
        ("dev", 1.0),
        *(pytest.param("schnell", strength, marks=pytest.mark.long) for strength in (0.3, 1.0)),
        *(pytest.param("dev", strength, marks=pytest.mark.long) for strength in (0.55, 0.7)),
    ],
    indirect=["studio"],
)
def test_image_to_image(studio, strength):
    """From a picture of another size, under as much noise as diffusers gives it, beside text-to-image in one lane."""
    # FluxImg2ImgPipeline counts Heun's calls for steps, and asks for more than there are; SD 3's does not.
    schedulers = [row for row in SCHEDULERS if row.name != "flow_heun"]
    units = units_of(schedulers, seed=6, strength=strength, image="a.png", guided=False, num_inference_steps=5)
    pictures = [picture(unit.index, height=SIZE_PX + 8, width=SIZE_PX) for unit in units]
    plain = flux_unit(index=len(units), num_inference_steps=5)
    studio.assert_all_same([*units, plain], [*pictures, NO_INPUTS], seed=7, max_batch=4)


def test_prompts_too_long_for_an_encoder_are_told(dev):
    """What CLIP cannot read is read by T5, and the other way about nothing is lost that was not said."""
    long_for_clip = flux_unit(prompt="red " * 30)
    (image,) = dev.render([long_for_clip], seed=0, max_batch=1)
    assert [warning.split(" is ")[0] for warning in image.warnings] == ["prompt, as CLIP reads it,"]
    long_for_both = flux_unit(negative_prompt="a b " * MAX_SEQUENCE_LENGTH, true_cfg_scale=2.0)
    (image,) = dev.render([long_for_both], seed=0, max_batch=1)
    assert [warning.split(" is ")[0] for warning in image.warnings] == [
        "negative_prompt, as CLIP reads it,",
        "negative_prompt, as T5 reads it,",
    ]
    assert dev.render([flux_unit()], seed=0, max_batch=1)[0].warnings == ()


def test_clip_skip_is_ignored_with_a_word(dev):
    """There is nothing to skip: the image is the same, and the user hears of it."""
    plain, skipped = (dev.render([flux_unit(clip_skip=skip)], seed=0, max_batch=1)[0] for skip in (0, 9))
    assert (plain.pixels == skipped.pixels).all()
    assert "clip_skip is ignored" in skipped.warnings[0]


def test_sides_of_half_a_patch_are_refused(dev):
    """A size that leaves half a patch fails with what sizes there are, not with a shape error in a step."""
    with pytest.raises(RenderFailed, match=f"multiples of {SIZE_MULTIPLE_PX}"):
        dev.render([flux_unit(width=SIZE_PX + SIZE_MULTIPLE_PX // 2)], seed=0, max_batch=1)


def test_loaded_from_its_folder(dev, dev_folder):
    """The loader brings a Flux with all of its parts, and it renders the same."""
    row = tiny_row(dev_folder, family="flux", max_sequence_length=MAX_SEQUENCE_LENGTH)
    loaded = load_pipeline(row, models_dir=dev_folder, device=torch.device("cpu"))
    unit = flux_unit(true_cfg_scale=2.0)
    (pixels,) = (image.pixels for image in dev.render([unit], seed=0, max_batch=1))
    dev_pipeline, dev.ours = dev.ours, loaded
    try:
        (again,) = dev.render([unit], seed=0, max_batch=1)
    finally:
        dev.ours = dev_pipeline
    assert (again.pixels == pixels).all()


def test_transformer_that_takes_more_than_latents_is_refused(tmp_path):
    """A Flux for filling or for depth, which takes further channels, is refused in words when it is loaded."""
    folder = save_tiny_flux(tmp_path / "fill", guidance_embeds=True, in_channels=24)
    with pytest.raises(ModelBroken, match="takes 24 channels"):
        load_pipeline(tiny_row(folder, family="flux"), models_dir=folder, device=torch.device("cpu"))
