"""Image files: pixels come back, the recipe is inside, repeats are equal."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from farm.errors import Refused
from farm.jobs import Output, Reproducibility, Unit
from worker.images import encode_image, infotext, read_recipe

SHA256 = "0123456789abcdef" * 4
UNIT = Unit(
    job="job_0",
    index=3,
    attempt=1,
    model="scenes",
    prompt="a red heart left of a green house",
    negative_prompt="night",
    seed=7,
    num_inference_steps=20,
    guidance_scale=7.0,
    guided=True,
    scheduler="euler_ancestral",
    width=64,
    height=48,
    reproducibility=Reproducibility.FAST,
    output=Output(),
)


def rendered(width=64, height=48, seed=0):
    """Return what an engine hands over, with smooth and noisy parts."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[:, : width // 2] = np.linspace(0, 255, height, dtype=np.uint8)[:, None, None]
    return SimpleNamespace(pixels=noise, model_hash=SHA256, device="cpu", dtype="float32")


def opened(data):
    """Decode a file completely."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def user_comment(image):
    """Return the EXIF comment as text."""
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


def test_infotext_is_what_a1111_writes():
    """Galleries and scripts parse this text; every comma counts."""
    expected = (
        "a red heart left of a green house\n"
        "Negative prompt: night\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.0, Seed: 7, Size: 64x48, "
        "Model hash: 0123456789, Model: scenes, Version: diffusion-farm "
    )
    assert infotext(UNIT, model_hash=SHA256).startswith(expected)
    karras = replace(UNIT, scheduler="dpmpp_2m_karras", negative_prompt="")
    assert "\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG" in infotext(karras, model_hash=SHA256)
    assert "Negative prompt" not in infotext(karras, model_hash=SHA256)


@pytest.mark.parametrize("mode", list(Reproducibility))
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (8, 200), (333, 7)])
def test_png_loses_no_pixel(mode, size):
    """Pillow reads back exactly what was rendered."""
    made = rendered(*size)
    image = opened(encode_image(replace(UNIT, reproducibility=mode, width=size[0], height=size[1]), made))
    assert image.format == "PNG"
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), made.pixels)


def test_png_carries_both_recipes():
    """The text for galleries and the JSON for machines."""
    data = encode_image(UNIT, rendered())
    assert opened(data).text["parameters"] == infotext(UNIT, model_hash=SHA256)
    recipe = read_recipe(data)
    assert recipe["prompt"] == UNIT.prompt
    assert recipe["seed"] == 7
    assert recipe["model_sha256"] == SHA256
    assert recipe["reproducibility"] == "fast"
    assert recipe["device"] == "cpu"
    assert recipe["version"] == 1


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("mode", list(Reproducibility))
def test_bytes_of_a_repeat_are_equal(image_format, mode):
    """Neither job, index, attempt nor time stands in the file."""
    unit = replace(UNIT, output=Output(format=image_format), reproducibility=mode)
    repeat = replace(unit, job="job_1", index=9, attempt=5)
    assert encode_image(unit, rendered()) == encode_image(repeat, rendered())


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_jpeg_and_webp_carry_the_recipe_in_exif(image_format):
    """UserComment as A1111 writes it, and the same JSON as in a PNG."""
    unit = replace(UNIT, prompt="ein roter Käfer 甲虫 🐞", output=Output(format=image_format))
    data = encode_image(unit, rendered())
    image = opened(data)
    assert image.format == image_format.upper()
    assert user_comment(image) == infotext(unit, model_hash=SHA256)
    assert read_recipe(data) == read_recipe(encode_image(replace(unit, output=Output()), rendered()))


def test_quality_is_honoured():
    """A lower quality makes a smaller file."""
    sizes = [
        len(encode_image(replace(UNIT, output=Output(format="jpeg", quality=quality)), rendered()))
        for quality in (30, 95)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("character", ["a", "字", "🐞", "\n", "\x01", "é"])
def test_the_longest_prompts_fit(image_format, character):
    """A prompt of 8,000 characters and as long a negative one come back whole, whatever they are made of."""
    unit = replace(
        UNIT,
        prompt=character * 8000,
        negative_prompt=character * 8000,
        output=Output(format=image_format),
    )
    assert read_recipe(encode_image(unit, rendered()))["negative_prompt"] == unit.negative_prompt


@given(prompt=st.text(min_size=1, max_size=200), negative=st.text(max_size=50))
def test_any_prompt_survives_in_a_png(prompt, negative):
    """The JSON recipe gives back every prompt, the text chunk is one that Pillow reads."""
    data = encode_image(replace(UNIT, prompt=prompt, negative_prompt=negative), rendered(8, 8))
    recipe = read_recipe(data)
    assert (recipe["prompt"], recipe["negative_prompt"]) == (prompt, negative)
    assert opened(data).text["parameters"].startswith(prompt.replace("\0", ""))


def test_an_image_without_recipe_is_refused():
    """Other people's images and other files are named as such."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    for data in (file.getvalue(), b"", b"no image"):
        with pytest.raises(Refused, match="no image with a recipe"):
            read_recipe(data)


def test_a_png_of_a_megapixel_costs_little():
    """Measured: 11 ms of CPU, or 32 in `invariant`; the bound leaves room for a slow, busy machine."""
    made = rendered(1024, 1024)
    encode_image(UNIT, made)
    started = time.thread_time()
    encode_image(UNIT, made)
    assert time.thread_time() - started < 0.15
