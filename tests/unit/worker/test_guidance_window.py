"""A run that is guided for a part of it: diffusers' images, fewer rows, and bytes that company does not change."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acceleration_parity import AcceleratedFlowStudio, AcceleratedStudio, counted, render_together
from farm.jobs import Acceleration
from farm.requests import Reproducibility
from farm.schedulers import find_scheduler, schedulers_of
from flow_parity import FlowStudio
from parity import BROWNIAN_WARNING, MAX_DIFFERENCE, units_of
from tiny_flow_models import save_tiny_flux, save_tiny_sd3
from tiny_models import save_tiny_sdxl, tiny_unit
from worker.pipelines.flux import FluxPipeline
from worker.pipelines.sd3 import Sd3Pipeline

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

SCHEDULERS = [find_scheduler(name) for name in ("euler", "euler_ancestral", "dpmpp_2m", "heun", "pndm", "ddim")]
GUIDANCE = 30.0
"""Random models hardly listen: at a usual scale a cut-off would show little."""
ENDS = (0.2, 0.5, 0.6, 0.7, 1.0)


@pytest.fixture(scope="module")
def sd15(tiny_folder):
    """Set up a tiny SD 1.5."""
    return AcceleratedStudio.load(tiny_folder)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """Set up a tiny SDXL."""
    return AcceleratedStudio.load(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"), family="sdxl")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """Set up a tiny SD 3."""
    folder = save_tiny_sd3(tmp_path_factory.mktemp("sd3") / "tiny")
    reference = diffusers.StableDiffusion3Pipeline.from_pretrained(folder)
    return AcceleratedFlowStudio(Sd3Pipeline, reference, diffusers.StableDiffusion3Img2ImgPipeline)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """Set up a tiny Flux."""
    folder = save_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny", guidance_embeds=True)
    return FlowStudio(FluxPipeline, diffusers.FluxPipeline.from_pretrained(folder), diffusers.FluxImg2ImgPipeline)


def units_with_ends(schedulers, **fields):
    """Return units of five steps, whose guidance ends at another share each."""
    units = units_of(schedulers, seed=4, guidance_scale=GUIDANCE, num_inference_steps=5, **fields)
    return [
        replace(unit, acceleration=Acceleration(guidance_end=ENDS[index % len(ENDS)]))
        for index, unit in enumerate(units)
    ]


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_a_cut_off_is_that_of_diffusers(request, model):
    """Alone and in mixed company, an image is what diffusers' own callback makes of the same cut-off."""
    studio = request.getfixturevalue(model)
    units = units_with_ends(SCHEDULERS)
    for unit in units[:3]:
        studio.assert_all_same([unit], seed=0, max_batch=1)
    studio.assert_all_same(units, seed=3, max_batch=4)


def test_a_cut_off_of_a_flow_model(sd3):
    """For SD 3 as well, whose pooled texts lose their negative half too."""
    sd3.assert_all_same(units_with_ends(schedulers_of("flow")), seed=3, max_batch=4)


def test_the_cut_off_shows(sd15):
    """With and without it images differ by far more than is tolerated, or the others would prove nothing."""
    unit = tiny_unit(num_inference_steps=5, guidance_scale=GUIDANCE)
    cut = replace(unit, acceleration=Acceleration(guidance_end=0.6))
    assert (sd15.by_diffusers(cut) - sd15.by_diffusers(unit)).abs().max() > 20 * MAX_DIFFERENCE


def test_guidance_that_begins_later(sd15):
    """Before guidance_start a run is the unguided one; diffusers is given the negative texts by a callback then."""
    scale, pipeline = GUIDANCE, sd15.reference
    unit = tiny_unit(
        num_inference_steps=5, guidance_scale=scale, negative_prompt="blurry", acceleration=Acceleration(0.4, 0.8)
    )
    texts = pipeline.encode_prompt(unit.prompt, "cpu", 1, True, unit.negative_prompt)  # noqa: FBT003  as it is called

    def begin(pipeline, step, _timestep, tensors):
        if step + 1 == 2:
            pipeline._guidance_scale = scale
            return {"prompt_embeds": torch.cat([texts[1], texts[0]])}
        if step + 1 == 4:
            pipeline._guidance_scale = 0.0
            return {"prompt_embeds": texts[0]}
        return tensors

    pipeline.scheduler = sd15.scheduler_for(unit, torch.Generator())
    expected = pipeline(
        prompt=unit.prompt,
        guidance_scale=1.0,
        num_inference_steps=5,
        height=unit.height,
        width=unit.width,
        generator=torch.Generator("cpu").manual_seed(unit.seed),
        output_type="np",
        callback_on_step_end=begin,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    ).images[0]
    (rendered,) = sd15.render([unit], seed=0, max_batch=1)
    assert (sd15.by_us(rendered) - torch.from_numpy(expected)).abs().max() <= MAX_DIFFERENCE


def test_rows_are_saved(sd15):
    """In one forward of a lane, a seat whose guidance has ended takes one row where it took two."""
    units = [tiny_unit(index=index, num_inference_steps=4) for index in range(2)]
    with counted(sd15.ours._unet) as rows:
        render_together(sd15.ours, units)
    assert rows == [4, 4, 4, 4]
    with counted(sd15.ours._unet) as fewer:
        render_together(sd15.ours, [units[0], replace(units[1], acceleration=Acceleration(guidance_end=0.5))])
    assert fewer == [4, 4, 3, 3], "and nobody pays for it with a forward"


def test_rows_are_saved_at_a_fixed_shape(sd15):
    """Under `invariant`, those whose guidance has ended share a forward of half as many rows."""
    unit = tiny_unit(
        num_inference_steps=4,
        acceleration=Acceleration(guidance_end=0.5),
        reproducibility=Reproducibility.INVARIANT,
    )
    with counted(sd15.ours._unet) as rows:
        sd15.render([unit], seed=9, max_batch=3)
    assert rows == [6, 6, 3, 3]


@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd3", "flux"])
def test_invariant_bytes_do_not_depend_on_company(request, model):
    """Among others whose guidance ends elsewhere, in any order and seat: not a bit differs."""
    studio = request.getfixturevalue(model)
    schedulers = SCHEDULERS[::2] if model in {"sd15", "sdxl"} else schedulers_of("flow")[:4]
    extra = {"true_cfg_scale": 3.0, "guided": True} if model == "flux" else {}
    units = units_with_ends(schedulers, reproducibility=Reproducibility.INVARIANT, **extra)
    studio.assert_company_is_of_no_account(units, max_batch=3)


def test_the_recipe_is_told(sd15):
    """What a cut-off changes stands among the approximations of its image, and of no other."""
    plain, cut = tiny_unit(index=0), tiny_unit(index=1, acceleration=Acceleration(guidance_end=0.5))
    images = sd15.render([plain, cut], seed=1, max_batch=2)
    assert [image.approximations for image in images] == [(), ("guided from 0 to 0.5 of the run",)]


@given(calls=st.integers(1, 1000), start=st.integers(0, 100), end=st.integers(0, 100))
def test_the_window(calls, start, end):
    """A run is guided in one stretch, all of it by default, of no more calls than the window's share of them."""
    window = Acceleration(guidance_start=start / 100, guidance_end=end / 100)
    guided = [call for call in range(calls) if window.is_guiding(call, calls)]
    assert guided == list(range(guided[0], guided[-1] + 1)) if guided else True
    assert len(guided) <= max(0, Fraction(end - start, 100) * calls) + 1e-9
    assert all(Acceleration().is_guiding(call, calls) for call in range(calls))
