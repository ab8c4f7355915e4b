"""The files of a finished image: which there are, in what order, how large, and what their recipes say."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from farm.recipes import read_infotext_of, read_recipe
from farm.requests import Output, Reproducibility
from tiny_models import tiny_unit
from worker.engine import Engine
from worker.esrgan import RRDBNet
from worker.files import files_of
from worker.finishing import Finishing
from worker.seat import Rendered, Timings


def rendered(width=96, height=64):
    """Return what an engine hands over: a smooth picture."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    timings = Timings(0.1, 0.2, 1.0, 0.3, 0.5, 20, 2.0, None)
    return Rendered(pixels, timings, model_hash="ab" * 32, device="cpu", dtype="float32", warnings=())


def files(made=None, **output):
    """Return the files of a unit, by what follows the index in their keys."""
    unit = tiny_unit(job="job_0", index=7, output=Output(**output))
    found = list(files_of(unit, made or rendered()))
    assert all(file.key.startswith("jobs/job_0/0000007.") for file in found)
    return {file.key.removeprefix("jobs/job_0/0000007."): file for file in found}


def size_of(file):
    """Return the size of an image file."""
    return Image.open(io.BytesIO(file.data)).size


def test_an_image_alone_is_one_file():
    """Nobody pays for what nobody asked for."""
    assert list(files()) == ["png"]


def test_extras_come_before_the_image():
    """Whoever sees the image sees all of its files; each has its type."""
    made = files(format="jpeg", thumbnail_px=32, upscale=2)
    assert list(made) == ["thumb.webp", "x2.jpg", "jpg"]
    assert [file.content_type for file in made.values()] == ["image/webp", "image/jpeg", "image/jpeg"]


@pytest.mark.parametrize(("longest_px", "size"), [(48, (48, 32)), (16, (16, 11)), (1024, (96, 64))])
def test_a_thumbnail_keeps_its_shape_and_is_never_larger(longest_px, size):
    """The longer side has so many pixels, unless the image has fewer."""
    assert size_of(files(thumbnail_px=longest_px)["thumb.webp"]) == size


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_lanczos_enlarges_without_a_model(factor):
    """A smooth picture shrinks back to itself."""
    made = rendered()
    file = files(made, upscale=factor)[f"x{factor}.png"]
    assert size_of(file) == (96 * factor, 64 * factor)
    back = Image.open(io.BytesIO(file.data)).resize((96, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(back)[4:-4, 4:-4].astype(int) - made.pixels[4:-4, 4:-4]).max() <= 1


def test_each_file_tells_how_to_make_itself():
    """The image's recipe is the same whatever else was asked for; an enlarged one notes by what."""
    alone = files(quality=80)["png"]
    made = files(quality=80, thumbnail_px=32, upscale=2)
    assert made["png"].data == alone.data
    assert read_recipe(alone.data).output == Output(quality=80)
    thumbnail, upscaled = read_recipe(made["thumb.webp"].data), read_recipe(made["x2.png"].data)
    assert (thumbnail.file, thumbnail.output) == ("thumbnail", Output(quality=80, thumbnail_px=32))
    assert (upscaled.file, upscaled.output) == ("upscaled", Output(quality=80, upscale=2))
    told = read_infotext_of(made["x2.png"].data).parameters
    assert (told["Postprocess upscale by"], told["Postprocess upscaler"]) == ("2", "lanczos")


def test_a_repeat_yields_the_same_bytes():
    """A unit rendered twice overwrites its files with themselves."""
    asked = {"thumbnail_px": 32, "upscale": 3, "format": "avif"}
    assert files(**asked) == files(**asked)


def test_a_model_enlarges_on_the_engines_thread(tiny_pipeline, tmp_path):
    """The engine hands the enlarged picture over, its recipe names the model's file, and its time is the unit's."""
    (tmp_path / "upscalers").mkdir()
    path = tmp_path / "upscalers" / "sharp.safetensors"
    torch.manual_seed(0)
    network = RRDBNet(num_features=4, num_blocks=1, num_growth=4, num_doublings=1)
    save_file({name.replace("conv_ups.0", "conv_up1"): each for name, each in network.state_dict().items()}, path)
    unit = tiny_unit(output=Output(upscale=2, upscaler="sharp"), reproducibility=Reproducibility.INVARIANT)
    engine = Engine(lambda _: tiny_pipeline, max_batch=2, finishing=Finishing(tmp_path))
    engine.start()
    made = [engine.submit(unit).result(60) for _ in range(2)]
    busy_s = engine.stats().busy_s
    engine.stop()
    assert made[0].upscaled.shape == (32, 32, 3)
    assert sum(each.timings.gpu_s for each in made) == pytest.approx(busy_s)
    first, again = (next(iter(files_of(unit, each))) for each in made)
    assert first == again
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(first.data))), made[0].upscaled)
    recipe = read_recipe(first.data)
    assert recipe.output.upscaler == "sharp"
    assert recipe.upscaler_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert recipe.batch_shape == 2
