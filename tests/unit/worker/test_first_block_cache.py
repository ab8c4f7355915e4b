"""The first-block cache of Flux: diffusers' images at the same threshold, each row by itself, nothing left behind."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import diffusers
import pytest
import torch

from acceleration_parity import AcceleratedFlowStudio, counted
from farm.jobs import Acceleration
from farm.requests import Reproducibility
from parity import MAX_DIFFERENCE
from tiny_flow_models import save_tiny_flux
from tiny_models import tiny_unit
from worker.caching import Memory
from worker.engine import Engine
from worker.pipelines.flux import FluxPipeline

THRESHOLDS = (0.7, 0.75, 0.8, 0.9)
"""Random models change more from step to step than real ones do, which take 0.1."""
STEPS = 8


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Set up a tiny Flux of two blocks of either kind."""
    folder = save_tiny_flux(tmp_path_factory.mktemp("models") / "dev", guidance_embeds=True, depth=2)
    reference = diffusers.FluxPipeline.from_pretrained(folder)
    return AcceleratedFlowStudio(FluxPipeline, reference, diffusers.FluxImg2ImgPipeline)


def units_of_flux(*, true_cfg_scale=1.0, **fields):
    """Return a unit for each threshold, and one without the cache."""
    return [
        tiny_unit(
            index=index,
            seed=index,
            scheduler="flow_euler",
            num_inference_steps=STEPS + index,
            true_cfg_scale=true_cfg_scale,
            guided=true_cfg_scale > 1,
            acceleration=Acceleration(first_block_cache=threshold),
            **fields,
        )
        for index, threshold in enumerate((*THRESHOLDS, 0.0))
    ]


def rows_of(studio, unit):
    """Return how many rows the first and the last block of the transformer see in all, and the image."""
    transformer = studio.reference.transformer
    first, last = transformer.transformer_blocks[0], transformer.single_transformer_blocks[-1]
    with counted(first) as firsts, counted(last) as lasts:
        (rendered,) = studio.render([unit], seed=0, max_batch=3)
    return sum(firsts), sum(lasts), rendered


@pytest.mark.parametrize("true_cfg_scale", [1.0, 3.0], ids=["unguided", "guided"])
def test_images_are_those_of_diffusers(studio, true_cfg_scale):
    """Alone and in a lane with other thresholds, phases and none, at the same threshold the image is diffusers'."""
    units = units_of_flux(true_cfg_scale=true_cfg_scale)
    for unit in units:
        studio.assert_all_same([unit], seed=0, max_batch=1)
    studio.assert_all_same(units, seed=3, max_batch=4)


def test_blocks_are_skipped(studio):
    """The larger the threshold the fewer calls of the other blocks, of the first one none is spared; and it shows."""
    plain = units_of_flux()[-1]
    lasts = []
    for threshold in (0.0, *THRESHOLDS):
        unit = replace(plain, acceleration=Acceleration(first_block_cache=threshold))
        first, last, _ = rows_of(studio, unit)
        assert first == plain.num_inference_steps
        lasts.append(last)
    assert lasts[0] == plain.num_inference_steps
    assert lasts == sorted(lasts, reverse=True)
    assert 1 < lasts[-1] < lasts[1] < lasts[0]
    cached = replace(plain, acceleration=Acceleration(first_block_cache=THRESHOLDS[-1]))
    assert (studio.by_diffusers(cached) - studio.by_diffusers(plain)).abs().max() > 10 * MAX_DIFFERENCE


def test_invariant_bytes_do_not_depend_on_company(studio):
    """Whoever else skips what: not a bit differs, with and without the cache."""
    units = units_of_flux(true_cfg_scale=3.0, reproducibility=Reproducibility.INVARIANT)
    studio.assert_company_is_of_no_account(units, max_batch=3)


def test_rows_that_are_spared_at_a_fixed_shape(studio):
    """Under `invariant` the other blocks run row by row for those that need them, not for the rows that fill up."""
    unit = units_of_flux(reproducibility=Reproducibility.INVARIANT)[2]
    first, last, _ = rows_of(studio, unit)
    assert first == 3 * unit.num_inference_steps
    assert last < unit.num_inference_steps


def test_the_recipe_is_told(studio):
    """The cache stands among the approximations of its image."""
    (image, *_) = studio.render(units_of_flux()[2:], seed=0, max_batch=2)
    assert image.approximations == ("first-block cache at 0.8",)


def test_nothing_is_left_behind(studio, monkeypatch):
    """When an image is done or cancelled, what was kept for it is free."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    note = Memory.note

    def watched(memory, side, name, feature):
        note(memory, side, name, feature)
        alive.add(memory._noted[side, name])

    monkeypatch.setattr(Memory, "note", watched)
    engine = Engine(lambda _: studio.ours, max_batch=2)
    done, cancelled = units_of_flux()[2:4]
    future = engine.submit(done)
    engine.submit(replace(cancelled, num_inference_steps=90, job="job_cancelled"))
    with torch.inference_mode():
        while not future.done():
            engine._pass(engine._next_lane())
        assert alive
        engine.cancel("job_cancelled")
        engine._drop_cancelled()
    gc.collect()
    assert not alive


def test_only_what_a_step_ended_with_is_kept():
    """A note counts from `keep` on; what a try noted that was not the last one never does."""
    memory, feature = Memory(), torch.ones(1)
    memory.note("toward", "a", feature)
    memory.start_over()
    memory.note("toward", "b", feature)
    assert memory.recall("toward", "b") is None
    memory.keep()
    assert memory.recall("toward", "a") is None
    assert memory.recall("without", "b") is None
    assert torch.equal(memory.recall("toward", "b"), feature)
    memory.clear()
    assert memory.recall("toward", "b") is None


def test_a_failed_step_leaves_no_trace(studio, monkeypatch):
    """What a forward noted before the step failed is not there when it is made again."""
    unit = units_of_flux()[2]
    (rendered,) = studio.render([unit], seed=0, max_batch=1)
    expected = studio.by_us(rendered)
    predict = studio.ours.predict
    calls = []

    def failing(*args, **kwargs):
        output = predict(*args, **kwargs)
        calls.append(None)
        if len(calls) % 2:
            raise torch.OutOfMemoryError
        return output

    monkeypatch.setattr(studio.ours, "predict", failing)
    monkeypatch.setattr(Engine, "_make_room", lambda *_args: True)
    (again,) = studio.render([unit], seed=0, max_batch=1)
    assert len(calls) == 2 * unit.num_inference_steps
    assert studio.by_us(again).equal(expected), "else a residual has been compared with itself"
