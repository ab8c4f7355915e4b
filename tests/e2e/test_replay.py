"""From a picture's file alone to the same bytes again, by the command that users type."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from farm.recipes import read_recipe, text_chunks_of

pytestmark = pytest.mark.slow

PROMPT = "a big red heart left of a green house,\nat night, Steps: 3"


def replay(farm, path, *options):
    """Run `farm replay`; return exit code and what it says."""
    command = [sys.executable, "-m", "cli.main", "replay", str(path), "--api", str(farm.client.base_url), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    return done.returncode, done.stdout + done.stderr


def company(farm):
    """Post a job that takes all seats but one of the originals' lane, for longer than a replay; return its id."""
    return farm.post(
        model="scenes",
        prompts=["a blue boat"],
        num_images_per_prompt=3,
        width=96,
        reproducibility="invariant",
        scheduler="euler",
        num_inference_steps=300,
    )


@pytest.fixture(scope="module")
def originals(farm, tmp_path_factory):
    """Return what renders one picture in a format, with its extra files, and returns one of these files by name."""
    folder = tmp_path_factory.mktemp("originals")

    @cache
    def rendered(image_format):
        job_id = farm.post(
            model="scenes",
            prompts=[PROMPT],
            negative_prompt="snow",
            seed=11,
            num_inference_steps=9,
            guidance_scale=4.5,
            scheduler="DPM++ 2M Karras",
            width=96,
            clip_skip=1,
            reproducibility="invariant",
            output={"format": image_format, "quality": 80, "thumbnail_px": 48, "upscale": 2},
        )
        assert farm.wait(job_id)["state"] == "done"
        (image,) = farm.images(job_id)
        for name in ("url", "thumbnail_url", "upscaled_url"):
            path = folder / f"{image_format}.{name}"
            path.write_bytes(farm.client.get(image[name]).raise_for_status().content)
        return folder

    return lambda name: rendered(name.partition(".")[0]) / name


@pytest.mark.parametrize(
    "name",
    [
        "png.url",
        "png.upscaled_url",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("jpeg.url", "webp.url", "avif.url", "png.thumbnail_url")
        ),
    ],
)
def test_a_replay_in_company_gives_the_same_bytes(farm, originals, name, tmp_path):
    """Every format and every extra file comes out again, byte for byte, while other jobs are rendered beside it."""
    original = originals(name)
    busy = company(farm)
    code, said = replay(farm, original, "--verify", "-o", str(tmp_path / "again"))
    assert code == 0, said
    assert "identical" in said
    assert (tmp_path / "again").read_bytes() == original.read_bytes()
    farm.client.delete(f"/v1/jobs/{busy}")


def test_a_gallery_reads_what_the_farm_made(originals):
    """sd-parsers finds prompts, seed, sampler, steps, size and model in a PNG that came out of a real farm."""
    info = ParserManager().parse(originals("png.url"))
    (sampler,) = info.samplers
    assert [each.value for each in sampler.prompts] == [PROMPT]
    assert [each.value for each in sampler.negative_prompts] == ["snow"]
    assert (sampler.name, sampler.parameters["scheduler"]) == ("DPM++ 2M", "Karras")
    assert (sampler.parameters["seed"], sampler.parameters["steps"]) == ("11", "9")
    assert info.metadata["Size"] == "96x128"
    assert info.metadata["Clip skip"] == "2"
    recipe = read_recipe(originals("png.url").read_bytes())
    assert (sampler.model.name, sampler.model.hash) == ("scenes", recipe.model_sha256[:10])
    assert recipe.batch_shape == 4


def test_a_picture_that_was_tampered_with_is_told_apart(farm, originals, tmp_path):
    """Other pixels and another device in the file: both are named, and the exit code tells."""
    data = originals("png.url").read_bytes()
    recipe = replace(read_recipe(data), device="another card", batch_shape=8)
    chunks = PngInfo()
    for keyword, text in text_chunks_of(recipe).items():
        chunks.add_text(keyword, text)
    with Image.open(io.BytesIO(data)) as image:
        image.putpixel((3, 3), tuple(255 - level for level in image.getpixel((3, 3))))
        image.save(tmp_path / "odd.png", pnginfo=chunks)
    code, said = replay(farm, tmp_path / "odd.png")
    assert code == 1
    assert re.search(r"not the same: pixels differ by up to \d+ of 255", said)
    assert "device: was another card, is cpu" in said
    assert "batch_shape: was 8, is 4" in said


def test_a1111s_picture_is_rendered_as_near_as_its_text_allows(farm, tmp_path):
    """Its parameters become a job; a model that the farm does not have is refused with the choices."""
    chunks = PngInfo()
    text = "a red circle\nNegative prompt: snow\nSteps: 5, Sampler: Euler a, CFG scale: 5, Seed: 42, Size: 128x128"
    chunks.add_text("parameters", f"{text}, Model: dreamshaper, Clip skip: 2")
    path = tmp_path / "theirs.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    code, said = replay(farm, path)
    assert code == 4
    assert "dreamshaper" in said
    assert "scenes" in said
    code, said = replay(farm, path, "--model", "scenes", "-o", str(tmp_path / "ours.png"))
    assert code == 0, said
    assert "cannot be compared" in said
    recipe = read_recipe((tmp_path / "ours.png").read_bytes())
    assert (recipe.prompt, recipe.negative_prompt, recipe.seed) == ("a red circle", "snow", 42)
    assert (recipe.scheduler, recipe.num_inference_steps, recipe.clip_skip) == ("euler_ancestral", 5, 1)
