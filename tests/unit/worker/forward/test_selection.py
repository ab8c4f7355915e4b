"""Which optimisations a model gets: what its card has no use for, or its plan rules out, is left out and said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from farm.plans import Precision, Where, plan_for_row
from farm.plans.published import PUBLISHED
from farm.plans.sizes import ModelSizes
from tiny_models import tiny_row
from worker.forward.options import ON_ANY_CARD, Optimisation
from worker.forward.selection import Case, select

GIB = 2**30
COMPILE, GRAPHS, FUSED, ATTENTION, FP16, SAGE = Optimisation
TIED = {COMPILE, GRAPHS, FUSED}


def plan_of(gibibytes, family="sdxl", name="sdxl", **options):
    """Return the plan of a published model on a card of so much memory."""
    row = tiny_row("x", family=family, width=1024, height=1024, guidance_scale=5.0)
    return plan_for_row(row, ModelSizes(PUBLISHED[name], "table"), vram_bytes=gibibytes * GIB, **options)


def a_case(**fields):
    """Return SDXL on a 4090 with 24 GiB; override any field."""
    facts = {
        "on_card": True,
        "card": "NVIDIA GeForce RTX 4090",
        "dtype": torch.float16,
        "plan": plan_of(24),
        "denoiser": "unet",
        "max_batch": 8,
    }
    return Case(**{**facts, **fields})


def moved(plan, **fields):
    """Return `plan` with the denoiser kept in another way."""
    parts = tuple(replace(part, **fields) if part.name == "unet" else part for part in plan.components)
    return replace(plan, components=parts)


def test_a_4090_gets_it_all():
    """SDXL on 24 GiB, with nothing set: everything that is exact enough."""
    selection = select(ON_ANY_CARD, a_case())
    assert selection.active == ON_ANY_CARD
    assert not selection.refused


@pytest.mark.parametrize("where", [Where.STREAMED, Where.EVICTED])
def test_weights_that_travel_can_be_neither_recorded_nor_compiled(where):
    """Their hooks move weights from place to place at each step."""
    selection = select(ON_ANY_CARD, a_case(plan=moved(plan_of(24), where=where)))
    assert selection.active == {ATTENTION, FP16}
    assert selection.refused == dict.fromkeys(TIED, f"the unet is {where}")


@pytest.mark.parametrize("storage", [Precision.FP8, Precision.NF4])
def test_weights_that_are_widened_at_each_step_are_left_alone(storage):
    """Hooks, or another library's layers, replace them while they compute."""
    selection = select(ON_ANY_CARD, a_case(plan=moved(plan_of(24), storage=storage)))
    assert selection.refused == dict.fromkeys(TIED, f"the unet is kept in {storage}")


def test_weights_that_compute_in_eight_bits_are_recorded_and_compiled_and_not_laid_together():
    """They are slower than sixteen bits without a compiler, and each has scales of its own."""
    selection = select(ON_ANY_CARD, a_case(plan=moved(plan_of(24), storage=Precision.INT8_DYNAMIC)))
    assert selection.active == ON_ANY_CARD - {FUSED}
    assert selection.refused == {FUSED: "the unet is kept in int8-dynamic"}


def test_recordings_need_room_beside_the_other_phases():
    """What steps work in is held for ever; where decoding has no room beside it, nothing is recorded."""
    plan = plan_of(12)
    tight = replace(plan, vram_bytes=plan.peak_at(8) + plan.margin_bytes)
    assert select(frozenset({GRAPHS}), a_case(plan=tight)).active == set()
    assert "would be held at 8 seats" in select(frozenset({GRAPHS}), a_case(plan=tight)).refused[GRAPHS]
    assert select(frozenset({GRAPHS}), a_case(plan=tight, max_batch=1)).active == {GRAPHS}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"card": "NVIDIA H100 80GB HBM3"}, "only GeForce cards"),
        ({"dtype": torch.bfloat16}, "computes in bfloat16"),
        ({"allow_lossy": False}, "forbids approximations"),
        ({"on_card": False}, "only GeForce cards"),
    ],
)
def test_adding_up_in_fp16_is_for_fp16_on_geforce_cards(fields, reason):
    """Other cards are as fast without, other precisions have no such sums, and some rows want none."""
    assert reason in select(frozenset({FP16}), a_case(**fields)).refused[FP16]


def test_a_cpu_can_do_what_needs_no_card():
    """Whoever names an optimisation there gets it, if it is not one of the driver's."""
    selection = select(frozenset(Optimisation), a_case(on_card=False, plan=None, dtype=torch.float32))
    assert selection.active == {COMPILE, FUSED, ATTENTION}
    assert selection.refused[GRAPHS] == "there is no CUDA device"


def test_layers_that_cannot_be_fused_are_not():
    """SD 3's are of another kind."""
    assert "another kind" in select(frozenset({FUSED}), a_case(can_fuse=False)).refused[FUSED]


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({"has_lossy_kernel": True}, {SAGE}),
        ({"has_lossy_kernel": False}, set()),
        ({"has_lossy_kernel": True, "allow_lossy": False}, set()),
    ],
)
def test_attention_in_8_bits_needs_the_library_and_leave(fields, active):
    """Neither a missing library nor a row that forbids it stops the model from loading."""
    assert select(frozenset({SAGE}), a_case(**fields)).active == active


def test_the_summary_says_what_is_on_and_why_the_rest_is_not():
    """One line of the log tells it all."""
    selection = select(frozenset({GRAPHS, FUSED}), a_case(can_fuse=False))
    assert selection.summary == "graphs; not fused: its layers have projections of another kind"
    assert select(frozenset({FUSED}), a_case(can_fuse=False)).summary.startswith("nothing; not fused")
