"""Flux inpaints, and makes second passes, as diffusers' pipelines for it do."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate, pixel_shuffle

from farm.jobs import Hires
from farm.schedulers import find_scheduler
from flow_parity import FlowStudio
from parity import MAX_DIFFERENCE, units_of
from picture_parity import mask, picture
from tiny_flow_models import save_tiny_flux
from tiny_models import SIZE_PX, tiny_unit
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.pipelines.flux import FluxPipeline

SCHEDULERS = [find_scheduler("flow_euler")] * 5


class InpaintStudio(FlowStudio):
    """A studio that renders units with a mask by the inpaint pipeline of the same parts."""

    def __init__(self, family, reference, image_to_image, inpaint):
        super().__init__(family, reference, image_to_image)
        self._inpaint = inpaint(**reference.components)
        self._inpaint.set_progress_bar_config(disable=True)

    def pipeline_for(self, unit, inputs):
        """Return the inpaint pipeline where there is a mask."""
        return super().pipeline_for(unit, inputs) if inputs.mask is None else self._inpaint

    def arguments_for(self, unit, inputs):
        """Add the mask."""
        arguments = super().arguments_for(unit, inputs)
        return arguments if inputs.mask is None else {**arguments, "mask_image": Image.fromarray(inputs.mask)}


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """Set up a tiny Flux."""
    folder = save_tiny_flux(tmp_path_factory.mktemp("models") / "flux", guidance_embeds=True)
    reference = diffusers.FluxPipeline.from_pretrained(folder)
    return InpaintStudio(FluxPipeline, reference, diffusers.FluxImg2ImgPipeline, diffusers.FluxInpaintPipeline)


def test_inpainting_in_mixed_company(flux):
    """Runs with masks, with pictures alone and from noise join one lane at random and come out as if alone."""
    units = [
        replace(unit, strength=(0.5, 0.8, 1.0)[number % 3])
        for number, unit in enumerate(units_of(SCHEDULERS, seed=1, guidance_scale=3.0, guided=False))
    ]
    inputs = [Inputs(image=picture(number), mask=mask(number)) for number in range(len(units))]
    inputs[3], inputs[4] = NO_INPUTS, Inputs(image=picture(4))
    flux.assert_all_same(units, inputs, seed=2, max_batch=3)


def test_a_second_pass_of_flux(flux):
    """Flux's latents are enlarged as they are, before they become patches."""
    unit = tiny_unit(scheduler="flow_euler", guided=False, guidance_scale=3.0, num_inference_steps=4)
    large = replace(unit, width=SIZE_PX * 2, height=SIZE_PX * 2, strength=0.6)
    (rendered,) = flux.render(
        [replace(unit, hires=Hires(large.width, large.height, 0.6, 4, "latent"))], seed=0, max_batch=1
    )
    small = SIZE_PX // 2 // 2  # patches a side
    with torch.no_grad():
        packed = called(flux, unit, NO_INPUTS, output_type="latent")
        first = packed.unflatten(1, (small, small)).permute(0, 3, 1, 2)
        enlarged = interpolate(pixel_shuffle(first, 2), scale_factor=2, mode="bilinear")
        (reference,) = called(flux, large, Inputs(image=picture(0)), image=enlarged, output_type="np")
    assert float((flux.by_us(rendered) - torch.from_numpy(reference)).abs().max()) <= MAX_DIFFERENCE


def called(studio, unit, inputs, **changes):
    """Return what diffusers makes of a unit when some of its arguments are changed."""
    generator = torch.Generator().manual_seed(unit.seed)
    pipeline = studio.pipeline_for(unit, inputs)
    pipeline.scheduler = studio.scheduler_for(unit, generator)
    return pipeline(**{**studio.arguments_for(unit, inputs), "generator": generator, **changes}).images
