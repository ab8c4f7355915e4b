"""Image files: pixels come back, the recipe is inside for us and for galleries, repeats are equal."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from sd_parsers import ParserManager

from farm.errors import RenderFailed
from farm.jobs import ControlNet, Hires
from farm.prompts import Lora
from farm.recipes import infotext, read_infotext_of, read_recipe
from farm.requests import Output, Reproducibility
from farm.schedulers import SCHEDULERS, find_scheduler
from tiny_models import tiny_unit
from worker import images
from worker.files import recipe_of
from worker.images import encode_image
from worker.seat import Rendered, Timings

FORMATS = ["png", "jpeg", "webp", "avif"]
LOSSY = FORMATS[1:]
SHA256 = "0123456789abcdef" * 4
UNIT = tiny_unit(
    prompt="a red heart left of a green house", negative_prompt="night", seed=7, scheduler="euler_ancestral"
)


def pixels_of(width=64, height=48, seed=0):
    """Return a picture with smooth and noisy parts."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[:, : width // 2] = np.linspace(0, 255, height, dtype=np.uint8)[:, None, None]
    return noise


def rendered(**fields):
    """Return what an engine hands over."""
    timings = Timings(0.1, 0.2, 1.0, 0.3, 0.5, 20, 2.0, None)
    made = Rendered(pixels_of(), timings, model_hash=SHA256, device="cpu", dtype="float32", warnings=())
    return replace(made, **fields)


def encode(unit=UNIT, pixels=None, **output):
    """Return the file of a unit."""
    unit = replace(unit, output=Output(**output))
    return encode_image(pixels_of() if pixels is None else pixels, recipe_of(unit, rendered()), unit.output)


def opened(data):
    """Decode a file completely."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def levels_off(data, pixels):
    """Return how far a file is from `pixels`, in levels, on average."""
    return float(np.abs(np.asarray(opened(data)).astype(int) - pixels).mean())


# -- pixels


@pytest.mark.parametrize("mode", list(Reproducibility))
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (8, 200), (333, 7)])
def test_png_loses_no_pixel(mode, size):
    """Pillow reads back exactly what was rendered."""
    pixels = pixels_of(*size)
    image = opened(encode(replace(UNIT, reproducibility=mode), pixels))
    assert image.format == "PNG"
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("image_format", LOSSY)
def test_quality_is_honoured(image_format):
    """A lower quality makes a smaller file, a higher one a picture closer to what was rendered."""
    pixels = pixels_of()
    poor, fair, best = (encode(format=image_format, quality=quality) for quality in (30, 90, 100))
    assert len(poor) < len(fair) < len(best)
    assert levels_off(poor, pixels) > levels_off(fair, pixels) > levels_off(best, pixels)


def test_webp_of_quality_100_loses_nothing():
    """The format can do it, so its best quality does."""
    np.testing.assert_array_equal(np.asarray(opened(encode(format="webp", quality=100))), pixels_of())


@pytest.mark.parametrize("image_format", ["jpeg", "avif"])
def test_colours_are_kept_at_full_resolution_from_95_on(image_format):
    """Coloured dots of one pixel keep their colours, which are averaged away below."""
    dots = np.full((32, 32, 3), 128, np.uint8)
    dots[::2, ::2] = (255, 0, 0)
    dots[1::2, 1::2] = (0, 0, 255)
    averaged, full = (levels_off(encode(pixels=dots, format=image_format, quality=q), dots) for q in (94, 95))
    assert full < averaged / 2


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("mode", list(Reproducibility))
def test_bytes_of_a_repeat_are_equal(image_format, mode):
    """Neither job, index, attempt nor time stands in the file."""
    unit = replace(UNIT, reproducibility=mode)
    pixels = pixels_of(256, 192)
    repeat = replace(unit, job="job_1", index=9, attempt=5)
    first = encode(unit, pixels, format=image_format)
    assert all(encode(repeat, pixels, format=image_format) == first for _ in range(3))


def test_a_build_without_avif_is_told_of(monkeypatch):
    """The reason names the field and what works instead."""
    monkeypatch.setattr(images.features, "check", lambda name: name != "avif" and features.check(name))
    with pytest.raises(RenderFailed, match=r"output\.format.*without AVIF; png, jpeg and webp work"):
        encode(format="avif")


def test_a_picture_too_large_for_its_format_is_told_of():
    """WebP ends at 16,383 pixels a side."""
    with pytest.raises(RenderFailed, match="16384x1 pixels do not fit into a webp file"):
        encode(pixels=np.zeros((1, 16384, 3), np.uint8), format="webp")


def test_a_png_of_a_megapixel_costs_little():
    """Measured: 11 ms of CPU, or 32 in `invariant`; the bound leaves room for a slow, busy machine."""
    pixels = pixels_of(1024, 1024)
    encode(pixels=pixels)
    started = time.thread_time()
    encode(pixels=pixels)
    assert time.thread_time() - started < 0.15


# -- recipes


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("prompt", ["a cat", "ein roter Käfer 甲虫 🐞", 'a "b", c: d\nSteps: 3, Seed: 4\n\x01'])
def test_a_file_carries_both_recipes(image_format, prompt):
    """The text for galleries and the JSON for machines, whatever stands in the prompt."""
    unit = replace(UNIT, prompt=prompt)
    data = encode(unit, format=image_format)
    recipe = recipe_of(replace(unit, output=Output(format=image_format)), rendered())
    assert opened(data).format == image_format.upper()
    assert read_recipe(data) == recipe
    assert read_infotext_of(data).prompt == prompt
    assert read_infotext_of(data).parameters["Seed"] == "7"


def test_a_recipe_tells_what_the_renderer_knows():
    """LoRA files, the batch's shape, what the plan changed, what the checker said."""
    unit = replace(UNIT, loras=(Lora("ink", 0.5),), hires=Hires(128, 96, 0.5, 9, "latent"), clip_skip=1)
    made = rendered(
        lora_hashes={"ink": SHA256},
        approximations=("transformer in fp8",),
        nsfw=False,
        timings=replace(rendered().timings, batch_shape=4),
    )
    recipe = recipe_of(unit, made)
    assert recipe.loras == unit.loras
    assert recipe.hires == unit.hires
    assert recipe.clip_skip == 1
    assert recipe.lora_sha256 == {"ink": SHA256}
    assert recipe.approximations == ("transformer in fp8",)
    assert recipe.nsfw is False
    assert recipe.batch_shape == 4
    assert recipe.model_sha256 == SHA256


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("character", ["a", "字", "🐞", "\n", "\x01", "é"])
def test_the_longest_prompts_fit(image_format, character):
    """A prompt of 8,000 characters and as long a negative one come back whole, whatever they are made of."""
    unit = replace(UNIT, prompt=character * 8000, negative_prompt=character * 8000)
    assert read_recipe(encode(unit, format=image_format)).negative_prompt == unit.negative_prompt


