"""Seats of lanes, measured on a real card: real times, real memory."""

from __future__ import annotations

import logging

import pytest
import torch

from farm.catalog import Catalog
from tiny_models import tiny_unit
from worker.bench.memory import cap
from worker.bench.published import builders
from worker.bench.random_weights import RandomModel
from worker.bench.units import native_unit
from worker.engine import Engine
from worker.forward import Toolbox
from worker.tuning.caps import Caps
from worker.tuning.store import Measured, Origin

pytestmark = pytest.mark.gpu


def render(pipeline, units, folder, card, *, max_batch):
    """Render `units` on an engine that measures; return its counters."""
    engine = Engine(lambda _: pipeline, max_batch=max_batch, caps=Caps(Measured(folder, Origin.of(card))))
    engine.start()
    try:
        for future in [engine.submit(unit) for unit in units]:
            assert future.result(timeout=500)
        return engine.stats()
    finally:
        engine.stop()


def measurements(caplog):
    """Return what the log says of measured lanes."""
    return [each.getMessage() for each in caplog.records if getattr(each, "action", "") == "batch_measured"]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "sd3"])
def test_every_family_is_measured_once(card, models, family, tmp_path, caplog):
    """The first worker leaves a curve for the card's kind, the second one reads it."""
    _, _, pipeline = models[family]
    units = [tiny_unit(index=index, seed=index, guided=family == "sd15") for index in range(4)]
    with caplog.at_level(logging.INFO, "worker.tuning"):
        first = render(pipeline, units, tmp_path, card, max_batch=4)
        assert len(measurements(caplog)) == 1
        caplog.clear()
        second = render(pipeline, units, tmp_path, card, max_batch=4)
    assert list(first.caps.values()) == list(second.caps.values())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    (path,) = tmp_path.glob("*.json")
    assert card.kind.split()[0] in path.name


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_full_size_models_are_measured(card, name, tmp_path, caplog):
    """The curve of a model as it ships ends before its time does; the log has it, for bench/README.md."""
    if card.torch.type == "cpu":
        pytest.skip("takes a CPU an hour")
    row = Catalog().row(name)
    store = Measured(tmp_path / "kernels", Origin.of(card))
    toolbox = Toolbox.of("auto", card, store=store, cache_dir=None, max_batch=32)
    pipeline = RandomModel(row, builders(name), card, toolbox=toolbox).load()
    with caplog.at_level(logging.INFO, "worker.tuning"):
        units = [native_unit(row, index, num_inference_steps=4) for index in range(4)]
        stats = render(pipeline, units, tmp_path, card, max_batch=32)
    (told,) = measurements(caplog)
    assert "ended by time" not in told
    assert stats.failed == 0


def test_memory_that_ends_while_measuring_costs_no_image(card, tmp_path, caplog):
    """A full-size model where few seats fit: the limit is learnt before anybody rides, and all images come."""
    if card.torch.type == "cpu":
        pytest.skip("a CPU has no cap to set")
    row = Catalog().row("sd15")
    pipeline = RandomModel(row, builders("sd15"), card).load()
    pipeline.max_batch = None
    try:
        render(pipeline, [native_unit(row, 0, num_inference_steps=2)], tmp_path, card, max_batch=1)
        torch.cuda.empty_cache()
        cap(card.torch, torch.cuda.max_memory_allocated() + 2**30)
        with caplog.at_level(logging.INFO, "worker.tuning"):
            units = [native_unit(row, index, num_inference_steps=4) for index in range(16)]
            stats = render(pipeline, units, tmp_path, card, max_batch=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (told,) = measurements(caplog)
    assert "ended by" in told
    assert (stats.failed, stats.images) == (0, 16)
    assert max(stats.caps.values()) < 64
