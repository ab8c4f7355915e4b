"""Hires fix gives what diffusers gives in two calls: text-to-image, then img2img over its enlarged result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from farm.jobs import Hires
from farm.requests import Reproducibility
from farm.schedulers import find_scheduler
from parity import BROWNIAN_WARNING, MAX_DIFFERENCE, units_of
from picture_parity import PictureStudio, mask, picture
from tiny_models import SIZE_PX, save_tiny_sd15, save_tiny_sdxl, tiny_unit
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.seat import UnitCancelled, passes_of

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

SCHEDULERS = [
    find_scheduler(name)
    for name in ("euler", "euler_ancestral", "dpmpp_2m_karras", "dpmpp_sde", "ddim", "unipc", "heun", "pndm", "lcm")
]
LARGE = (SIZE_PX * 2, SIZE_PX + 8)


class HiresStudio(PictureStudio):
    """A studio that makes the reference of a unit with two passes by two calls of diffusers, fresh seed in each."""

    @torch.no_grad()
    def by_diffusers(self, unit, inputs=NO_INPUTS):
        """Render `unit`; float [h, w, 3]."""
        first, following = passes_of(unit)
        if following is None:
            return super().by_diffusers(unit, inputs)
        second, upscaler = following
        pipeline = self.pipeline_for(first, inputs)
        latents = self._call(pipeline, first, inputs, output_type="latent")
        if upscaler == "latent":
            image = interpolate(latents, size=(second.height // 2, second.width // 2), mode="bilinear")
        else:
            pixels = self.reference.image_processor.postprocess(
                self.reference.vae.decode(latents / self.reference.vae.config.scaling_factor).sample, output_type="pil"
            )
            image = pixels[0].resize((second.width, second.height), Image.Resampling.LANCZOS)
        stand_in = Inputs(image=picture(0))
        pipeline = self.pipeline_for(second, stand_in)
        arguments = {**self.arguments_for(second, stand_in), "image": image}
        return torch.from_numpy(self._call(pipeline, second, None, arguments=arguments, output_type="np")[0])

    def assert_same(self, unit, rendered, inputs=NO_INPUTS):
        """Compare one image of ours with diffusers'."""
        reference = self.by_diffusers(unit, inputs)
        assert rendered.pixels.shape == reference.shape
        difference = float((self.by_us(rendered) - reference).abs().max())
        assert difference <= MAX_DIFFERENCE, f"{difference} of {unit}"

    def _call(self, pipeline, unit, inputs, *, output_type, arguments=None):
        generator = torch.Generator("cpu").manual_seed(unit.seed)
        pipeline.scheduler = self.scheduler_for(unit, generator)
        arguments = arguments or self.arguments_for(unit, inputs)
        return pipeline(**arguments, generator=generator, output_type=output_type).images


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Set up a tiny SD 1.5."""
    return HiresStudio.load(save_tiny_sd15(tmp_path_factory.mktemp("sd15") / "tiny"), family="sd15")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """Set up a tiny SDXL."""
    return HiresStudio.load(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"), family="sdxl")


def hires_units(**fields):
    """Return one unit per scheduler with both upscalers, every fourth without a second pass."""
    units = units_of(SCHEDULERS, seed=7, **{"guidance_scale": 4.0, "num_inference_steps": 4, **fields})
    for number, unit in enumerate(units):
        second = Hires(*LARGE, (0.5, 0.75, 1.0)[number % 3], 3 + number % 2, ("latent", "lanczos")[number % 2])
        units[number] = unit if number % 4 == 3 else replace(unit, hires=second)
    return units


def test_alone(studio):
    """One unit after the other, each in a lane of its own."""
    for unit in hires_units():
        studio.assert_all_same([unit], seed=0, max_batch=1)


def test_in_mixed_company(studio):
    """Second passes join lanes where others run, some of them first passes of that size."""
    units = hires_units()
    units += [tiny_unit(index=len(units), width=LARGE[0], height=LARGE[1], guidance_scale=4.0, num_inference_steps=9)]
    images = studio.assert_all_same(units, seed=3, max_batch=4)
    assert images[0].pixels.shape == (LARGE[1], LARGE[0], 3)
    assert images[0].timings.steps == 4 + 1
    assert max(rendered.timings.mean_batch for rendered in images) > 2


def test_over_a_picture_and_over_an_inpainted_one(studio):
    """The first pass may be img2img or inpainting; the second goes over all of its picture."""
    units = hires_units(strength=0.8)[:3]
    inputs = [Inputs(image=picture(1)), Inputs(image=picture(2), mask=mask(2)), NO_INPUTS]
    studio.assert_all_same(units, inputs, seed=1, max_batch=3)


def test_sdxl(sdxl):
    """SDXL is told the larger size in the second pass."""
    sdxl.assert_all_same(hires_units(), seed=2, max_batch=4)


def test_invariant(studio):
    """Bit for bit the same, whoever sits beside it in either pass."""
    units = hires_units(reproducibility=Reproducibility.INVARIANT)[:4]
    studio.assert_company_is_of_no_account(units, max_batch=3)


def test_cancelled_between_the_passes(studio):
    """What is cancelled while it waits for its second pass leaves, and its neighbour goes on."""
    hires = Hires(*LARGE, 0.5, 4, "latent")
    units = [tiny_unit(index=index, seed=index, hires=hires, job=f"job_{index}") for index in range(2)]
    engine = Engine(lambda _: studio.ours, max_batch=2)
    futures = [engine.submit(unit) for unit in units]
    with torch.inference_mode():
        while all(seat.next_pass for lane in engine._roster for seat in (*lane.waiting, *lane.seated)):
            engine._pass(engine._next_lane())
        assert engine.cancel("job_0") == 1
        while not futures[1].done():
            engine._pass(engine._next_lane())
    with pytest.raises(UnitCancelled):
        futures[0].result(0)
    assert futures[1].result(0).pixels.shape == (LARGE[1], LARGE[0], 3)
