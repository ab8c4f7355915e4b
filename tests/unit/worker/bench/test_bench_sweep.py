"""Rates of the bare engine, on a tiny model: what is counted, within which window, and what is refused."""

from collections import Counter
from types import SimpleNamespace

import pytest

from farm.errors import FarmError
from tiny_models import tiny_row
from worker.bench import sweep
from worker.bench.driving import Driver
from worker.bench.memory import measure_phases
from worker.bench.sweep import NotFullError, measure_closed, measure_mixed, measure_rate
from worker.bench.units import MIXED_SCHEDULERS, mixed_units, native_unit
from worker.bench.work import Work

WORK = Work(step=1.0, decode=0.5, encode=0.25)


@pytest.fixture
def row(tiny_folder):
    """Return the row of the tiny model, with few steps."""
    return tiny_row(tiny_folder, num_inference_steps=4)


@pytest.fixture(autouse=True)
def _steps_of_milliseconds(monkeypatch):
    """Allow for a unit that comes a step too late: one seat of one step is a large part of so few."""
    monkeypatch.setattr(sweep, "_FULL", 0.8)


def test_a_rate_counts_full_batches_of_steady_state(tiny_pipeline, row):
    """Every step carries the whole batch, and the first batch, which nothing comes before, is not in the window."""
    rate = measure_rate(tiny_pipeline, row, 3, seconds=0.0)
    assert (rate.images, rate.calls, rate.mean_batch) == (2 * 3, 4, 3.0)
    assert rate.images_per_s == rate.images / rate.seconds
    assert min(rate.step_ms, rate.decode_ms) > 0
    assert (rate.peak_bytes, rate.energy) == (None, None)


def test_the_window_lasts_as_long_as_was_asked(tiny_pipeline, row, monkeypatch):
    """A longer window has more batches in it, up to a limit: pixels of all of them are in memory."""
    monkeypatch.setattr(sweep, "_MAX_ROUNDS", 5)
    assert measure_rate(tiny_pipeline, row, 2, seconds=1e6).images == 5 * 2


def test_a_batch_that_the_plan_has_no_seats_for_is_not_measured(tiny_pipeline, row, monkeypatch):
    """What would silently run in smaller steps is no measurement of this size."""
    monkeypatch.setattr(tiny_pipeline, "max_batch", 2)
    with pytest.raises(NotFullError, match="the memory plan has 2 seats"):
        measure_rate(tiny_pipeline, row, 3, seconds=0.0)


def test_steps_that_were_not_full_are_no_measurement(tiny_pipeline, row, monkeypatch):
    """Whatever leaves seats empty, the rate is not told as that of full batches."""

    class Emptier(Driver):
        def __init__(self, pipeline, *, max_batch, clock):
            super().__init__(pipeline, max_batch=max_batch - 1, clock=clock)

    monkeypatch.setattr(sweep, "Driver", Emptier)
    with pytest.raises(NotFullError, match=r"steps carried [12]\.\d\d seats, not 3"):
        measure_rate(tiny_pipeline, row, 3, seconds=0.0)


def test_a_mix_is_of_many_steps_schedulers_and_both_kinds_of_guidance(row):
    """Eight to fifty steps, three schedulers, half of the images unguided; and the same mix every time."""
    units = mixed_units(row, 300)
    assert units == mixed_units(row, 300)
    steps = [unit.num_inference_steps for unit in units]
    assert (min(steps), max(steps)) == (8, 50)
    assert set(Counter(unit.scheduler for unit in units)) == set(MIXED_SCHEDULERS["diffusion"])
    assert 0.4 < sum(unit.guided for unit in units) / len(units) < 0.6
    assert len({(unit.prompt, unit.seed) for unit in units}) == len(units)


def test_a_model_that_cannot_be_guided_is_not(row):
    """What is distilled, or takes the scale as an input, has no unguided half: nobody is guided."""
    distilled = row.model_copy(update={"guidance": "embedded"})
    assert not any(unit.guided for unit in mixed_units(distilled, 20))
    assert not native_unit(row.model_copy(update={"guidance_scale": 1.0}), 0).guided


def test_a_mixed_load_counts_the_work_within_its_window(tiny_pipeline, row):
    """The window holds whole images and parts of them, and less than all that was rendered."""
    few = row.model_copy(update={"max_steps": 9})
    mixed = measure_mixed(tiny_pipeline, few, WORK, 2, images=16)
    everything = sum(WORK.image(calls=u.num_inference_steps, guided=u.guided) for u in mixed_units(few, 16))
    assert 0 < mixed.images < 16
    assert 0 < mixed.tflop < everything
    assert mixed.tflops == mixed.tflop / mixed.seconds


def test_a_closed_job_is_measured_from_end_to_end(tiny_pipeline, row):
    """The rate of a whole job has its first and its last image in it."""
    ticks = iter(range(1000))
    assert measure_closed(tiny_pipeline, row, 2, images=6) > 0
    with Driver(tiny_pipeline, max_batch=2, clock=lambda: next(ticks)) as driver:
        futures = driver.submit([native_unit(row, i) for i in range(4)])
        driver.wait(futures)
        assert driver.ended_at(futures[2:]) > driver.ended_at(futures[:2])
        assert len(driver.finished) == 4


def test_an_image_that_fails_fails_the_measurement(tiny_pipeline, row):
    """A model that does not render has no rate."""
    with pytest.raises(FarmError, match="no such thing"), Driver(tiny_pipeline, max_batch=1) as driver:
        driver.render([native_unit(row, 0, scheduler="no such thing")])


def test_each_phase_is_held_against_its_plan(tiny_pipeline, row):
    """Encoding, a step and decoding are each measured from a fresh start, in that order."""
    peaks = iter([1 << 30, 3 << 29, 1 << 28])
    resets = []
    meter = SimpleNamespace(reset=lambda: resets.append(None), peak_bytes=lambda: next(peaks))
    phases = [SimpleNamespace(name=name, peak_bytes=2 << 30) for name in ("encode", "denoise", "decode")]
    found = measure_phases(tiny_pipeline, row, SimpleNamespace(phases=phases), meter)
    assert {name: sizes["measured_gib"] for name, sizes in found.items()} == {
        "encode": 1.0,
        "denoise": 1.5,
        "decode": 0.25,
    }
    assert all(sizes["planned_gib"] == 2.0 for sizes in found.values())
    assert len(resets) == 3
