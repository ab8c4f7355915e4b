"""The engine's images of Flux.1 are diffusers' images: every flow scheduler, guided or not, alone and in company."""

from __future__ import annotations

import random

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from farm.errors import RenderFailed
from farm.jobs import Reproducibility
from farm.schedulers import schedulers_of
from flow_parity import MAX_SEQUENCE_LENGTH, FlowStudio, picture
from tiny_flow_models import SIZE_MULTIPLE_PX, save_tiny_flux
from tiny_models import SIZE_PX, tiny_unit
from worker.pipelines.flux import FluxPipeline

SCHEDULERS = [row.name for row in schedulers_of("flow")]
PROMPTS = ["a red circle", "blue", "two green squares on the left of a house", "(x:1.2) y, z", "a " * 60]


def studio_of(folder):
    """Return the studio of a model saved in `folder`."""
    reference = diffusers.FluxPipeline.from_pretrained(folder)
    return FlowStudio(FluxPipeline, reference, diffusers.FluxImg2ImgPipeline)


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """Set up a Flux that takes the guidance scale as an input and shifts its schedule with the size."""
    return studio_of(save_tiny_flux(tmp_path_factory.mktemp("models") / "dev", guidance_embeds=True))


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    """Set up a Flux without guidance whose schedule is the same at every size."""
    return studio_of(save_tiny_flux(tmp_path_factory.mktemp("models") / "schnell", guidance_embeds=False, seed=1))


@pytest.fixture(params=["dev", "schnell"])
def studio(request):
    """Return each of both models."""
    return request.getfixturevalue(request.param)


def flux_unit(**fields):
    """Return a unit that is guided by a negative prompt where it has a `true_cfg_scale` above 1."""
    guided = fields.get("true_cfg_scale", 1.0) > 1
    return tiny_unit(**{"scheduler": "flow_euler", "guidance_scale": 3.5, "guided": guided, **fields})


def units_of_all_schedulers(true_cfg_scale, seed):
    """Return one unit per scheduler, each with prompts, seed, steps and guidance of its own."""
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    return [
        flux_unit(
            index=index,
            scheduler=scheduler,
            prompt=chance.choice(PROMPTS),
            negative_prompt=chance.choice(["", *PROMPTS]),
            seed=chance.randrange(2**53),
            num_inference_steps=chance.randint(3, 6),
            guidance_scale=1 + 4 * chance.random(),
            true_cfg_scale=true_cfg_scale and true_cfg_scale + chance.random(),
        )
        for index, scheduler in enumerate(SCHEDULERS)
    ]


@pytest.mark.parametrize("true_cfg_scale", [0.0, 3.0], ids=["unguided", "guided"])
def test_alone_and_in_mixed_company(studio, true_cfg_scale):
    """Each scheduler's image is diffusers', rendered alone and among all others that join at random steps."""
    units = units_of_all_schedulers(true_cfg_scale, seed=1)
    for unit in units:
        studio.assert_all_same([unit], seed=0, max_batch=1)
    images = studio.assert_all_same(units, seed=3, max_batch=5)
    assert max(rendered.timings.mean_batch for rendered in images) > 3


def test_all_that_steers_shows(dev):
    """Prompt, negative prompt and both guidance scales change the image by far more than the tests tolerate."""
    unit = flux_unit(true_cfg_scale=3.0)
    image = dev.by_diffusers(unit)
    for change in (
        {"prompt": "a red circlf"},
        {"negative_prompt": "x"},
        {"guidance_scale": 3.4},
        {"true_cfg_scale": 3.2},
    ):
        other = dev.by_diffusers(flux_unit(**{"true_cfg_scale": 3.0, **change}))
        assert float((image - other).abs().max()) > 1e-3, change
