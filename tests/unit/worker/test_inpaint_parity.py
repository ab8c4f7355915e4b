"""Inpainting gives the images of diffusers' inpaint pipelines, alone, beside other runs, and after a failed step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import RenderFailed
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from parity import BROWNIAN_WARNING, SOME_SCHEDULERS, any_units, units_of
from picture_parity import PictureStudio, mask, picture
from tiny_models import SIZE_PX, save_tiny_sd15, save_tiny_sdxl, tiny_unit
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.runs import Runs

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

SCHEDULERS = schedulers_of("diffusion")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Set up a tiny SD 1.5, whose UNet knows nothing of masks."""
    return PictureStudio.load(save_tiny_sd15(tmp_path_factory.mktemp("sd15") / "tiny"), family="sd15")


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory):
    """Set up a tiny SD 1.5 whose UNet takes mask and masked picture as further channels."""
    folder = save_tiny_sd15(tmp_path_factory.mktemp("sd15") / "inpainting", in_channels=9)
    return PictureStudio.load(folder, family="sd15")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """Set up a tiny SDXL."""
    return PictureStudio.load(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"), family="sdxl")


def inpaint_units(schedulers, *, seed, others=True, **fields):
    """Return one unit per scheduler, with picture and mask; `others` are img2img and text-to-image."""
    strengths = (0.55, 1.0, 0.8, 0.7)  # of two steps or more, so that one is left
    units = [
        replace(unit, strength=strengths[number % 4])
        for number, unit in enumerate(units_of(schedulers, seed=seed, **fields))
    ]
    inputs = [Inputs(image=picture(number), mask=mask(number)) for number in range(len(units))]
    if others:
        inputs[3::5] = [NO_INPUTS for _ in inputs[3::5]]
        inputs[1::7] = [Inputs(image=each.image) for each in inputs[1::7]]
    return units, inputs


@pytest.mark.slow
@pytest.mark.long
def test_every_scheduler_in_mixed_company(studio):
    """Inpainting, img2img and text-to-image by all schedulers join one lane at random and come out as if alone."""
    units, inputs = inpaint_units(SCHEDULERS, seed=1, guidance_scale=4.0)
    images = studio.assert_all_same(units, inputs, seed=3, max_batch=6)
    assert max(rendered.timings.mean_batch for rendered in images) > 2


def test_alone_and_unguided(studio):
    """A lane of one seat, without guidance, gives the same."""
    units, inputs = inpaint_units(SOME_SCHEDULERS, seed=2, guidance_scale=0.0, others=False)
    for unit, brought in zip(units, inputs, strict=True):
        studio.assert_all_same([unit], [brought], seed=0, max_batch=1)


@pytest.mark.parametrize("guidance_scale", [0.0, 4.0], ids=["unguided", "guided"])
def test_a_unet_that_takes_the_mask(inpainter, guidance_scale):
    """UNets of nine channels are told mask and masked picture, and their latents are left alone."""
    units, inputs = inpaint_units(SOME_SCHEDULERS, seed=3, guidance_scale=guidance_scale, others=False)
    inpainter.assert_all_same(units, inputs, seed=4, max_batch=4)


def test_sdxl(sdxl):
    """SDXL inpaints as SD 1.5 does."""
    units, inputs = inpaint_units(SOME_SCHEDULERS, seed=4, guidance_scale=4.0)
    sdxl.assert_all_same(units, inputs, seed=5, max_batch=4)


@pytest.mark.parametrize("inputs", [NO_INPUTS, Inputs(image=picture(1))], ids=["nothing", "no mask"])
def test_a_unet_that_takes_the_mask_needs_one(inpainter, inputs):
    """Without a mask the unit fails, and the reason says what is missing."""
    with pytest.raises(RenderFailed, match="name image and mask_image"):
        inpainter.render([tiny_unit()], [inputs], seed=0, max_batch=1)


@pytest.mark.parametrize("name", ["unipc", "pndm", "sa_solver", "sa_solver_karras", "dpmpp_2m", "lms"])
def test_samplers_with_long_memories(studio, name):
    """Samplers that remember what they made, and not what the mask left of it, inpaint as well."""
    units = [tiny_unit(index=n, seed=n, scheduler=name, num_inference_steps=9 + n, strength=0.9) for n in range(3)]
    inputs = [Inputs(image=picture(number), mask=mask(number)) for number in range(len(units))]
    studio.assert_all_same(units, inputs, seed=1, max_batch=2)


def test_what_is_black_is_kept(studio):
    """The latents under a black mask are the picture's own in the end, those under a white one are new."""
    half = mask(0)
    half[:, : SIZE_PX // 2], half[:, SIZE_PX // 2 :] = 0, 255
    kept = Inputs(image=picture(1), mask=half)
    seen = []
    decode = studio.ours.decode
    studio.ours.decode = lambda latents: seen.append(latents) or decode(latents)
    try:
        unit = tiny_unit(strength=0.8, num_inference_steps=5, scheduler="dpmpp_2m")
        studio.render([unit], [kept], seed=0, max_batch=1)
    finally:
        studio.ours.decode = decode
    generator = torch.Generator().manual_seed(unit.seed)
    image = torch.from_numpy(kept.image / 127.5 - 1).float().permute(2, 0, 1)[None]
    own = studio.ours.encode_image(image, generator)
    difference = (seen[0] - own).abs().amax(dim=(0, 1, 2))
    assert float(difference[: SIZE_PX // 4].max()) < 1e-5
    assert float(difference[SIZE_PX // 4 :].min()) > 1e-3


def test_a_step_that_failed_is_made_again(studio, monkeypatch):
    """Whatever of a step was done before it failed, its repetition gives the same image."""
    units, inputs = inpaint_units(SOME_SCHEDULERS, seed=6, guidance_scale=4.0, others=False)
    advance = Runs.advance

    def advance_twice(*arguments):
        seats = arguments[3]
        advance(*arguments)
        for seat in seats:
            seat.call -= 1  # as if the last of it had failed
        advance(*arguments)

    monkeypatch.setattr(Runs, "advance", advance_twice)
    studio.assert_all_same(units, inputs, seed=0, max_batch=3)


@given(units=any_units(SCHEDULERS, max_size=3), data=st.data())
@settings(max_examples=settings.default.max_examples // 25, print_blob=True)
def test_whatever_is_asked_for(studio, units, data):
    """Random units, pictures, masks and strengths come out as diffusers renders each alone."""
    inputs = []
    for number, unit in enumerate(units):
        size = data.draw(st.sampled_from([(SIZE_PX, SIZE_PX), (23, 31)]))
        inputs.append(
            Inputs(image=picture(number, *size), mask=mask(number, *data.draw(st.sampled_from([size, (9, 7)]))))
        )
        # diffusers' inpainting cannot skip CLIP layers with the transformers of today.
        units[number] = replace(unit, strength=data.draw(st.floats(0.5, 1)), clip_skip=0)
    studio.assert_all_same(units, inputs, seed=data.draw(st.integers(0, 99)), max_batch=3)


def test_invariant(studio):
    """Bit for bit the same, whoever sits beside it."""
    names = SOME_SCHEDULERS[:4]
    units, inputs = inpaint_units(names, seed=4, guidance_scale=4.0, reproducibility=Reproducibility.INVARIANT)
    studio.assert_company_is_of_no_account(units, inputs, max_batch=3)
