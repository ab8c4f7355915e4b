"""From OpenAI's parameters to a job."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from api.openai.edits import farm_mask
from api.openai.requests import (
    EditRequest,
    GenerationRequest,
    fitting_size,
    in_openai_words,
    job_of,
    pictures_of,
    size_of,
    steps_of,
)
from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.errors import Refused
from farm.expand import check_size
from farm.requests import Priority

ROW = Catalog().row("scenes")


def asked(**fields):
    """Return a request."""
    return GenerationRequest(**{"prompt": "a", **fields})


def test_what_is_left_out_comes_from_the_model():
    """A bare prompt is one image of the model's size and steps, at once."""
    spec = job_of(asked(), ROW)
    (prompt,) = spec.prompts
    assert (prompt.num_images_per_prompt, prompt.width, prompt.height) == (1, ROW.width, ROW.height)
    assert (prompt.num_inference_steps, prompt.guidance_scale, prompt.scheduler) == (None, None, None)
    assert (spec.priority, spec.output.format, spec.output.quality) == (Priority.INTERACTIVE, "png", 90)
    assert spec.labels == {}


def test_everything_that_is_asked_for_reaches_the_job():
    """OpenAI's parameters and ours beside them."""
    spec = job_of(
        asked(
            n=3,
            size="128x64",
            output_format="jpeg",
            output_compression=0,
            user="u",
            safety_identifier="s",
            negative_prompt="b",
            seed=5,
            num_inference_steps=7,
            guidance_scale=1.5,
            scheduler="euler",
        ),
        ROW,
    )
    (prompt,) = spec.prompts
    assert prompt.model_dump(exclude_none=True) == {
        "prompt": "a",
        "negative_prompt": "b",
        "num_images_per_prompt": 3,
        "seed": 5,
        "num_inference_steps": 7,
        "guidance_scale": 1.5,
        "scheduler": "euler",
        "width": 128,
        "height": 64,
    }
    assert (spec.output.format, spec.output.quality, spec.labels) == ("jpeg", 1, {"user": "s"})


@pytest.mark.parametrize(
    ("quality", "steps"),
    [(None, None), ("auto", None), ("standard", None), ("medium", None), ("low", 10), ("high", 30), ("hd", 30)],
)
def test_quality_means_steps(quality, steps):
    """Unless they are given as a number."""
    assert ROW.num_inference_steps == 20
    assert steps_of(asked(quality=quality), ROW) == steps
    assert steps_of(asked(quality=quality, num_inference_steps=3), ROW) == 3


def test_quality_stays_within_what_the_model_takes():
    """Twice the steps of a model that takes no more is what it takes."""
    assert steps_of(asked(quality="max"), ROW.model_copy(update={"max_steps": 25})) == 25


@pytest.mark.parametrize("size", ["63x64", "64x65", "9999x64", "0x0", "64x512"])
def test_a_size_that_the_model_does_not_render_is_refused(size):
    """By the name that the client gave it."""
    with pytest.raises(Refused) as caught:
        size_of(size, ROW)
    assert caught.value.field == "size"


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(list(Catalog())))
def test_every_picture_has_a_size_that_the_model_renders(width, height, row):
    """Its own where that fits, else one that does."""
    fit = fitting_size(width, height, row)
    check_size(*fit, row)
    try:
        check_size(width, height, row)
    except Refused:
        pass
    else:
        assert fit == (width, height)


def test_a_picture_that_is_too_large_keeps_its_shape():
    """As far as the model's multiples let it."""
    assert fitting_size(2000, 1000, ROW) == (256, 128)
    assert fitting_size(1000, 2000, ROW) == (128, 256)


@pytest.mark.parametrize(
    ("fields", "mask", "strength"),
    [
        ({}, None, 0.8),
        ({"input_fidelity": "high"}, None, 0.5),
        ({"input_fidelity": "high"}, "m", 1.0),
        ({"strength": 0.3}, "m", 0.3),
        ({"num_inference_steps": 1}, None, 1.0),
    ],
)
def test_how_much_of_an_image_gives_way(fields, mask, strength):
    """All of it under a mask; else what fidelity says, unless that leaves no step to make."""
    fields = pictures_of(EditRequest(prompt="a", **fields), ROW, image="i", mask=mask)
    assert fields == {"image": "i", "mask_image": mask, "strength": strength}


def test_an_edit_is_a_job_that_can_be_rendered():
    """Its pictures are the prompt's."""
    edit = EditRequest(prompt="a", n=2)
    key = f"uploads/{'0' * 64}.png"
    spec = job_of(edit, ROW, **pictures_of(edit, ROW, image=key, mask=key))
    (entry,) = expanded_job(row=ROW, **spec.model_dump(mode="json", exclude={"model"})).entries
    assert (entry.image, entry.mask_image, entry.strength, entry.num_images) == (key, key, 1.0, 2)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("prompts.0.width", "size"),
        ("prompts.0.num_images_per_prompt", "n"),
        ("prompts.0.mask_image", "mask"),
        ("prompts.0.scheduler", "scheduler"),
        ("prompts.0", "prompt"),
        ("prompts.0.prompt", "prompt"),
        (None, None),
    ],
)
def test_errors_name_the_clients_own_parameter(field, told):
    """Never the job's, which the client has not written."""
    assert in_openai_words(Refused("x", field=field)).field == told


def test_partial_images_are_for_streams_of_one_image():
    """Else nobody could be shown them, or tell them apart."""
    asked(stream=True, partial_images=3).check_stream()
    asked(partial_images=0, n=2).check_stream()
    for fields in ({"partial_images": 1}, {"partial_images": 1, "stream": True, "n": 2}):
        with pytest.raises(Refused):
            asked(**fields).check_stream()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_a_mask_is_turned_round(mode):
    """Transparent becomes white, half transparent grey, opaque black; whatever colour lies there."""
    mask = Image.new("RGBA", (3, 1), (200, 10, 10, 255))
    mask.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "RGBA":
        mask.putpixel((2, 0), (255, 255, 255, 55))
    turned = Image.open(io.BytesIO(farm_mask(mask.convert(mode), (3, 1))))
    assert turned.mode == "L"
    assert list(turned.tobytes()) == ([0, 255, 200] if mode == "RGBA" else [0, 255, 0])
