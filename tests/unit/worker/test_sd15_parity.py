"""The engine's images are diffusers' images: every scheduler, guided or not, alone and in mixed company."""

from __future__ import annotations

import random

import diffusers
import pytest
import torch

from farm.schedulers import find_scheduler, schedulers_of
from tiny_models import SIZE_PX, save_tiny_sd15, tiny_row, tiny_unit
from worker.engine import Engine
from worker.pipelines.loading import load_pipeline
from worker.pipelines.pixels import to_pixels

# diffusers' DPM++ SDE asks its Brownian tree for a hair more than there is
pytestmark = pytest.mark.filterwarnings("ignore:Should have ta>=t0:UserWarning")

MAX_DIFFERENCE = 1e-5  # of pixels from 0 to 1; 7e-7 is what was seen
PROMPTS = ["a red circle", "blue", "", "two green squares on the left of a house", "x y z"]


class Studio:
    """One model, rendered by diffusers' own pipeline and by our engine."""

    def __init__(self, folder):
        self.reference = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.reference.set_progress_bar_config(disable=True)
        self.config = self.reference.scheduler.config
        self.ours = load_pipeline(tiny_row(folder), models_dir=folder, device=torch.device("cpu"))
        self.images = {}
        self.references = {}
        self.ours.decode = self._decode

    def _decode(self, latents):
        """Decode, and keep the image before it is rounded; its pixels find it again."""
        image = self.ours.coder.decode_image(latents)
        pixels = to_pixels(image)
        self.images[pixels.numpy().tobytes()] = image.permute(1, 2, 0)
        return pixels

    def by_diffusers(self, unit):
        """Render `unit` with StableDiffusionPipeline, once; float [h, w, 3]."""
        if unit not in self.references:
            self.references[unit] = self._render_by_diffusers(unit)
        return self.references[unit]

    def _render_by_diffusers(self, unit):
        row = find_scheduler(unit.scheduler)
        config = {**self.config, **row.config, "noise_sampler_seed": unit.seed}
        self.reference.scheduler = getattr(diffusers, row.diffusers_class).from_config(config)
        images = self.reference(
            unit.prompt,
            negative_prompt=unit.negative_prompt,
            height=unit.height,
            width=unit.width,
            num_inference_steps=unit.num_inference_steps,
            guidance_scale=unit.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(unit.seed),
            output_type="np",
        ).images
        return torch.from_numpy(images[0])

    def by_us(self, rendered):
        """Return the image of `rendered` before it was rounded; float [h, w, 3]."""
        return self.images[rendered.pixels.tobytes()]

    def assert_same(self, unit, rendered):
        """Compare one image of ours with diffusers'."""
        difference = float((self.by_us(rendered) - self.by_diffusers(unit)).abs().max())
        assert difference <= MAX_DIFFERENCE, f"{unit.scheduler}: {difference}"
        assert rendered.pixels.shape == (unit.height, unit.width, 3)


@pytest.fixture(scope="module")
def studio(tiny_folder):
    """Set up the tiny model that predicts noise."""
    return Studio(tiny_folder)


def render_joining_at_random(studio, units, *, seed, max_batch):
    """Render `units`, each joining before a random step; return what came of them, in order."""
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    engine = Engine(lambda _: studio.ours, max_batch=max_batch)
    waiting = list(enumerate(units))
    chance.shuffle(waiting)
    futures = {}
    with torch.inference_mode():
        while waiting or not all(future.done() for future in futures.values()):
            for _ in range(chance.choice([0, 0, 1, 2])):
                if waiting:
                    number, unit = waiting.pop()
                    futures[number] = engine.submit(unit)
            if not all(future.done() for future in futures.values()):
                engine._pass(engine._next_lane())
    return [futures[number].result() for number in range(len(units))]


def units_of_all_schedulers(guidance_scale, seed):
    """Return one unit per scheduler, each with prompts, seed, steps and guidance of its own."""
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    return [
        tiny_unit(
            index=index,
            scheduler=row.name,
            prompt=chance.choice(PROMPTS[:1] + PROMPTS[1:2] + PROMPTS[3:]),
            negative_prompt=chance.choice(PROMPTS),
            seed=chance.randrange(2**53),
            num_inference_steps=chance.randint(3, 7),
            guidance_scale=guidance_scale and guidance_scale + chance.random(),
        )
        # Spacings of steps are the tables' affair (test_sampling.py): each sampler once.
        for index, row in enumerate(row for row in schedulers_of("diffusion") if row.a1111_schedule == "Automatic")
    ]


@pytest.mark.parametrize("guidance_scale", [0.0, 4.0], ids=["unguided", "guided"])
def test_alone(studio, guidance_scale):
    """Each scheduler's image, rendered alone, is diffusers'."""
    for unit in units_of_all_schedulers(guidance_scale, seed=1):
        (rendered,) = render_joining_at_random(studio, [unit], seed=0, max_batch=1)
        studio.assert_same(unit, rendered)


@pytest.mark.parametrize("guidance_scale", [0.0, 4.0], ids=["unguided", "guided"])
def test_in_mixed_company(studio, guidance_scale):
    """Units of all schedulers in one lane, joining at random steps, come out as diffusers renders each alone."""
    units = units_of_all_schedulers(guidance_scale, seed=1)
    for unit, rendered in zip(units, render_joining_at_random(studio, units, seed=3, max_batch=5), strict=True):
        studio.assert_same(unit, rendered)
        assert rendered.timings.mean_batch > 1


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
    for unit, rendered in zip(units, render_joining_at_random(studio, units, seed=4, max_batch=3), strict=True):
        studio.assert_same(unit, rendered)


def test_v_prediction(tmp_path):
    """A model that predicts velocity is sampled as one."""
    studio = Studio(save_tiny_sd15(tmp_path / "v", prediction_type="v_prediction", seed=3))
    schedulers = ["euler", "dpmpp_2m_sde_karras", "ddim", "heun", "unipc", "lcm"]
    units = [
        tiny_unit(index=index, scheduler=scheduler, seed=index, num_inference_steps=4 + index)
        for index, scheduler in enumerate(schedulers)
    ]
    for unit, rendered in zip(units, render_joining_at_random(studio, units, seed=5, max_batch=4), strict=True):
        studio.assert_same(unit, rendered)
