"""One model rendered by diffusers' own pipeline and by our engine, to compare the images; and cases to try.

    studio = Studio.load(folder, family="sdxl")
    studio.assert_all_same(units_of(schedulers_of("diffusion"), seed=1, guidance_scale=4.0), seed=3, max_batch=5)

`assert_all_same` renders units in one engine, each joining before a random step, and compares every image, before it is
rounded, with what diffusers makes of that unit alone: `render`, `by_us`, `by_diffusers` and `assert_same` are its
parts. References are kept, so that asking twice costs nothing. For img2img, ControlNet and whatever else takes more
than a prompt, derive from Studio and override `pipeline_for` and `arguments_for`.
"""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import diffusers
import pytest
import torch
from hypothesis import strategies as st

from farm.requests import Reproducibility
from farm.schedulers import find_scheduler
from tiny_models import SIZE_PX, tiny_row, tiny_unit
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.pipelines.loading import load_pipeline
from worker.pipelines.pixels import to_pixels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from farm.jobs import Unit
    from farm.schedulers import Scheduler
    from worker.pipelines.latent import LatentModel
    from worker.seat import Rendered

MAX_DIFFERENCE: Final = 1e-4
"""Of pixels from 0 to 1."""

PROMPTS: Final = ("a red circle", "blue", "two green squares on the left of a house", "x y z")
NEGATIVE_PROMPTS: Final = ("", "blurry", "a house")

SOME_SCHEDULERS: Final = [
    find_scheduler(name)
    for name in ("euler", "euler_ancestral", "dpmpp_2m_karras", "dpmpp_sde", "ddim", "unipc", "heun", "pndm", "lcm")
]
"""One of each way to sample a diffusion model: for what need not be tried with all of them."""

BROWNIAN_WARNING: Final = "ignore:Should have t[ab]:UserWarning"
"""A filter for tests of all schedulers: diffusers' DPM++ SDE asks its Brownian tree for a hair more than there is."""


class Studio:
    """One model by diffusers (`reference`) and by us (`ours`), with the same weights."""

    def __init__(self, ours: LatentModel, reference: Any) -> None:
        reference.set_progress_bar_config(disable=True)
        self.reference = reference
        self.config: dict[str, Any] = dict(reference.scheduler.config)
        self.ours = ours
        self._images: dict[bytes, torch.Tensor] = {}
        self._schedulers: dict[str, Any] = {}
        self._references: dict[tuple[Unit, bytes], torch.Tensor] = {}
        self.ours.decode = self._decode  # type: ignore[method-assign]

    @classmethod
    def load(cls, folder: Path, **row_fields: Any) -> Self:
        """Set up the model in `folder`, in float32 on the CPU; `row_fields` go into its row of the catalog."""
        row = tiny_row(folder, **row_fields)
        options = {"safety_checker": None} if row.family == "sd15" else {}
        reference = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
        if row.family == "sd15":
            # For clip_skip diffusers looks for the last norm where transformers 5 has it no longer.
            vars(reference.text_encoder)["text_model"] = reference.text_encoder
        studio = cls(load_pipeline(row, models_dir=folder, device=torch.device("cpu")), reference)
        studio.config |= row.scheduler_config
        return studio

    # -- what diffusers is asked for

    def pipeline_for(self, _unit: Unit, _inputs: Inputs) -> Any:
        """Return the pipeline of diffusers that makes the reference."""
        return self.reference

    def arguments_for(self, unit: Unit, _inputs: Inputs) -> Mapping[str, Any]:
        """Return what it is called with, beside the generator."""
        return {
            "prompt": unit.prompt,
            "negative_prompt": unit.negative_prompt or None,  # none is none, and not the empty text
            "height": unit.height,
            "width": unit.width,
            "num_inference_steps": unit.num_inference_steps,
            "guidance_scale": unit.guidance_scale,
            "clip_skip": unit.clip_skip or None,
        }

    def scheduler_for(self, unit: Unit, _generator: torch.Generator) -> Any:
        """Return the scheduler that the pipeline is given; the generator is the one that the image is drawn from."""
        row = find_scheduler(unit.scheduler)
        if row.name not in self._schedulers:  # some take a second to make
            config = {**self.config, **row.config}
            self._schedulers[row.name] = getattr(diffusers, row.diffusers_class).from_config(config)
        scheduler = copy.deepcopy(self._schedulers[row.name])
        scheduler.noise_sampler_seed = unit.seed  # as if from its config; only DPM++ SDE reads it
        return scheduler

    def by_diffusers(self, unit: Unit, inputs: Inputs = NO_INPUTS) -> torch.Tensor:
        """Render `unit` with diffusers' pipeline, once; float [h, w, 3]."""
        pictures = [inputs.image, inputs.mask, *inputs.controls]
        key = (unit, b"|".join(b"" if picture is None else picture.tobytes() for picture in pictures))
        if key not in self._references:
            pipeline = self.pipeline_for(unit, inputs)
            generator = torch.Generator("cpu").manual_seed(unit.seed)
            pipeline.scheduler = self.scheduler_for(unit, generator)
            images = pipeline(**self.arguments_for(unit, inputs), generator=generator, output_type="np").images
            self._references[key] = torch.from_numpy(images[0])
        return self._references[key]

    # -- what we make of it

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode, and keep the image before it is rounded; its pixels find it again."""
        image = self.ours.coder.decode_image(latents)
        pixels = to_pixels(image)
        self._images[pixels.numpy().tobytes()] = image.permute(1, 2, 0)
        return pixels

    def by_us(self, rendered: Rendered) -> torch.Tensor:
        """Return the image of `rendered` before it was rounded; float [h, w, 3]."""
        return self._images[rendered.pixels.tobytes()]

    def render(
        self, units: Sequence[Unit], inputs: Sequence[Inputs] | None = None, *, seed: int, max_batch: int
    ) -> list[Rendered]:
        """Render `units` with our engine, each joining before a random step; return what came of them, in order."""
        chance = random.Random(seed)  # noqa: S311 - makes up a test case
        engine = Engine(lambda _: self.ours, max_batch=max_batch)
        waiting = list(enumerate(zip(units, inputs or [NO_INPUTS] * len(units), strict=True)))
        chance.shuffle(waiting)
        futures = {}
        with torch.inference_mode():
            while waiting or not all(future.done() for future in futures.values()):
                for _ in range(chance.choice([0, 0, 1, 2])):
                    if waiting:
                        number, (unit, brought) = waiting.pop()
                        futures[number] = engine.submit(unit, brought)
                if not all(future.done() for future in futures.values()):
                    engine._pass(engine._next_lane())  # type: ignore[arg-type]  # nobody closes it
        return [futures[number].result() for number in range(len(units))]

    # -- and that the two are the same

    def assert_same(self, unit: Unit, rendered: Rendered, inputs: Inputs = NO_INPUTS) -> None:
        """Compare one image of ours with diffusers'."""
        difference = float((self.by_us(rendered) - self.by_diffusers(unit, inputs)).abs().max())
        assert difference <= MAX_DIFFERENCE, f"{difference} of {unit}"
        assert rendered.pixels.shape == (unit.height, unit.width, 3)

    def assert_all_same(
        self, units: Sequence[Unit], inputs: Sequence[Inputs] | None = None, *, seed: int, max_batch: int
    ) -> list[Rendered]:
        """Render `units` with our engine as in `render`, compare each with diffusers', and return what came of them."""
        images = self.render(units, inputs, seed=seed, max_batch=max_batch)
        for unit, rendered, brought in zip(units, images, inputs or [NO_INPUTS] * len(units), strict=True):
            self.assert_same(unit, rendered, brought)
        return images

    def assert_company_is_of_no_account(
        self, units: Sequence[Unit], inputs: Sequence[Inputs] | None = None, *, max_batch: int
    ) -> None:
        """Check that invariant units are bit for bit the same alone and in any order, seat and company.

        The images are compared before they are rounded, which would hide most differences.
        """
        assert all(unit.reproducibility is Reproducibility.INVARIANT for unit in units)
        brought = inputs or [NO_INPUTS] * len(units)
        alone = []
        for unit, one in zip(units, brought, strict=True):
            (rendered,) = self.render([unit], [one], seed=0, max_batch=max_batch)
            alone.append(self.by_us(rendered))
        for seed in range(3):
            together = self.render(units, brought, seed=seed, max_batch=max_batch)
            assert all(rendered.timings.batch_shape == max_batch for rendered in together)
            for unit, rendered, image in zip(units, together, alone, strict=True):
                assert torch.equal(self.by_us(rendered), image), f"{unit}, joining as with seed {seed}"