@given(prompt=st.text(min_size=1, max_size=200), negative=st.text(max_size=50), image_format=st.sampled_from(FORMATS))
def test_any_prompt_survives_in_a_file(prompt, negative, image_format):
    """The JSON gives back every prompt, in every format."""
    unit = replace(UNIT, prompt=prompt, negative_prompt=negative)
    recipe = read_recipe(encode(unit, pixels_of(8, 8), format=image_format))
    assert (recipe.prompt, recipe.negative_prompt) == (prompt, negative)


# -- sd-parsers, which galleries use

plain_words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
lines = st.lists(plain_words | st.sampled_from(["Steps: 20,", '"quoted"', "(red:1.2)", "BREAK"]), min_size=1).map(
    " ".join
)
prompts = st.lists(lines, min_size=1, max_size=3).map("\n".join)


@given(
    prompt=prompts,
    negative=st.just("") | prompts,
    seed=st.integers(0, 2**53 - 1),
    steps=st.integers(1, 1000),
    scheduler=st.sampled_from([row.name for row in SCHEDULERS]),
    size=st.tuples(st.integers(1, 512), st.integers(1, 512)),
    model=st.sampled_from(["scenes", "sdxl-base", "flux.1-dev"]),
    image_format=st.sampled_from(["png", "jpeg", "webp"]),
    is_rich=st.booleans(),
)
def test_sd_parsers_reads_our_files(*, prompt, negative, seed, steps, scheduler, size, model, image_format, is_rich):
    """Prompts, seed, sampler, steps, size and model, from every format that it knows, hires fix or not."""
    unit = replace(
        UNIT,
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        num_inference_steps=steps,
        scheduler=scheduler,
        width=size[0] * 8,
        height=size[1] * 8,
        model=model,
    )
    made = rendered()
    if is_rich:
        unit = replace(
            unit,
            clip_skip=1,
            loras=(Lora("ink", 0.8),),
            hires=Hires(9000, 9000, 0.5, 10, "latent"),
            controlnets=(ControlNet("canny", "uploads/edges.png"), ControlNet("depth", "uploads/depth.png")),
        )
        made = rendered(lora_hashes={"ink": SHA256})
    unit = replace(unit, output=Output(format=image_format))
    data = encode_image(pixels_of(8, 8), recipe_of(unit, made), unit.output)

    info = ParserManager().parse(io.BytesIO(data))

    (sampler,) = info.samplers
    expected = find_scheduler(scheduler)
    tag = " <lora:ink:0.8>" if is_rich else ""
    assert [each.value for each in sampler.prompts] == [prompt + tag]
    assert [each.value for each in sampler.negative_prompts or []] == ([negative] if negative else [])
    assert sampler.name == expected.a1111_sampler
    assert sampler.parameters["scheduler"] == expected.a1111_schedule
    assert int(sampler.parameters["seed"]) == seed
    assert int(sampler.parameters["steps"]) == steps
    assert info.metadata["Size"] == f"{unit.width}x{unit.height}"
    assert sampler.model.name == model
    assert sampler.model.hash == SHA256[:10]


def test_a_png_holds_a1111s_text_under_its_key():
    """Where every gallery looks."""
    recipe = recipe_of(UNIT, rendered())
    assert opened(encode()).text["parameters"] == infotext(recipe)
