"""What measurements are kept under: one key for all that costs the same, another for what does not."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm.jobs import ControlNet
from farm.prompts import Lora
from tiny_models import save_tiny_sd15, tiny_row, tiny_unit
from worker.pipelines.loading import load_pipeline
from worker.seat import BatchKey, Seat
from worker.tuning.cost import architecture_of, cost_facts, curve_key, memory_key


class Model:
    """A model of which only the size of latents is asked."""

    architecture = "sd15-0123456789abcdef-resident"
    dtype = torch.float16

    def latent_shape(self, height, width):
        return (4, height // 8, width // 8)


def key(pipeline=None, **fields):
    """Return the key under which a unit's steps are kept."""
    unit = replace(tiny_unit(width=512, height=512, guidance_scale=7.0), **fields)
    return curve_key(cost_facts(pipeline or Model(), Seat(unit, Future(), BatchKey.of(unit), 0.0)))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "another"},
        {"seed": 9},
        {"num_inference_steps": 50},
        {"scheduler": "euler"},
        {"guidance_scale": 3.0},
        {"loras": (Lora("style", 0.5),)},
        {"width": 768, "height": 384},
        {"width": 520},
    ],
    ids=str,
)
def test_what_costs_the_same_is_measured_once(fields):
    """Words, seeds, samplers, LoRAs and the sides of a picture change nothing that batches are chosen by."""
    assert key(**fields) == key()


@pytest.mark.parametrize(
    "fields",
    [{"guided": False}, {"width": 1024}, {"width": 768}, {"controlnets": (ControlNet("edges", "x", 1.0, 0, 1),)}],
    ids=str,
)
def test_what_costs_more_is_measured_for_itself(fields):
    """Guidance doubles rows, more pixels and ControlNets add work."""
    assert key(**fields) != key()


def test_every_fact_of_a_model_counts():
    """Another architecture, or another precision to compute in, is another curve."""
    bf16, other = Model(), Model()
    bf16.dtype = torch.bfloat16
    other.architecture = "sdxl-0123456789abcdef-resident"
    assert len({key(), key(bf16), key(other)}) == 3


def test_curves_and_limits_do_not_share_a_key():
    """What steps take and what memory allows are two entries."""
    unit = tiny_unit()
    facts = cost_facts(Model(), Seat(unit, Future(), BatchKey.of(unit), 0.0))
    assert curve_key(facts) != memory_key(facts)


@given(side=st.integers(8, 512), more=st.floats(1.0, 1.15))
def test_sizes_of_one_bucket_are_near_each_other(side, more):
    """No two pictures that share a curve differ by more than half an octave in pixels; few keys cover all sizes."""
    width = round(side * more) * 8
    same = key(width=side * 8, height=side * 8) == key(width=width, height=width)
    if same:
        assert (width / (side * 8)) ** 2 < 2**0.51
    if (width / (side * 8)) ** 2 > 2**0.51:
        assert not same


def test_fine_tunes_share_an_architecture_and_others_do_not(tmp_path, tiny_pipeline):
    """The build counts, and not what was learnt: two models of one config are one, a wider one is another."""

    def load(name, **options):
        folder = save_tiny_sd15(tmp_path / name, **options)
        return load_pipeline(tiny_row(folder), models_dir=folder, device=torch.device("cpu"))

    tuned, wider = load("tuned", seed=5), load("wider", block_out_channels=(8, 24))
    assert tuned.model_hash != tiny_pipeline.model_hash
    assert tuned.architecture == tiny_pipeline.architecture != wider.architecture
    assert tuned.architecture.startswith("sd15-")
    assert tuned.architecture.endswith("-resident")


def test_precision_and_place_of_weights_are_part_of_an_architecture():
    """Weights in 8 bits, or in RAM, make other steps."""
    wide = torch.nn.Linear(2, 2)
    narrow = torch.nn.Linear(2, 2).to(torch.bfloat16)
    names = [
        architecture_of("flux", wide, kept="resident"),
        architecture_of("flux", narrow, kept="resident"),
        architecture_of("flux", wide, kept="bf16-streamed"),
    ]
    assert len(set(names)) == 3
