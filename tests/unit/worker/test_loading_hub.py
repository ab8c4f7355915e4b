"""Models come from the hub to a pixel, over real HTTP; and what fails on the way fails a job, never the worker."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fake_hub import REVISION, files_in, serving_hub
from farm.catalog import Catalog, LoraRow
from farm.errors import HubDown, ModelBroken
from farm.settings import Settings
from farm.weights import Hub
from original_layouts import compvis, write
from tiny_models import save_tiny_sd15, tiny_row, tiny_unit
from worker.engine import Engine
from worker.gpu import Device
from worker.models import WorkerModels
from worker.pipelines.loading import load_pipeline

CPU = torch.device("cpu")
TOKEN = "hf_right"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Save a small SD 1.5 and its single file."""
    folder = save_tiny_sd15(tmp_path_factory.mktemp("local") / "folder")
    write(compvis, folder, folder / "v1-5.safetensors")
    return folder


@pytest.fixture
def hub(local):
    """Serve the model to those who have the token."""
    repositories = {"someone/model": files_in(local), "civitai/files": {"v1-5.safetensors": _bytes_of_single(local)}}
    with serving_hub(repositories, token=TOKEN) as hub:
        yield hub


def _bytes_of_single(folder):
    return (folder / "v1-5.safetensors").read_bytes()


@pytest.fixture
def load(hub, tmp_path):
    """Return what loads a row whose source is a repository of that hub."""

    def load(**fields):
        row = tiny_row("someone/model", **{"source": "someone/model", **fields})
        source = Hub(endpoint=hub.url, token=TOKEN, cache_dir=tmp_path / "cache")
        return load_pipeline(row, models_dir=tmp_path, device=CPU, hub=source)

    return load


def render(pipeline):
    """Render one image."""
    engine = Engine(lambda _: pipeline, max_batch=1)
    engine.start()
    pixels = engine.submit(tiny_unit()).result(timeout=60).pixels
    engine.stop()
    return pixels


def test_repository_is_the_folder_that_was_uploaded(load, local, hub):
    """Hash and pixels are those of the local folder; revision and token were sent."""
    ours = load(revision=REVISION)
    theirs = load_pipeline(tiny_row(local), models_dir=local, device=CPU)
    assert ours.model_hash == theirs.model_hash
    assert np.array_equal(render(ours), render(theirs))
    assert hub.tokens == {TOKEN}
    assert "v1-5.safetensors" not in hub.downloaded


def test_single_file_with_configs_from_elsewhere(load, local, hub):
    """A file of one repository is completed by configs and tokenizers of another, and no weights of that."""
    ours = load(source="civitai/files", filename="v1-5.safetensors", config="someone/model")
    theirs = load_pipeline(tiny_row(local), models_dir=local, device=CPU)
    assert np.array_equal(render(ours), render(theirs))
    assert [name for name in hub.downloaded if name.endswith(".safetensors")] == ["v1-5.safetensors"]


def test_file_that_arrives_cut_short(load, hub):
    """Half of a file on the hub is half of a file here, and is told so by name."""
    files = dict(hub.repositories["someone/model"])
    name = "unet/diffusion_pytorch_model.safetensors"
    hub.repositories["someone/model"] = {**files, name: files[name][: len(files[name]) // 2]}
    with pytest.raises(ModelBroken, match=r"model tiny \(someone/model\): .*diffusion_pytorch_model.* is cut short"):
        load()


def test_worker_outlives_whatever_the_hub_does(load, hub, local):
    """Jobs of a model that cannot be had end with the reason; those of others render on, and so does it later."""
    models = {
        "good": lambda: load_pipeline(tiny_row(local, name="good"), models_dir=local, device=CPU),
        "gated": lambda: load(name="gated"),
        "missing": lambda: load(name="missing", source="someone/else"),
        "away": lambda: load(name="away"),
    }
    engine = Engine(lambda name: models[name](), max_batch=2, clock=iter(range(0, 10**9, 40)).__next__)
    engine.start()
    hub.gated.add("someone/model")
    with pytest.raises(ModelBroken, match=r"model gated \(someone/model\): .*accept it"):
        engine.submit(tiny_unit(model="gated")).result(timeout=60)
    with pytest.raises(ModelBroken, match=r"model missing \(someone/else\): the hub has no repository"):
        engine.submit(tiny_unit(model="missing")).result(timeout=60)
    hub.gated.clear()
    hub.status = 503
    with pytest.raises(HubDown, match=r"model away \(someone/model\): the hub answers"):
        engine.submit(tiny_unit(model="away")).result(timeout=60)
    assert engine.submit(tiny_unit(model="good")).result(timeout=60).pixels.std() > 0
    hub.status = None
    assert engine.submit(tiny_unit(model="away")).result(timeout=60).pixels.std() > 0
    assert engine.is_alive
    engine.stop()


def test_worker_loads_by_name(local, tmp_path):
    """The worker finds models by the catalog and LoRAs beside them, and hands both to what it loads."""
    catalog = Catalog(
        [tiny_row(local)], loras=[LoraRow(name="style", family="sd15", source="a/b", filename="c.safetensors")]
    )
    load = WorkerModels(Settings(models_dir=tmp_path), catalog, Device(CPU, "cpu", None)).load
    pipeline = load("tiny")
    assert pipeline.name == "tiny"
    assert pipeline.lora_hashes == {}
