"""Tests of what only a card can show. Without one they are skipped, unless REQUIRE_GPU=1 says that there must be one.

GPU_TESTS_DEVICE=cpu rehearses them anywhere: what they check holds on a CPU as well.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

from tiny_flow_models import save_tiny_flux, save_tiny_sd3
from tiny_models import save_tiny_sd15, save_tiny_sdxl, tiny_row
from worker.forward import Toolbox
from worker.gpu import Device, choose_device
from worker.pipelines.loading import load_pipeline
from worker.tuning.store import Measured, Origin

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
FAMILIES = {
    "sd15": (save_tiny_sd15, {}),
    "sdxl": (save_tiny_sdxl, {}),
    "flux": (lambda folder: save_tiny_flux(folder, guidance_embeds=True), {"guidance": "embedded"}),
    "sd3": (save_tiny_sd3, {}),
}


@pytest.fixture(scope="session")
def card() -> Device:
    """Return the device under test."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        reason = "there is no CUDA device"
        if os.environ.get("REQUIRE_GPU"):
            pytest.fail(reason)
        pytest.skip(reason)
    return choose_device(DEVICE)


@pytest.fixture(scope="session")
def models(card):
    """Return, by family, folder, row and pipeline of a tiny random model, optimised as a worker on this card has it."""
    made = {}
    with tempfile.TemporaryDirectory() as name:
        store = Measured(Path(name) / "tuning", Origin.of(card))
        toolbox = Toolbox.of("auto", card, store=store, cache_dir=None, max_batch=8)
        for family, (save, fields) in FAMILIES.items():
            folder = save(Path(name) / family)
            row = tiny_row(folder, family=family, max_sequence_length=40, **fields)
            made[family] = folder, row, load_pipeline(row, models_dir=folder, device=card.torch, toolbox=toolbox)
        yield made
