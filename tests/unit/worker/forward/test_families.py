"""Whole models with everything on but the compiler: diffusers' pictures in mixed company, and invariant bytes."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch

from farm.catalog import Catalog
from farm.prompts import Lora
from farm.requests import Reproducibility
from flow_parity import FlowStudio
from lora_files import save_peft_lora
from parity import BROWNIAN_WARNING, SOME_SCHEDULERS, Studio, units_of
from recorded_forwards import Replayer
from tiny_flow_models import save_tiny_flux, save_tiny_sd3
from tiny_models import save_tiny_sd15, save_tiny_sdxl, tiny_row, tiny_unit
from worker.forward import Optimisation, Toolbox
from worker.forward.graphs import Graphs
from worker.lora import LoraLibrary
from worker.pipelines.loading import load_pipeline

LORAS = (Lora("style", 0.8),)


class Notes(dict):
    """A store of measurements."""

    def put(self, key, value, *, rounds=1):
        self[key] = value


@pytest.fixture
def replayer():
    """Return a stand-in for the driver."""
    return Replayer()


@pytest.fixture
def toolbox(replayer):
    """Return everything but the compiler, as if there were a card; what is fastest is chance."""
    turns = iter(range(10**6))
    return Toolbox(
        chosen=frozenset(Optimisation) - {Optimisation.COMPILE},
        on_card=True,
        card="NVIDIA GeForce RTX 4090",
        store=Notes(),
        timer=lambda work: (work(), 1 + next(turns) * 7 % 5)[1],
        graphs=Graphs(replayer),
    )


def load(folder, toolbox=None, *, family="sd15", **options):
    """Load a tiny model on the CPU."""
    row = tiny_row(folder, family=family, max_sequence_length=40)
    return load_pipeline(row, models_dir=folder, device=torch.device("cpu"), toolbox=toolbox, **options)


SAVED = {
    "sd15": save_tiny_sd15,
    "sdxl": save_tiny_sdxl,
    "flux": lambda folder: save_tiny_flux(folder, guidance_embeds=True),
    "sd3": save_tiny_sd3,
}


@pytest.mark.filterwarnings(BROWNIAN_WARNING)
@pytest.mark.parametrize("family", SAVED)
def test_pictures_are_diffusers_with_everything_on(family, tmp_path, toolbox, replayer):
    """In lanes that fill and empty, recorded, padded and fused, each picture is the one that diffusers makes."""
    folder = SAVED[family](tmp_path / "tiny")
    if family in {"sd15", "sdxl"}:
        studio = Studio.load(folder, family=family)
        units = units_of(SOME_SCHEDULERS, seed=1)
    else:
        pipelines = {
            "flux": (diffusers.FluxPipeline, diffusers.FluxImg2ImgPipeline),
            "sd3": (diffusers.StableDiffusion3Pipeline, diffusers.StableDiffusion3Img2ImgPipeline),
        }
        reference, image_to_image = pipelines[family]
        studio = FlowStudio(
            type(load(folder, family=family)), reference.from_pretrained(folder), image_to_image=image_to_image
        )
        guidance = 1.0 if family == "flux" else 5.0
        units = [
            tiny_unit(index=i, seed=i, scheduler="flow_euler", guidance_scale=guidance, num_inference_steps=2 + i % 3)
            for i in range(5)
        ]
    studio.ours = load(folder, toolbox, family=family)
    studio.ours.decode = studio._decode
    studio.assert_all_same(units, seed=2, max_batch=5)
    assert replayer.num_replays > 5
    assert {"graphs", "attention"} <= set(studio.ours.forward.optimisations)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_invariant_bytes_are_those_of_a_worker_without_any_optimisation(family, tmp_path, toolbox, replayer):
    """Alone, in company, before and after fast lanes: bit for bit, whatever FARM_OPTIMISE says."""
    folder = SAVED[family](tmp_path / "tiny")
    scheduler = "euler" if family == "sd15" else "flow_euler"
    units = [
        tiny_unit(index=i, seed=i, scheduler=scheduler, prompt="a b c"[: 1 + 2 * (i % 3)], guidance_scale=g)
        for i, g in enumerate([5.0, 5.0, 5.0] if family == "sd15" else [1.0, 1.0, 1.0])
    ]
    invariant = [replace(unit, reproducibility=Reproducibility.INVARIANT) for unit in units]
    images = []
    for each in (None, toolbox):
        studio = Studio.__new__(Studio)
        studio.ours, studio._images = load(folder, each, family=family), {}
        studio.ours.decode = studio._decode
        studio.assert_company_is_of_no_account(invariant, max_batch=3)
        mixed = studio.render([*units, *invariant], seed=4, max_batch=3)[len(units) :]
        images.append([studio.by_us(rendered) for rendered in mixed])
    for plain, fast in zip(*images, strict=True):
        assert torch.equal(plain, fast)
    assert replayer.num_replays


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_loras_come_and_go_in_weights_that_stay_where_they_are(family, tmp_path, toolbox, replayer):
    """A patch moves no tensor, so that recordings made before it and fused projections compute with it, and without."""
    folder = SAVED[family](tmp_path / "tiny")
    reference = diffusers.DiffusionPipeline.from_pretrained(folder)
    (tmp_path / "loras").mkdir()
    save_peft_lora(reference, tmp_path / "loras" / "style.safetensors", seed=1, with_text=False)
    library = LoraLibrary(Catalog(), tmp_path / "loras", fetch=lambda _row: tmp_path)
    plain = load(folder, family=family, loras=library)
    fast = load(folder, toolbox, family=family, loras=library)
    places = {name: each.data_ptr() for name, each in fast.forward.module.named_parameters()}
    guidance = 5.0 if family == "sd15" else 1.0
    unit = tiny_unit(guidance_scale=guidance, scheduler="euler" if family == "sd15" else "flow_euler")
    made = []
    for loras in ((), LORAS, ()):
        pictures = []
        for model in (plain, fast):
            studio = Studio.__new__(Studio)
            studio.ours, studio._images = model, {}
            model.decode = studio._decode
            (rendered,) = studio.render([replace(unit, loras=loras)], seed=0, max_batch=2)
            pictures.append(studio.by_us(rendered))
        torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=1e-4)
        made.append(pictures[1])
        assert {name: each.data_ptr() for name, each in fast.forward.module.named_parameters()} == places
    assert torch.equal(made[0], made[2])
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    assert len(replayer.recordings) == 1


def test_decoding_without_room_costs_recordings_and_not_the_image(tmp_path, toolbox):
    """What recordings hold is given up before the engine unloads a model or shrinks a lane."""
    model = load(save_tiny_sd15(tmp_path / "tiny"), toolbox)
    studio = Studio.__new__(Studio)
    studio.ours, studio._images = model, {}
    studio.render([tiny_unit()], seed=0, max_batch=2)
    assert len(toolbox.graphs) == 1
    coder, failures = model.coder.decode, [torch.OutOfMemoryError("full")]

    def decode(latents):
        if failures:
            raise failures.pop()
        return coder(latents)

    model.coder.decode = decode
    latents = torch.zeros(1, *model.latent_shape(16, 16))
    with torch.inference_mode():
        assert torch.equal(model.decode(latents), coder(latents))
    assert len(toolbox.graphs) == 0


def test_what_costs_differently_is_measured_differently(tmp_path, toolbox):
    """Curves of steps are kept by architecture, and a model that is optimised is not the one that is not."""
    folder = save_tiny_sd15(tmp_path / "tiny")
    assert load(folder, toolbox).architecture == load(folder).architecture + "-attention-fused-graphs"
