"""A model is loaded from safetensors and known by their hash, or the error says what is wrong with it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.catalog import Catalog
from farm.errors import ModelBroken
from tiny_models import save_tiny_sd15, tiny_row, tiny_unit
from worker.engine import Engine
from worker.pipelines import loading
from worker.pipelines.base import NO_INPUTS
from worker.pipelines.loading import load_pipeline

CPU = torch.device("cpu")
SHIPPED_MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """Return a copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "models" / "tiny"))


def load(folder, **fields):
    """Load the model in `folder`."""
    return load_pipeline(tiny_row(folder, **fields), models_dir=folder.parent, device=CPU)


def unet_file(folder):
    """Return the file with the UNet's weights."""
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def assert_broken(folder, *reasons):
    """Check that loading fails, naming model, source and reason."""
    with pytest.raises(ModelBroken) as caught:
        load(folder)
    for words in ("tiny", str(folder), *reasons):
        assert words in str(caught.value)


def test_relative_source_starts_at_the_models_folder(folder):
    """A catalog row's relative source is found in models_dir."""
    row = tiny_row(Path("tiny"), max_batch=3)
    pipeline = load_pipeline(row, models_dir=folder.parent, device=CPU)
    assert (pipeline.name, pipeline.max_batch, pipeline.dtype) == ("tiny", 3, torch.float32)
    assert pipeline.latent_shape(16, 32) == (4, 8, 16)


def test_hash_tells_weights_apart(folder, tiny_folder, tmp_path):
    """The same weights have the same hash wherever they are, others have another."""
    assert load(folder).model_hash == load(tiny_folder).model_hash
    assert len(load(folder).model_hash) == 64
    other = save_tiny_sd15(tmp_path / "other", seed=1)
    assert load(other).model_hash != load(folder).model_hash


def test_a_load_that_takes_long_says_how_far_it_is(folder, monkeypatch, caplog):
    """Weights of tens of gigabytes come part by part, and the log tells bytes of how many."""
    monkeypatch.setattr(loading, "_FIRST_WORD_S", 0.0)
    monkeypatch.setattr(loading, "_WORDS_S", 0.0)
    with caplog.at_level(logging.INFO):
        load_pipeline(tiny_row(folder), models_dir=folder, device=torch.device("cpu"))
    said = [record for record in caplog.records if record.getMessage().startswith("loading tiny")]
    assert len(said) == 4
    *_, (done_bytes, num_bytes) = [record.args[1:] for record in said]
    assert done_bytes == num_bytes > 0


def test_missing_folder(tmp_path):
    """A source that is nowhere is named with the place where it was looked for."""
    assert_broken(tmp_path / "nowhere", "there is no folder or file")


def test_source_without_folder_or_repository(tmp_path):
    """A plain name that is no folder is not asked of the hub."""
    row = tiny_row(Path("scenery"))
    with pytest.raises(ModelBroken, match=r"tiny \(scenery\): there is no folder or file"):
        load_pipeline(row, models_dir=tmp_path, device=CPU)


@pytest.mark.parametrize("damage", [b"", b"no safetensors at all", b"\xff" * 64])
def test_corrupt_weights(folder, damage):
    """Weights that are no safetensors are called so, with the file's name."""
    unet_file(folder).write_bytes(damage)
    assert_broken(folder, unet_file(folder).name, "no safetensors file")


def test_truncated_weights(folder):
    """A download that broke off is noticed before anything is loaded."""
    whole = unet_file(folder).read_bytes()
    unet_file(folder).write_bytes(whole[: len(whole) // 2])
    assert_broken(folder, unet_file(folder).name, "cut short")


def test_pickled_weights_are_not_touched(folder):
    """A model that only comes pickled is refused without opening the pickle."""
    unet_file(folder).rename(unet_file(folder).with_suffix(".bin"))
    assert_broken(folder, "only pickled weights", "safetensors are needed")


def test_no_weights(folder):
    """A part without weights is named."""
    shutil.rmtree(folder / "vae")
    assert_broken(folder, str(folder / "vae"), "no weights")


def test_weights_that_lack_some(folder):
    """Weights that the file lacks are an error, never random numbers."""
    weights = load_file(unet_file(folder))
    weights.pop("conv_in.weight")
    save_file(weights, unet_file(folder))
    assert_broken(folder, "lacks 1 weights, conv_in.weight")


@pytest.mark.parametrize("path", ["scheduler/scheduler_config.json", "unet/config.json"])
@pytest.mark.parametrize("content", [None, "{"])
def test_broken_config(folder, path, content):
    """A config that is missing or no JSON breaks the model."""
    (folder / path).unlink()
    if content is not None:
        (folder / path).write_text(content, "utf-8")
    assert_broken(folder)


def test_unsupported_unet(folder):
    """A UNet for editing is refused in words, not with a shape error in the first step."""
    (folder / "unet" / "config.json").write_text(
        (folder / "unet" / "config.json").read_text("utf-8").replace('"in_channels": 4', '"in_channels": 8'),
        "utf-8",
    )
    weights = load_file(unet_file(folder))
    weights["conv_in.weight"] = torch.zeros(8, 8, 3, 3)
    save_file(weights, unet_file(folder))
    assert_broken(folder, "8 input channels")


def test_embeddings_are_cached_by_exact_text(tiny_pipeline):
    """The same text is encoded once, in whatever role; texts that differ in a space are two."""
    first = tiny_pipeline.encode(tiny_unit(prompt="a house", negative_prompt="a house"), NO_INPUTS).conditioning
    assert first.prompt.states is first.negative.states
    again = tiny_pipeline.encode(tiny_unit(prompt="a house", guidance_scale=1.0), NO_INPUTS).conditioning
    assert again.prompt.states is first.prompt.states
    assert again.negative is None
    spaced = tiny_pipeline.encode(tiny_unit(prompt="a house ", guidance_scale=1.0), NO_INPUTS).conditioning
    assert spaced.prompt.states is not first.prompt.states


@pytest.mark.skipif(
    not (SHIPPED_MODELS / "scenes" / "model_index.json").exists(), reason="the model is not trained yet"
)
def test_model_that_ships_renders():
    """The model that ships with the farm loads from its catalog row and renders at its native size."""
    row = Catalog().row("scenes")
    engine = Engine(lambda _: load_pipeline(row, models_dir=SHIPPED_MODELS, device=CPU), max_batch=2)
    engine.start()
    unit = tiny_unit(model="scenes", width=row.width, height=row.height, num_inference_steps=2)
    assert engine.submit(unit).result(timeout=100).pixels.shape == (row.height, row.width, 3)
    engine.stop()
