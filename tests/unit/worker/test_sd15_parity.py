"""Images of SD 1.x and 2.x are those of StableDiffusionPipeline: every sampler, guided or not, alone and in company."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import RenderFailed
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from parity import BROWNIAN_WARNING, SOME_SCHEDULERS, Studio, any_units, units_of, with_and_without_guidance
from tiny_models import SIZE_PX, save_tiny_sd15, save_tiny_sd21, tiny_unit
from worker.pipelines.base import NO_INPUTS

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

# How a sampler's steps are spaced is its table's affair (test_sampling.py); test_img2img_parity.py takes all spacings.
SCHEDULERS = [row for row in schedulers_of("diffusion") if row.a1111_schedule == "Automatic"]
MIXES = with_and_without_guidance(SCHEDULERS, guided=SCHEDULERS)


@pytest.fixture(scope="module")
def studio(tiny_folder):
    """Set up a tiny SD 1.5, which predicts noise."""
    return Studio.load(tiny_folder)


@pytest.fixture(scope="module")
def studio21(tmp_path_factory):
    """Set up a tiny SD 2.1, which predicts velocity."""
    return Studio.load(save_tiny_sd21(tmp_path_factory.mktemp("sd21") / "tiny"))


@with_and_without_guidance(SCHEDULERS, guided=SOME_SCHEDULERS)
def test_alone(studio, guidance_scale, schedulers):
    """Each sampler's image, rendered alone, is diffusers'."""
    for unit in units_of(schedulers, seed=1, guidance_scale=guidance_scale):
        studio.assert_all_same([unit], seed=0, max_batch=1)


@MIXES
def test_in_mixed_company(studio, guidance_scale, schedulers):
    """Units of many samplers in one lane, joining at random steps, come out as diffusers renders each alone."""
    units = units_of(schedulers, seed=1, guidance_scale=guidance_scale)
    images = studio.assert_all_same(units, seed=3, max_batch=5)
    assert fmean(rendered.timings.mean_batch for rendered in images) > 2


def test_sizes_and_guidance_side_by_side(studio):
    """Units of other sizes, guided and not, run in lanes of their own at the same time and come out right."""
    units = [
        tiny_unit(index=index, width=width, height=height, guidance_scale=scale, seed=index, scheduler=scheduler)
        for index, (width, height, scale, scheduler) in enumerate(
            [
                (SIZE_PX, SIZE_PX, 1.0, "euler"),
                (SIZE_PX * 2, SIZE_PX, 7.5, "dpmpp_2m"),
                (SIZE_PX, SIZE_PX * 2, 7.5, "ddim"),
                (SIZE_PX, SIZE_PX, 3.0, "euler_ancestral"),
                (SIZE_PX * 2, SIZE_PX, 7.5, "heun"),
            ]
        )
    ]
    studio.assert_all_same(units, seed=4, max_batch=3)


@settings(max_examples=settings.default.max_examples // 20, print_blob=True)
@given(units=any_units(SCHEDULERS), seed=st.integers(0, 2**32), max_batch=st.integers(1, 4))
def test_any_company(studio, units, seed, max_batch):
    """Whatever units come in whatever order at whatever step, each image is diffusers' image of that unit."""
    studio.assert_all_same(units, seed=seed, max_batch=max_batch)


@MIXES
def test_sd21_in_mixed_company(studio21, guidance_scale, schedulers):
    """A model that predicts velocity, hides its padding and has an OpenCLIP encoder comes out as diffusers has it."""
    studio21.assert_all_same(units_of(schedulers, seed=5, guidance_scale=guidance_scale), seed=6, max_batch=5)


def test_sd21_invariant_bytes_do_not_depend_on_company(studio21):
    """Alone, in any order and seat, at a padded shape: not a bit differs. For SD 1.5 test_engine.py says so."""
    units = units_of(SCHEDULERS[::4], seed=7, guidance_scale=4.0, reproducibility=Reproducibility.INVARIANT)
    studio21.assert_company_is_of_no_account(units, max_batch=4)


def test_velocity_of_an_sd15(tmp_path):
    """Fine-tunes of SD 1.5 that predict velocity are sampled as what they are."""
    studio = Studio.load(save_tiny_sd15(tmp_path / "v", prediction_type="v_prediction", seed=3))
    studio.assert_all_same(units_of(SCHEDULERS[::3], seed=8, guidance_scale=4.0), seed=5, max_batch=4)


def test_guidance_as_an_input(tmp_path):
    """A UNet that LCM distilled takes each unit's own guidance scale as an input, and no negative prompt."""
    studio = Studio.load(save_tiny_sd15(tmp_path / "lcm", time_cond_proj_dim=8))
    units = [
        tiny_unit(index=index, seed=index, guidance_scale=scale, guided=False, scheduler="lcm")
        for index, scale in enumerate([1.0, 4.0, 7.5, 8.0])
    ]
    studio.assert_all_same(units, seed=1, max_batch=3)
    with pytest.raises(RenderFailed, match="takes guidance_scale as an input"):
        studio.ours.encode(tiny_unit(guidance_scale=4.0), NO_INPUTS)
