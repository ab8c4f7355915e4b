"""The engine with measured lanes: a real tiny model on the CPU, on a clock that the test tells what steps take."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from farm.jobs import Hires
from farm.requests import Reproducibility
from tiny_models import tiny_unit
from worker.engine import Engine
from worker.tuning.caps import Caps
from worker.tuning.store import Measured, Origin

ORIGIN = Origin("a card, 24 GiB", "2.13.0", "0.42.1", "570.1")
INVARIANT = Reproducibility.INVARIANT


class PacedPipeline:
    """A real pipeline, but for the time that its forwards take and the memory they have."""

    def __init__(self, pipeline, *, step_ms, memory=10**6, max_batch=None):
        self._pipeline = pipeline
        self._step_ms = step_ms
        self.memory = memory
        self.max_batch = max_batch
        self.forwards = []  # rides of each forward that was tried
        self.on_forward = lambda: None
        self.now_s = 0.0

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def clock(self):
        return self.now_s

    def predict(self, latents, rides, **options):
        self.forwards.append(len(rides))
        self.on_forward()
        if len(rides) > self.memory:
            raise torch.OutOfMemoryError(f"no memory for {len(rides)} rides")
        self.now_s += self._step_ms(len(rides)) / 1000
        return self._pipeline.predict(latents, rides, **options)


def saturated(batch):
    """Return what a step takes of which each seat costs the same."""
    return 10.0 * batch


def paying(batch):
    """Return what a step takes of which seats cost next to nothing."""
    return 100.0 + batch


@pytest.fixture
def engine_of(tmp_path):
    """Return an engine that was not started, for one pipeline; all of them keep measurements in one folder."""

    def make(pipeline, *, max_batch=4, is_measured=True):
        caps = Caps(Measured(tmp_path, ORIGIN), clock=pipeline.clock) if is_measured else None
        return Engine(lambda _: pipeline, max_batch=max_batch, caps=caps, clock=pipeline.clock)

    return make


def numbered(count, **fields):
    """Return so many units that differ in seed and prompt."""
    return [tiny_unit(index=i, seed=i, **{"prompt": f"p{i}", "num_inference_steps": 3, **fields}) for i in range(count)]


def finish(engine, count=10**6):
    """Make so many passes, or all there are to make."""
    with torch.inference_mode():
        while count and not engine._roster.is_empty:
            engine._pass(engine._next_lane())
            count -= 1


def render(engine, units):
    """Render units that come all at once."""
    futures = [engine.submit(unit) for unit in units]
    finish(engine)
    return [future.result(timeout=0) for future in futures]


def test_a_saturated_device_renders_one_after_another(engine_of, tiny_pipeline):
    """Where more seats bring nothing a lane has one, and its images are the bytes of a farm with one seat."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=saturated)
    engine = engine_of(pipeline)
    images = render(engine, numbered(3))
    assert pipeline.forwards == [1] * 4 + [2] * 4 + [3] * 4 + [1] * 9
    assert {image.timings.mean_batch for image in images} == {1.0}
    alone = render(
        engine_of(PacedPipeline(tiny_pipeline, step_ms=saturated), max_batch=1, is_measured=False), numbered(3)
    )
    assert [image.pixels.tobytes() for image in images] == [image.pixels.tobytes() for image in alone]


def test_a_device_that_gains_fills_all_seats_from_the_first_step(engine_of, tiny_pipeline):
    """Measuring comes before the first step, and whoever waits has a seat in it."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=paying)
    engine = engine_of(pipeline)
    images = render(engine, numbered(4))
    measuring = [batch for batch in (1, 2, 3, 4) for _ in range(4)]
    assert pipeline.forwards == [*measuring, 4, 4, 4]
    plain = render(engine_of(PacedPipeline(tiny_pipeline, step_ms=paying), is_measured=False), numbered(4))
    assert [image.pixels.tobytes() for image in images] == [image.pixels.tobytes() for image in plain]


def test_a_lane_is_measured_once_and_a_process_reads_what_others_found(engine_of, tiny_pipeline):
    """Later lanes of the same cost, and later workers, make no step for nothing."""
    engine = engine_of(PacedPipeline(tiny_pipeline, step_ms=saturated))
    render(engine, numbered(2))
    pipeline = PacedPipeline(tiny_pipeline, step_ms=saturated)
    for next_engine in (engine_of(pipeline), engine_of(pipeline)):
        render(next_engine, numbered(2))
    assert pipeline.forwards == [1] * 12


def test_who_is_alone_waits_for_no_measurement(engine_of, tiny_pipeline):
    """A lane with one unit has nothing to choose; it is measured when a second one comes, in the middle of a run."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=paying)
    engine = engine_of(pipeline)
    first = engine.submit(numbered(1)[0])
    finish(engine, 2)
    assert pipeline.forwards == [1, 1]
    second = engine.submit(numbered(2)[1])
    finish(engine, 1)
    assert pipeline.forwards[-1] == 2
    assert len(pipeline.forwards) == 2 + 16 + 1
    finish(engine)
    (alone,) = render(
        engine_of(PacedPipeline(tiny_pipeline, step_ms=paying), max_batch=1, is_measured=False), numbered(1)
    )
    assert second.result(timeout=0)
    np.testing.assert_allclose(first.result(timeout=0).pixels.astype(int), alone.pixels.astype(int), atol=1)


