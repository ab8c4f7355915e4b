"""SDXL's images are those of StableDiffusionXLPipeline: every scheduler, guided or not, alone and in mixed company."""

from __future__ import annotations

import copy
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import ModelBroken, RenderFailed
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from parity import (
    BROWNIAN_WARNING,
    MAX_DIFFERENCE,
    SOME_SCHEDULERS,
    Studio,
    any_units,
    units_of,
    with_and_without_guidance,
)
from tiny_models import SIZE_PX, save_tiny_sdxl, tiny_row, tiny_unit
from worker.pipelines.base import NO_INPUTS
from worker.pipelines.latent import Loaded
from worker.pipelines.loading import load_pipeline
from worker.pipelines.sdxl import SdxlPipeline

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

SCHEDULERS = schedulers_of("diffusion")
# Each way to sample, as it is spaced by itself; test_img2img_parity.py takes all spacings, some of them from noise.
SAMPLERS = [row for row in SCHEDULERS if row.a1111_schedule == "Automatic"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Set up a tiny SDXL."""
    return Studio.load(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"), family="sdxl")


@with_and_without_guidance(SCHEDULERS, guided=SOME_SCHEDULERS)
def test_alone(studio, guidance_scale, schedulers):
    """Each scheduler's image, rendered alone, is diffusers'."""
    for unit in units_of(schedulers, seed=1, guidance_scale=guidance_scale):
        studio.assert_all_same([unit], seed=0, max_batch=1)


@with_and_without_guidance(SCHEDULERS, guided=SAMPLERS)
def test_in_mixed_company(studio, guidance_scale, schedulers):
    """Units of many schedulers in one lane, joining at random steps, come out as diffusers renders each alone."""
    units = units_of(schedulers, seed=1, guidance_scale=guidance_scale)
    images = studio.assert_all_same(units, seed=3, max_batch=6)
    assert fmean(rendered.timings.mean_batch for rendered in images) > 2


def test_sizes_and_guidance_side_by_side(studio):
    """Each unit is told its own size, whatever the sizes of those who run in lanes of their own at the same time."""
    sizes = [(SIZE_PX, SIZE_PX), (SIZE_PX * 2, SIZE_PX), (SIZE_PX, SIZE_PX * 2), (SIZE_PX, SIZE_PX), (SIZE_PX * 2, 8)]
    units = [
        tiny_unit(index=index, seed=index, width=width, height=height, guidance_scale=scale)
        for scale in (0.0, 6.0)
        for index, (width, height) in enumerate(sizes)
    ]
    studio.assert_all_same(units, seed=4, max_batch=3)


@settings(max_examples=settings.default.max_examples // 20, print_blob=True)
@given(units=any_units(SCHEDULERS), seed=st.integers(0, 2**32), max_batch=st.integers(1, 4))
def test_any_company(studio, units, seed, max_batch):
    """Whatever units come in whatever order at whatever step, each image is diffusers' image of that unit."""
    studio.assert_all_same(units, seed=seed, max_batch=max_batch)


def test_invariant_bytes_do_not_depend_on_company(studio):
    """Alone, in any order and seat, at a padded shape: not a bit differs."""
    units = units_of(SCHEDULERS[::11], seed=5, guidance_scale=4.0, reproducibility=Reproducibility.INVARIANT)
    studio.assert_company_is_of_no_account(units, max_batch=4)


def test_long_prompts_do_not_change_their_neighbours(studio):
    """Prompts of one and of many chunks share a lane but no forward, and those of one are still diffusers'."""
    units = units_of(SCHEDULERS[:12], seed=6, guidance_scale=4.0)
    long = tiny_unit(index=12, prompt="a house, " * 40, num_inference_steps=4)
    assert studio.ours.encode(long, NO_INPUTS).form != studio.ours.encode(units[0], NO_INPUTS).form
    *images, other = studio.render([*units, long], seed=7, max_batch=4)
    for unit, rendered in zip(units, images, strict=True):
        studio.assert_same(unit, rendered)
    (alone,) = studio.render([long], seed=0, max_batch=1)
    assert (studio.by_us(other) - studio.by_us(alone)).abs().max() <= MAX_DIFFERENCE


def test_no_negative_prompt_is_the_empty_text_where_the_model_says_so(studio, tmp_path):
    """Without force_zeros_for_empty_prompt the empty text is encoded, which makes another image than zeros do."""
    other = Studio.load(save_tiny_sdxl(tmp_path / "tiny", force_zeros=False), family="sdxl")
    units = units_of(SCHEDULERS[:3], seed=8, guidance_scale=4.0, negative_prompt="")
    with_text = other.assert_all_same(units, seed=0, max_batch=3)
    with_zeros = studio.assert_all_same(units, seed=0, max_batch=3)
    for one, another in zip(with_text, with_zeros, strict=True):
        assert (other.by_us(one) - studio.by_us(another)).abs().max() > 10 * MAX_DIFFERENCE


def test_guidance_as_an_input(tmp_path):
    """A UNet that LCM distilled takes each unit's own guidance scale as an input, and no negative prompt."""
    studio = Studio.load(save_tiny_sdxl(tmp_path / "tiny", time_cond_proj_dim=8), family="sdxl")
    units = [
        tiny_unit(index=index, seed=index, guidance_scale=scale, guided=False, scheduler="lcm")
        for index, scale in enumerate([1.0, 4.0, 7.5, 8.0])
    ]
    studio.assert_all_same(units, seed=1, max_batch=3)
    with pytest.raises(RenderFailed, match="takes guidance_scale as an input"):
        studio.ours.encode(tiny_unit(guidance_scale=4.0), NO_INPUTS)


def test_turbo_is_sampled_as_its_row_says(tmp_path):
    """What a row of the catalog changes in the scheduler's config holds: turbo's one step is the trailing one."""
    folder = save_tiny_sdxl(tmp_path / "tiny")
    studio = Studio.load(folder, family="sdxl", scheduler_config={"timestep_spacing": "trailing"})
    units = [
        tiny_unit(index=steps, num_inference_steps=steps, scheduler="euler_ancestral", guidance_scale=0.0)
        for steps in (1, 2, 4)
    ]
    studio.assert_all_same(units, seed=2, max_batch=3)


def test_unet_that_is_told_no_sizes_is_refused(tmp_path):
    """A UNet that takes other additions than SDXL's base is refused in words, not with a shape error in a step."""
    folder = save_tiny_sdxl(tmp_path / "tiny", projection_class_embeddings_input_dim=5 * 4 + 8)
    with pytest.raises(ModelBroken, match="told 5 numbers"):
        load_pipeline(tiny_row(folder, family="sdxl"), models_dir=folder, device=torch.device("cpu"))


def test_unet_and_vae_of_two_types(studio):
    """With the UNet in fp16 and the VAE in bf16, as on cards, the picture comes out as in float32 but for rounding."""
    half = copy.deepcopy(studio.reference).to(torch.float16)
    half.vae.to(torch.bfloat16)
    ours = SdxlPipeline(
        Loaded(
            name="tiny",
            parts=half.components,
            scheduler_config=studio.config,
            model_hash="0" * 64,
            device=torch.device("cpu"),
            device_name="cpu",
            dtype=torch.float16,
        )
    )
    units = [tiny_unit(index=index, seed=index, guidance_scale=4.0) for index in range(2)]
    in_half = Studio(ours, half)
    for unit, rendered in zip(units, in_half.render(units, seed=0, max_batch=2), strict=True):
        assert rendered.dtype == "float16"
        assert (in_half.by_us(rendered) - studio.by_diffusers(unit)).abs().max() < 0.03
