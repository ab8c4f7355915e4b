"""Who stays on the device, who goes, what it cost, and that what goes is really gone."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch

from tiny_flow_models import save_tiny_flux
from tiny_models import tiny_row
from worker.pipelines.loading import load_pipeline
from worker.residents import BROKEN_S, Residents


class Clock:
    """A clock that loading moves."""

    now = 0.0

    def __call__(self):
        return self.now


def residents(load=lambda name: name, *, fits=lambda names: len(names) <= 2, clock=None):
    """Return residents with room for two, whose pipelines are their names."""
    return Residents(load, fits=fits, clock=clock or Clock())


def test_the_least_recently_used_goes_first():
    """Using a model, not having loaded it, keeps it."""
    some = residents()
    for name in ("a", "b", "a", "c"):
        some.get(name)
    assert some.names == ("a", "c")


def test_a_broken_model_is_looked_at_again_however_often_it_is_asked_for():
    """Whoever tries again every second must not keep alive the memory of what has long been mended."""
    clock, mended = Clock(), False

    def load(name):
        if not mended:
            raise ValueError("no weights")
        return name

    some = residents(load, clock=clock)
    for clock.now in range(int(BROKEN_S)):
        with pytest.raises(ValueError, match="no weights") as caught:
            some.get("a")
        some.remember_broken("a", caught.value)
        mended = True
    clock.now = BROKEN_S
    assert some.get("a") == "a"


def test_as_many_go_as_must():
    """Small ones stay beside a newcomer while they fit; a large one drives all out, and small ones drive it out."""
    sizes = {"a": 1, "b": 1, "c": 1, "middle": 2, "large": 4}
    some = residents(fits=lambda names: sum(sizes[name] for name in names) <= 4)
    for name in ("a", "b", "c"):
        some.get(name)
    assert some.names == ("a", "b", "c")
    assert some.has_room_for("a")
    assert not some.has_room_for("middle")
    some.get("middle")
    assert some.names == ("b", "c", "middle")
    some.get("large")
    assert some.names == ("large",)
    some.get("a")
    assert some.names == ("a",)
    assert (some.loads, some.unloads) == (6, 5)


def test_what_loading_costs_is_measured():
    """Seconds add up, and a model's typical load forgets its first one, which had to download."""
    clock = Clock()
    seconds = iter([300.0, 4.0, 2.0, 6.0])

    def load(name):
        clock.now += 1.0 if name == "other" else next(seconds)
        return name

    some = residents(load, fits=lambda names: len(names) <= 1, clock=clock)
    before = some.load_s
    for _ in range(4):
        some.get("model")
        some.get("other")
    assert some.load_s == {"model": 5.0, "other": 1.0}
    assert some.loading_s == 316.0
    assert before == {}, "what was handed out to other threads has changed"


def test_models_that_ran_out_of_memory_together_are_kept_apart():
    """The sums said that they fit, and were wrong; with others either may still share, and some time later again."""
    clock = Clock()
    some = residents(fits=lambda _: True, clock=clock)
    for name in ("a", "b"):
        some.get(name)
    assert some.keep_only("b")
    assert not some.has_room_for("a")
    assert some.has_room_for("c")
    some.get("c")
    some.get("a")
    assert some.names == ("c", "a")
    assert not some.has_room_for("b")
    clock.now = 600.0
    assert some.has_room_for("b")


def test_a_failed_load_is_no_load():
    """It costs nothing in the books."""

    def load(_name):
        raise ValueError("broken")

    some = residents(load)
    with pytest.raises(ValueError, match="broken"):
        some.get("a")
    assert (some.loads, some.load_s, some.names) == (0, {}, ())


def test_unloading_is_logged_with_its_reason(caplog):
    """One line for each model that goes."""
    some = residents()
    with caplog.at_level(logging.INFO):
        for name in ("a", "b", "c"):
            some.get(name)
        some.keep_only("c")
    assert [record.message for record in caplog.records if record.action == "model_unloaded"] == [
        "model a unloaded: making room for c",
        "model b unloaded: out of memory",
    ]


def test_an_unloaded_model_is_gone_before_the_next_comes(tmp_path):
    """Pipelines that refer to themselves would wait for a collection, weights and all, while the next is loaded."""
    save_tiny_flux(tmp_path / "tiny", guidance_embeds=True)
    row = tiny_row(tmp_path / "tiny", family="flux", guidance="embedded")
    weights = []

    def load(_name):
        assert all(weight() is None for weight in weights), "both are in memory"
        pipeline = load_pipeline(row, models_dir=tmp_path, device=torch.device("cpu"))
        weights.append(weakref.ref(pipeline))
        return pipeline

    some = residents(load, fits=lambda names: len(names) <= 1)
    gc.disable()  # nobody else may do it
    try:
        for name in ("one", "two", "three"):
            some.get(name)
    finally:
        gc.enable()
    assert len(weights) == 3