def test_measuring_is_busy_time_that_nobody_pays(engine_of, tiny_pipeline):
    """What it takes is in the engine's books and in no image's."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=saturated)
    engine = engine_of(pipeline)
    images = render(engine, numbered(2))
    measuring_s = 4 * (saturated(1) + saturated(2) + saturated(3)) / 1000
    assert engine.stats().busy_s == pytest.approx(measuring_s + sum(image.timings.gpu_s for image in images))
    assert all(image.timings.denoise_s == pytest.approx(0.03) for image in images)


def test_invariant_lanes_are_not_measured(engine_of, tiny_pipeline):
    """Their bytes depend on their shape, which FARM_MAX_BATCH says and no card does."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=saturated)
    engine = engine_of(pipeline)
    (image,) = render(engine, numbered(1, reproducibility=INVARIANT))
    assert image.timings.batch_shape == 4
    assert pipeline.forwards == [1, 1, 1]
    assert engine.stats().caps == {}


def test_those_who_sit_in_other_lanes_notice_nothing(engine_of, tiny_pipeline):
    """An image in the middle of its run, while another lane is measured, comes out with the bytes it has alone."""
    running = tiny_unit(index=9, seed=9, scheduler="euler_ancestral", num_inference_steps=5, reproducibility=INVARIANT)
    engine = engine_of(PacedPipeline(tiny_pipeline, step_ms=paying))
    future = engine.submit(running)
    finish(engine, 2)
    others = [engine.submit(unit) for unit in numbered(2, scheduler="euler_ancestral")]
    finish(engine)
    assert all(other.result(timeout=0) for other in others)
    (alone,) = render(engine_of(PacedPipeline(tiny_pipeline, step_ms=paying)), [running])
    assert future.result(timeout=0).pixels.tobytes() == alone.pixels.tobytes()


def test_a_models_own_limit_bounds_what_is_measured(engine_of, tiny_pipeline):
    """The memory plan, or the catalog, is not exceeded to find out."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=paying, max_batch=2)
    engine = engine_of(pipeline)
    render(engine, numbered(3))
    assert max(pipeline.forwards) == 2
    assert list(engine.stats().caps.values()) == [2]


def test_running_out_of_memory_while_measuring_costs_nothing(engine_of, tiny_pipeline):
    """It ends the curve: no unit fails, nothing is counted, and the next worker knows."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=paying, memory=3)
    engine = engine_of(pipeline)
    assert len(render(engine, numbered(4))) == 4
    stats = engine.stats()
    assert (stats.oom_count, list(stats.caps.values())) == (0, [3])
    after = PacedPipeline(tiny_pipeline, step_ms=paying, memory=3)
    assert render(engine_of(after), numbered(4))
    assert max(after.forwards) == 3


