"""A model is loaded as the best memory plan that fits says, and refused with the numbers when none does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from farm.errors import ModelBroken
from farm.plans import Precision, Where, plan_for_row
from farm.weights import Hub, Weights
from original_layouts import comfy_flux, compvis, write
from tiny_flow_models import save_tiny_flux
from tiny_models import save_tiny_sd15, tiny_row, tiny_unit
from worker.engine import Engine
from worker.pipelines import loading
from worker.pipelines.fitting import loads_on_device, memory_of, sizes_in, with_safe_vae
from worker.pipelines.loading import load_pipeline

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a small SD 1.5."""
    return save_tiny_sd15(tmp_path_factory.mktemp("models") / "tiny")


def files_of(row, models_dir):
    """Find the files of a local model."""
    return Weights(models_dir, Hub(is_asked=False)).model(row)


def render(pipeline):
    """Render one image."""
    engine = Engine(lambda _: pipeline, max_batch=2)
    engine.start()
    rendered = engine.submit(tiny_unit()).result(timeout=60)
    engine.stop()
    return rendered


def changed(monkeypatch, name, **fields):
    """Have plans in which one component is planned otherwise."""
    real = loading.plan_model

    def plan_model(*args, **kwargs):
        plan = real(*args, **kwargs)
        parts = (replace(part, **fields) if part.name == name else part for part in plan.components)
        return replace(plan, components=tuple(parts))

    monkeypatch.setattr(loading, "plan_model", plan_model)


def test_too_little_memory(folder):
    """A model that does not fit is refused before it is loaded, with what it needs and what there is."""
    with pytest.raises(
        ModelBroken, match=r"model tiny \(.*\): tiny does not fit: an image of 16x16 at a time needs .* GiB"
    ):
        load_pipeline(tiny_row(folder), models_dir=folder.parent, device=CPU, memory_bytes=2**20)


def test_a_cpu_keeps_all_in_float32(folder):
    """Where there is room enough nothing is changed."""
    pipeline = load_pipeline(tiny_row(folder), models_dir=folder.parent, device=CPU)
    assert pipeline.approximations == ()
    assert pipeline.dtype == torch.float32
    assert memory_of(CPU) > GIB


def test_seats_that_memory_allows(folder):
    """The plan caps the seats, and so does the row; the lower cap counts."""
    little = load_pipeline(tiny_row(folder), models_dir=folder.parent, device=CPU, memory_bytes=GIB)
    assert little.max_batch is not None
    few = load_pipeline(tiny_row(folder, max_batch=2), models_dir=folder.parent, device=CPU, memory_bytes=GIB)
    assert few.max_batch == 2


def test_evicted_text_encoder_renders_the_same(folder, monkeypatch):
    """A text encoder that lives elsewhere and visits changes no pixel."""
    row = tiny_row(folder)
    resident = render(load_pipeline(row, models_dir=folder.parent, device=CPU))
    changed(monkeypatch, "text_encoder", where=Where.EVICTED)
    visiting = render(load_pipeline(row, models_dir=folder.parent, device=CPU))
    assert np.array_equal(visiting.pixels, resident.pixels)
    assert visiting.approximations == ()


def test_quantised_denoiser_is_told(folder, monkeypatch):
    """What loses bits is named with the image."""
    changed(monkeypatch, "unet", storage=Precision.FP8)
    rendered = render(load_pipeline(tiny_row(folder), models_dir=folder.parent, device=CPU))
    assert rendered.approximations == ("unet in fp8",)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_sizes_are_the_same_in_both_layouts(family, tmp_path):
    """A single file is planned for as the folder that it was made from."""
    if family == "sd15":
        folder = save_tiny_sd15(tmp_path / "folder")
        path = write(compvis, folder, tmp_path / "model.safetensors")
    else:
        folder = save_tiny_flux(tmp_path / "folder", guidance_embeds=True)
        path = write(comfy_flux, folder, tmp_path / "model.safetensors")
    scheduler = "flow_euler" if family == "flux" else "euler"
    rows = [tiny_row(source, family=family, scheduler=scheduler, config="folder") for source in (folder, path)]
    ours, theirs = ({size.name: size for size in sizes_in(files_of(row, tmp_path)).components} for row in rows)
    assert ours.keys() == theirs.keys()
    for name, size in ours.items():
        # CompVis' files count the positions of the text encoder, which are no weights.
        assert theirs[name].num_values == pytest.approx(size.num_values, abs=77)
        assert (theirs[name].role, theirs[name].width) == (size.role, size.width)


def card_plan(folder, **fields):
    """Return the plan for a card with 8 GiB."""
    row = tiny_row(folder, **fields)
    return plan_for_row(row, sizes_in(files_of(row, folder.parent)), vram_bytes=8 * GIB)


def test_vae_that_would_overflow_computes_in_bf16(folder):
    """Where fp16 overflows it is bf16, of the same size, and nothing else changes."""
    plan = card_plan(folder)
    assert plan.component("vae").compute is Precision.FP16
    assert with_safe_vae(plan, overflows=False) is plan
    safe = with_safe_vae(plan, overflows=True)
    assert (safe.component("vae").compute, safe.component("vae").storage) == (Precision.BF16, Precision.BF16)
    assert safe.component("unet") == plan.component("unet")
    assert safe.peak_bytes == plan.peak_bytes


def test_where_parts_are_read_to(folder):
    """What stays as it is goes straight to the device; what is cast to 8 bits on the way, or lives in RAM, does not."""
    plan = card_plan(folder)

    def lands_on_device(**fields):
        part = replace(plan.component("unet"), **fields)
        return loads_on_device(replace(plan, components=(part,)), "unet")

    assert lands_on_device()
    assert lands_on_device(storage=Precision.NF4)
    assert not lands_on_device(storage=Precision.FP8)
    assert not lands_on_device(where=Where.EVICTED)
    assert not lands_on_device(where=Where.STREAMED)
