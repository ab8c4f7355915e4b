"""A worker that changes models all day holds no more in the evening than it did in the morning."""

from __future__ import annotations

import sys
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.catalog import Catalog
from farm.settings import Settings
from tiny_flow_models import save_tiny_flux
from tiny_models import save_tiny_sd15, save_tiny_sdxl, tiny_row, tiny_unit
from worker import ram
from worker.engine import Engine
from worker.gpu import Device
from worker.models import WorkerModels

NUM_WARM_UP = 9
NUM_SWITCHES = 24


@pytest.fixture
def catalog(tmp_path):
    """Return a catalog of three families, two of whose models take some 60 MB each as loaded."""
    save_tiny_sd15(tmp_path / "sd15", block_out_channels=(128, 256), attention_head_dim=8)
    save_tiny_sdxl(tmp_path / "sdxl", block_out_channels=(128, 256))
    save_tiny_flux(tmp_path / "flux", guidance_embeds=True)
    for path in tmp_path.rglob("*.safetensors"):
        # In 32 bits a CPU would use the file's own pages, which are nobody's memory.
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return Catalog(
        [
            tiny_row(tmp_path / "sd15", name="sd15"),
            tiny_row(tmp_path / "sdxl", name="sdxl", family="sdxl"),
            tiny_row(tmp_path / "flux", name="flux", family="flux", guidance="embedded"),
        ]
    )


def unit_for(model, index):
    """Return a unit unlike all others, so that nothing is served from a cache."""
    own = {"guided": False, "scheduler": "flow_euler"} if model == "flux" else {}
    return tiny_unit(model=model, index=index, seed=index, prompt=f"p {index}", num_inference_steps=1, **own)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells what a process holds")
def test_ram_does_not_grow_with_switches(catalog, tmp_path):
    """Of every model that went nothing is left, and the process holds less than one model more than it did early on.

    bench/switches.py does the same for 200 switches.
    """
    models = WorkerModels(
        Settings(models_dir=tmp_path, max_resident_models=1), catalog, Device(torch.device("cpu"), "cpu", None)
    )
    loaded = []

    def load(name):
        pipeline = models.load(name)
        loaded.append(weakref.ref(pipeline))
        return pipeline

    engine = Engine(load, max_batch=2, fits=models.fits, read_ahead=models.read_ahead)
    models.start()
    engine.start()
    held = []
    try:
        for index in range(NUM_WARM_UP + NUM_SWITCHES):
            model = ("sd15", "sdxl", "flux")[index % 3]
            assert engine.submit(unit_for(model, index)).result(timeout=60)
            held.append(ram.held_bytes())
    finally:
        engine.stop()
        models.stop()
    assert len(loaded) == NUM_WARM_UP + NUM_SWITCHES
    assert sum(pipeline() is not None for pipeline in loaded) == 1
    one_model = 2 * sum(path.stat().st_size for path in (tmp_path / "sd15").rglob("*.safetensors"))
    growth = sum(held[-3:]) / 3 - sum(held[NUM_WARM_UP : NUM_WARM_UP + 3]) / 3
    assert growth < one_model / 2, f"{growth / 1e6:.0f} MB, and {one_model / 1e6:.0f} MB are a model"