def test_what_rendering_learns_of_memory_the_next_start_knows(engine_of, tiny_pipeline):
    """Memory that runs out in a step lowers the measured cap, and no later worker runs into it again."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=paying)
    engine = engine_of(pipeline)
    futures = [engine.submit(unit) for unit in numbered(4)]
    finish(engine, 1)
    pipeline.memory = 3
    finish(engine)
    assert all(future.result(timeout=0) for future in futures)
    assert (engine.stats().oom_count, list(engine.stats().caps.values())) == (1, [2])
    next_pipeline = PacedPipeline(tiny_pipeline, step_ms=paying, memory=3)
    next_engine = engine_of(next_pipeline)
    assert render(next_engine, numbered(4))
    assert next_engine.stats().oom_count == 0
    assert max(next_pipeline.forwards) == 2


def test_a_measurement_that_fails_leaves_the_limit_there_was(engine_of, tiny_pipeline, caplog):
    """What is wrong is told once; the units render as they would have without."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=paying)
    engine = engine_of(pipeline)

    def fail_once():
        pipeline.on_forward = lambda: None
        raise RuntimeError("no kernel for this")

    pipeline.on_forward = fail_once
    with caplog.at_level(logging.WARNING):
        assert len(render(engine, numbered(4))) == 4
    assert pipeline.forwards == [1, 4, 4, 4]
    assert [record.action for record in caplog.records] == ["batch_unmeasured"]


def test_a_unit_that_cannot_begin_leaves_measuring_to_the_next(engine_of, tiny_pipeline):
    """A lane whose first unit fails before it has a run is measured with the second."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=saturated)
    engine = engine_of(pipeline)
    bad = engine.submit(tiny_unit(index=5, scheduler="no such thing"))
    good = [engine.submit(unit) for unit in numbered(2)]
    finish(engine)
    assert bad.exception(timeout=0) is not None
    assert all(each.result(timeout=0) for each in good)
    assert pipeline.forwards.count(2) == 4


def test_stopping_does_not_wait_for_a_measurement(engine_of, tiny_pipeline):
    """A worker that has to go makes no further step for a curve."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=paying)
    engine = engine_of(pipeline)
    for unit in numbered(2):
        engine.submit(unit)

    def stop():
        engine._closed = "the engine is stopping"

    pipeline.on_forward = stop
    finish(engine, 1)
    assert pipeline.forwards == [1, 2]


def test_the_second_pass_of_hires_is_measured_at_its_size(engine_of, tiny_pipeline):
    """A larger picture has a lane of its own, with a curve of its own."""
    pipeline = PacedPipeline(tiny_pipeline, step_ms=saturated)
    engine = engine_of(pipeline)
    images = render(engine, numbered(2, hires=Hires(32, 32, 0.7, 3, "latent")))
    assert {image.pixels.shape for image in images} == {(32, 32, 3)}
    assert pipeline.forwards.count(3) == 8
    assert len(engine.stats().caps) == 2


def test_seats_worth_having_follow_the_measurement(engine_of, tiny_pipeline):
    """One until a lane is measured, then what pays there; the last answer holds while nobody is here."""
    engine = engine_of(PacedPipeline(tiny_pipeline, step_ms=paying))
    assert engine.seats == 1
    futures = [engine.submit(unit) for unit in numbered(3)]
    assert engine.seats == 1
    finish(engine, 1)
    assert engine.seats == engine.stats().seats == 4
    finish(engine)
    assert all(future.result(timeout=0) for future in futures)
    assert engine.seats == 4
    assert engine_of(PacedPipeline(tiny_pipeline, step_ms=paying), is_measured=False).seats == 4


def test_on_a_real_clock_the_tiny_model_is_measured_in_no_time(tmp_path, tiny_pipeline):
    """A started engine measures, renders what it renders without, and leaves a curve with its provenance."""
    units = numbered(4, guidance_scale=5.0)
    caps = Caps(Measured(tmp_path, ORIGIN), budget_s=300)  # this machine may be busy
    engine = Engine(lambda _: tiny_pipeline, max_batch=4, caps=caps)
    engine.start()
    futures = [engine.submit(unit) for unit in units]
    images = [future.result(timeout=60) for future in futures]
    engine.stop()
    plain = Engine(lambda _: tiny_pipeline, max_batch=4)
    for image, expected in zip(images, render(plain, units), strict=True):
        np.testing.assert_allclose(image.pixels.astype(int), expected.pixels.astype(int), atol=1)
    (path,) = tmp_path.glob("*.json")
    ((key, entry),) = json.loads(path.read_text())["entries"].items()
    assert tiny_pipeline.architecture in key
    assert entry["origin"]["rounds"] == 3
    step_ms = entry["value"]["step_ms"]
    assert {"1", "2"} <= set(step_ms) <= {"1", "2", "3", "4"}
    assert all(ms > 0 for ms in step_ms.values())
    (cap,) = engine.stats().caps.values()
    assert str(cap) in step_ms