def with_and_without_guidance(everything: Sequence[Scheduler], *, guided: Sequence[Scheduler]) -> pytest.MarkDecorator:
    """Give a test `guidance_scale` and `schedulers`: some, and those to be `guided`; what is left in `make long`."""
    mixes = [
        pytest.param(0.0, SOME_SCHEDULERS, id="unguided"),
        pytest.param(4.0, guided, id="guided"),
        pytest.param(0.0, everything, id="unguided, all", marks=pytest.mark.long),
    ]
    if guided != everything:
        mixes.append(pytest.param(4.0, everything, id="guided, all", marks=pytest.mark.long))
    return pytest.mark.parametrize(("guidance_scale", "schedulers"), mixes)


def units_of(schedulers: Iterable[Scheduler], *, seed: int, **fields: Any) -> list[Unit]:
    """Return one unit per scheduler, each with prompts, seed and steps of its own; `fields` hold for all of them."""
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    return [
        tiny_unit(
            **{
                "index": index,
                "scheduler": row.name,
                "prompt": chance.choice(PROMPTS),
                "negative_prompt": chance.choice(NEGATIVE_PROMPTS),
                "seed": chance.randrange(2**53),
                "num_inference_steps": chance.randint(2, 4),
                **fields,
            }
        )
        for index, row in enumerate(schedulers)
    ]


def any_units(schedulers: Iterable[Scheduler], *, max_size: int = 4) -> st.SearchStrategy[list[Unit]]:
    """Draw up to `max_size` units that differ in all that units may differ in, sizes and guidance included."""
    sizes = st.sampled_from([SIZE_PX, SIZE_PX + 8])
    unit = st.builds(
        tiny_unit,
        scheduler=st.sampled_from([row.name for row in schedulers]),
        prompt=st.sampled_from(PROMPTS),
        negative_prompt=st.sampled_from(NEGATIVE_PROMPTS),
        seed=st.integers(0, 2**53 - 1),
        num_inference_steps=st.integers(2, 6),
        guidance_scale=st.sampled_from([0.0, 1.0, 1.5, 7.0]),
        width=sizes,
        height=sizes,
        clip_skip=st.sampled_from([0, 1]),
    )
    units = st.lists(unit, min_size=1, max_size=max_size)
    return units.map(lambda drawn: [replace(unit, index=index) for index, unit in enumerate(drawn)])
