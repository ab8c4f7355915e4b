"""The farm that all end-to-end tests share, except those that start one as users do (test_up.py)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from running_farm import Farm, running_farm
from tiny_models import SIZE_PX, save_tiny_sd15

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

_ROW = """
[[model]]
name = "{source.name}"
family = "sd15"
source = "{source}"
min_size = 8
width = {size_px}
height = {size_px}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random SD 1.5."""
    return save_tiny_sd15(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def farm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Run a farm with one CPU worker: it serves the model that ships, the tiny one, and one whose weights are missing.

    `farm.broken_job` is a job of the broken model, which `farm.mend` mends; uploads may have a megabyte.
    """
    folder = tmp_path_factory.mktemp("farm")
    broken = shutil.copytree(tiny, tiny.with_name("broken"))
    (broken / WEIGHTS).unlink()
    catalog = folder / "catalog.toml"
    catalog.write_text("".join(_ROW.format(source=source, size_px=SIZE_PX) for source in (tiny, broken)))
    settings = {"catalog_file": str(catalog), "worker_models": "scenes,tiny,broken", "max_upload_bytes": "1000000"}
    with running_farm(folder, **settings) as farm:
        farm.start_worker()
        # Now, so that the worker has forgotten that the model is broken when it is asked to try again.
        farm.broken_job = farm.post(model="broken", prompts=["a star"], num_images_per_prompt=3, seed=5)
        farm.mend = lambda: shutil.copy(tiny / WEIGHTS, broken / WEIGHTS)
        yield farm
