"""The engine: joins, leaves, failures that cost nobody else, and the same bytes in any company."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from types import MappingProxyType

import numpy as np
import pytest
import torch

from farm.errors import ModelBroken, RenderFailed, Transient
from farm.jobs import Hint, Hires
from farm.prompts import Lora
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from tiny_models import SIZE_PX, tiny_unit
from worker.engine import Engine
from worker.pipelines.base import Encoded, Inputs
from worker.sampling import TimestepOptions
from worker.sampling.schedules import _tabulate as tabulate
from worker.seat import EngineStopped, Rendered, UnitCancelled

INVARIANT = Reproducibility.INVARIANT
WAIT_S = 60
"""Nothing takes so long; who waits in vain fails after it."""


class FakePipeline:
    """A model of a few multiplications, which fails on request."""

    model_hash = "00" * 32
    takes_mask = False
    device = torch.device("cpu")
    device_name = "cpu"
    dtype = torch.float32
    lora_hashes = MappingProxyType({})
    approximations = ()
    fast_approximations = ("steps of another kind",)

    def __init__(self, name="tiny", *, max_batch=None):
        self.name = name
        self.max_batch = max_batch
        self.scheduler_config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        self.memory_rows = 10**6  # a forward of more rows runs out of memory
        self.batches = []  # prompts of each forward that succeeded
        self.shapes = []  # rows of each forward that was tried
        self.on_predict = lambda _prompts: None
        self.num_bad_decodes = 0
        self.flaw = torch.nan

    def latent_shape(self, height, width):
        return (4, height // 8, width // 8)

    def timestep_options(self, num_inference_steps, height, width):
        return TimestepOptions()

    def first_step(self, num_inference_steps, strength):
        return num_inference_steps - int(num_inference_steps * strength)

    def adapt(self, loras):
        if loras and loras[0].name == "broken":
            raise RenderFailed("LoRA broken: no such file")
        self.loras = loras

    def encode_ahead(self, units):
        self.foreseen = [unit.prompt for unit in units]

    def encode(self, unit, inputs):
        if unit.prompt == "unencodable":
            raise ValueError("no such word")
        return Encoded(unit.prompt, form=unit.prompt.count(" long"))

    def encode_image(self, image, generator):
        return torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 8).expand(1, 4, -1, -1)

    def predict(self, latents, rides, *, guided, batch_shape):
        prompts = [ride.conditioning for ride in rides]
        rows = batch_shape or len(latents)
        self.shapes.append(rows)
        if rows > self.memory_rows:
            raise torch.OutOfMemoryError(f"no memory for {rows} rows")
        if any(prompt == "poison" for prompt in prompts):
            raise RuntimeError("poisoned")
        self.on_predict(prompts)
        self.batches.append(prompts)
        scales = torch.tensor([ride.cfg_scale if guided else 1.0 for ride in rides])
        timesteps = torch.tensor([ride.timestep for ride in rides])
        return torch.tanh(latents) * scales.view(-1, 1, 1, 1) / 9 + timesteps.view(-1, 1, 1, 1) / 1000

    def decode(self, latents):
        if self.num_bad_decodes:
            self.num_bad_decodes -= 1
            latents *= self.flaw
        image = torch.nn.functional.interpolate(128 + 100 * torch.tanh(latents[:, :3] / 4), scale_factor=8)[0]
        is_drawn = latents.abs().max() > 0
        return torch.nan_to_num(image * is_drawn).to(torch.uint8).permute(1, 2, 0)


def numbered(count, **fields):
    """Return `count` units that differ in index, seed and prompt."""
    return [tiny_unit(index=i, seed=i, **{"prompt": f"p{i}", **fields}) for i in range(count)]


def make_passes(engine, count=None):
    """Make so many passes of an engine that was not started, or all there are to make."""
    with torch.inference_mode():
        for _ in itertools.count() if count is None else range(count):
            if engine._roster.is_empty:
                return
            engine._pass(engine._next_lane())


def render(pipeline, units, **options):
    """Render `units` all at once; return what came of them."""
    engine = Engine(lambda _: pipeline, **{"max_batch": 4, **options})
    futures = [engine.submit(unit) for unit in units]
    make_passes(engine)
    return [future.exception() or future.result() for future in futures]


# -- joining and leaving


def test_units_join_and_leave_between_steps():
    """A unit that comes late joins the running batch, and a freed seat is taken before the next step."""
    pipeline = FakePipeline()
    engine = Engine(lambda _: pipeline, max_batch=2)
    first = engine.submit(tiny_unit(index=0, prompt="first", num_inference_steps=4))
    make_passes(engine, 1)
    engine.submit(tiny_unit(index=1, prompt="second", num_inference_steps=2))
    third = engine.submit(tiny_unit(index=2, prompt="third", num_inference_steps=2))
    make_passes(engine)
    assert [sorted(batch) for batch in pipeline.batches] == [
        ["first"],
        ["first", "second"],
        ["first", "second"],
        ["first", "third"],
        ["third"],
    ]
    assert first.result().timings.mean_batch == 7 / 4
    assert third.result().timings.steps == 2


def test_occupancy_and_shares_add_up():
    """Seat steps count occupied rows, and the images' shares of device time sum to its busy time."""
    now = iter(itertools.count())
    engine = Engine(lambda _: FakePipeline(), max_batch=3, clock=lambda: float(next(now)))
    futures = [
        engine.submit(tiny_unit(index=i, seed=i, num_inference_steps=steps)) for i, steps in enumerate([2, 3, 5, 4])
    ]
    make_passes(engine)
    stats = engine.stats()
    timings = [future.result().timings for future in futures]
    assert stats.seat_steps == 2 + 3 + 5 + 4
    assert stats.steps == 6
    assert (stats.images, stats.waiting, stats.running, stats.resident_models) == (4, 0, 0, ("tiny",))
    assert sum(each.gpu_s for each in timings) == pytest.approx(stats.busy_s)
    assert all(each.queued_s > 0 and each.denoise_s > 0 and each.decode_s > 0 for each in timings)


def test_progress_tells_calls_of_seated_units():
    """Progress counts model calls, of which Heun makes two per step but the last."""
    engine = Engine(lambda _: FakePipeline(), max_batch=1)
    engine.submit(tiny_unit(index=7, scheduler="heun", num_inference_steps=3))
    engine.submit(tiny_unit(index=8))
    make_passes(engine, 2)
    assert engine.progress() == {Hint("job_test", 7, 1): (2, 5)}


def test_catalog_caps_a_lane():
    """A model's own max_batch holds where it is below the worker's."""
    pipeline = FakePipeline(max_batch=2)
    render(pipeline, numbered(5))
    assert max(pipeline.shapes) == 2


# -- the thread


def test_started_engine_renders_what_many_threads_submit():
    """Units of many threads come out, each with its own pixels."""
    expected = [image.pixels for image in render(FakePipeline(), numbered(24))]
    engine = Engine(lambda _: FakePipeline(), max_batch=4)
    engine.start()
    futures = {}

    def submit(part):
        for unit in numbered(24)[part::4]:
            futures[unit.index] = engine.submit(unit)

    threads = [threading.Thread(target=submit, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(futures.values(), timeout=WAIT_S)
    for index, pixels in enumerate(expected):
        np.testing.assert_allclose(futures[index].result().pixels.astype(int), pixels.astype(int), atol=1)
    assert engine.stop() == []
    assert not engine.is_alive


def test_stop_gives_up_what_is_not_finished():
    """A stopping engine gives waiting units back at once and running ones too, and takes no more."""
    pipeline = FakePipeline()
    reached, go_on = threading.Event(), threading.Event()

    def hold(_):
        reached.set()
        assert go_on.wait(WAIT_S)

    pipeline.on_predict = hold
    engine = Engine(lambda _: pipeline, max_batch=1)
    engine.start()
    running, waiting = (engine.submit(unit) for unit in numbered(2, num_inference_steps=50))
    assert reached.wait(WAIT_S)
    stopping = threading.Thread(target=lambda: given_up.extend(engine.stop()))
    given_up = []
    stopping.start()
    assert isinstance(waiting.exception(timeout=WAIT_S), EngineStopped)
    with pytest.raises(EngineStopped):
        engine.submit(tiny_unit())
    go_on.set()
    stopping.join(WAIT_S)
    assert isinstance(running.exception(timeout=WAIT_S), Transient)
    assert sorted(hint.index for hint in given_up) == [0, 1]


def test_stop_with_time_to_drain_finishes_seated_units():
    """What has a seat is finished within `drain_s`; what waits is given back at once."""
    pipeline = FakePipeline()
    reached = threading.Event()
    engine = Engine(lambda _: pipeline, max_batch=1)
    running, waiting = (engine.submit(unit) for unit in numbered(2, num_inference_steps=20))

    def hold_until_the_stop(_):
        reached.set()
        assert isinstance(waiting.exception(timeout=WAIT_S), EngineStopped)

    pipeline.on_predict = hold_until_the_stop
    engine.start()
    assert reached.wait(WAIT_S)
    assert [hint.index for hint in engine.stop(drain_s=3 * WAIT_S)] == [1]
    assert running.result().timings.steps == 20
    assert isinstance(waiting.exception(), EngineStopped)


def test_engine_that_never_started_can_stop():
    """Stopping before the start gives everything back."""
    engine = Engine(lambda _: FakePipeline(), max_batch=1)
    future = engine.submit(tiny_unit())
    assert engine.stop() == [Hint("job_test", 0, 1)]
    assert isinstance(future.exception(), EngineStopped)


def test_lost_device_gives_everything_back():
    """A faulted CUDA context blames no unit: all are given back, and the engine says that it is done for."""
    pipeline = FakePipeline()

    def fault(_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    pipeline.on_predict = fault
    engine = Engine(lambda _: pipeline, max_batch=2)
    engine.start()
    futures = [engine.submit(unit) for unit in numbered(3)]
    for future in futures:
        assert isinstance(future.exception(timeout=WAIT_S), EngineStopped)
    with pytest.raises(EngineStopped, match="illegal memory access"):
        engine.submit(tiny_unit())
    assert not engine.is_alive


# -- cancelling


def test_cancelled_waiting_units_vanish_at_once():
    """Cancelling ends the futures of waiting units before it returns, and touches no other job."""
    pipeline = FakePipeline()
    engine = Engine(lambda _: pipeline, max_batch=1)
    kept = engine.submit(tiny_unit(job="job_other", prompt="kept"))
    gone = [engine.submit(unit) for unit in numbered(3)]
    assert engine.cancel("job_test", 1) == 1
    assert [future.done() for future in gone] == [False, True, False]
    assert engine.cancel("job_test") == 2
    assert all(isinstance(future.exception(timeout=0), UnitCancelled) for future in gone)
    assert engine.cancel("job_test") == 0
    make_passes(engine)
    assert kept.result()
    assert {prompt for batch in pipeline.batches for prompt in batch} == {"kept"}


def test_cancelled_running_unit_leaves_at_the_next_step():
    """A seat is free for the next unit one step after its unit was cancelled."""
    pipeline = FakePipeline()
    engine = Engine(lambda _: pipeline, max_batch=1)
    first = engine.submit(tiny_unit(index=0, prompt="first", num_inference_steps=50))
    second = engine.submit(tiny_unit(index=1, prompt="second", num_inference_steps=2))
    make_passes(engine, 3)
    assert engine.cancel("job_test", 0) == 1
    make_passes(engine)
    assert isinstance(first.exception(), UnitCancelled)
    assert second.result()
    assert pipeline.batches == [["first"]] * 3 + [["second"]] * 2


def test_a_seat_cancelled_in_mid_step_is_taken_in_the_very_next_one():
    """No step is made with the seat empty: who waited rides beside the neighbour who stayed."""
    pipeline = FakePipeline()
    engine = Engine(lambda _: pipeline, max_batch=2)

    def cancel_during_the_second_step(_):
        if len(pipeline.batches) == 1:
            assert engine.cancel("job_test", 0) == 1

    pipeline.on_predict = cancel_during_the_second_step
    futures = [engine.submit(unit) for unit in numbered(3, num_inference_steps=4)]
    make_passes(engine)
    assert isinstance(futures[0].exception(), UnitCancelled)
    assert [sorted(batch) for batch in pipeline.batches] == [["p0", "p1"]] * 2 + [["p1", "p2"]] * 2 + [["p2"]] * 2
    assert all(future.result() for future in futures[1:])


def test_future_cancelled_by_its_owner_takes_no_step():
    """A future that its owner cancels while it waits is dropped."""
    pipeline = FakePipeline()
    engine = Engine(lambda _: pipeline, max_batch=1)
    kept, dropped = (engine.submit(unit) for unit in numbered(2))
    assert dropped.cancel()
    make_passes(engine)
    assert kept.result()
    with pytest.raises(CancelledError):
        dropped.result()
    assert all(batch == ["p0"] for batch in pipeline.batches)


# -- failures cost only who caused them


def test_culprit_fails_alone():
    """A unit that breaks every forward it is in fails with its reason; its neighbours' bytes are as without it."""
    units = numbered(4, scheduler="euler_ancestral")
    expected = render(FakePipeline(), units)
    poisoned = [*units[:2], tiny_unit(index=9, prompt="poison"), units[2], units[3]]
    first, second, culprit, third, fourth = render(FakePipeline(), poisoned, max_batch=5)
    assert isinstance(culprit, RenderFailed)
    assert "poisoned" in str(culprit)
    for actual, wanted in zip((first, second, third, fourth), expected, strict=True):
        np.testing.assert_allclose(actual.pixels.astype(int), wanted.pixels.astype(int), atol=1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "unencodable"}, "no such word"),
        ({"scheduler": "lcm", "num_inference_steps": 60}, "lcm with 60 steps"),
        ({"scheduler": "unheard of"}, "no scheduler is called"),
    ],
)
def test_unit_that_cannot_begin_fails_alone(fields, reason):
    """A unit that cannot even begin fails with its reason, and its neighbours go on."""
    good, bad, fine = render(FakePipeline(), [tiny_unit(index=0), tiny_unit(index=1, **fields), tiny_unit(index=2)])
    assert isinstance(bad, RenderFailed)
    assert reason in str(bad)
    assert good.pixels.any()
    assert fine.pixels.any()


def test_out_of_memory_halves_the_batch_and_keeps_every_seat():
    """Nobody loses a step to running out of memory; the cap is learnt, and kept for lanes to come."""
    pipeline = FakePipeline()
    pipeline.memory_rows = 3
    engine = Engine(lambda _: pipeline, max_batch=8)
    units = numbered(8, scheduler="euler_ancestral", num_inference_steps=6)
    futures = [engine.submit(unit) for unit in units]
    make_passes(engine, 1)
    assert [call for call, _ in engine.progress().values()] == [1] * 8
    make_passes(engine)
    images = [future.result() for future in futures]
    for image, expected in zip(images, render(FakePipeline(), units), strict=True):
        np.testing.assert_allclose(image.pixels.astype(int), expected.pixels.astype(int), atol=1)
    stats = engine.stats()
    assert stats.oom_count == 3  # 8 rows, and twice 4
    assert list(stats.caps.values()) == [2]
    tried = len(pipeline.shapes)
    engine.submit(units[0])
    make_passes(engine)
    assert max(pipeline.shapes[tried:]) <= 2


def test_out_of_memory_alone_is_a_failure():
    """A unit for which one row is too much fails, rather than being tried for ever."""
    pipeline = FakePipeline()
    pipeline.memory_rows = 0
    images = render(pipeline, numbered(2))
    assert all(isinstance(image, RenderFailed) and "no memory" in str(image) for image in images)


def test_out_of_memory_unloads_other_models_first():
    """Models that only stay resident for later go before the batch is halved."""
    pipelines = {name: FakePipeline(name) for name in ("one", "two")}
    engine = Engine(pipelines.__getitem__, max_batch=4, fits=lambda models: len(models) <= 2)
    engine.submit(tiny_unit(model="one"))
    make_passes(engine)
    assert engine.stats().resident_models == ("one",)
    two = pipelines["two"]
    predict = two.predict

    def predict_in_what_is_left(*args, **kwargs):
        two.memory_rows = 3 if len(engine.stats().resident_models) > 1 else 4
        return predict(*args, **kwargs)

    two.predict = predict_in_what_is_left
    futures = [engine.submit(unit) for unit in numbered(4, model="two")]
    make_passes(engine)
    assert all(future.result() for future in futures)
    assert engine.stats().resident_models == ("two",)
    assert engine.stats().caps == {}


def test_invariant_lane_out_of_memory_begins_anew_at_half_its_shape():
    """Every invariant image is made at one shape throughout, and says which."""
    pipeline = FakePipeline()
    engine = Engine(lambda _: pipeline, max_batch=4)
    future = engine.submit(tiny_unit(reproducibility=INVARIANT, num_inference_steps=4))
    make_passes(engine, 2)
    pipeline.memory_rows = 3
    make_passes(engine)
    image = future.result()
    assert pipeline.shapes == [4, 4, 4, 2, 2, 2, 2]
    assert image.timings.batch_shape == 2
    assert "batch shape of 2" in image.warnings[0]
    (small,) = render(FakePipeline(), [tiny_unit(reproducibility=INVARIANT, num_inference_steps=4)], max_batch=2)
    assert small.pixels.tobytes() == image.pixels.tobytes()


def test_out_of_memory_while_beginning_anew_costs_that_unit_alone():
    """Who starts from a picture, and cannot encode it a second time, fails; its neighbours and the thread go on."""
    pipeline = FakePipeline()
    encode_image = pipeline.encode_image
    engine = Engine(lambda _: pipeline, max_batch=4)
    picture = Inputs(image=np.zeros((16, 16, 3), np.uint8))
    units = numbered(2, reproducibility=INVARIANT, num_inference_steps=4)
    futures = [engine.submit(units[0], picture), engine.submit(units[1])]
    make_passes(engine, 2)
    pipeline.memory_rows = 3

    def encode_nothing(_image, _generator):
        raise torch.OutOfMemoryError("no memory for a picture")

    pipeline.encode_image = encode_nothing
    make_passes(engine, 1)
    pipeline.encode_image = encode_image
    make_passes(engine)
    assert isinstance(futures[0].exception(), RenderFailed)
    assert futures[1].result().timings.batch_shape == 2


def test_a_warning_is_given_once_though_both_passes_have_it():
    """What is remarked on words that are encoded for each pass stands in the recipe once."""
    pipeline = FakePipeline()
    pipeline.encode = lambda unit, _inputs: Encoded(unit.prompt, warnings=("prompt is too long",))
    (image,) = render(pipeline, [tiny_unit(hires=Hires(32, 32, 0.7, 3, "latent"))])
    assert image.warnings == ("prompt is too long",)


@pytest.mark.parametrize(("flaw", "words"), [(torch.nan, "NaN"), (0.0, "all black")])
def test_ruined_image_is_rendered_once_more(flaw, words):
    """A NaN or black image is rendered again and comes out as if nothing had been, with a warning."""
    pipeline = FakePipeline()
    pipeline.num_bad_decodes, pipeline.flaw = 1, flaw
    (again,) = render(pipeline, [tiny_unit(scheduler="euler_ancestral")])
    (clean,) = render(FakePipeline(), [tiny_unit(scheduler="euler_ancestral")])
    assert again.pixels.tobytes() == clean.pixels.tobytes()
    assert words in again.warnings[0]
    assert again.timings.gpu_s > 0
    assert clean.warnings == ()


def test_image_ruined_twice_fails():
    """A second ruined image is no accident: the unit fails and says what came out."""
    pipeline = FakePipeline()
    pipeline.num_bad_decodes = 2
    (failed,) = render(pipeline, [tiny_unit()])
    assert isinstance(failed, RenderFailed)
    assert "twice" in str(failed)


# -- models


def test_broken_model_fails_its_units_only():
    """Units of a model that cannot be loaded fail with the reason; loading is not tried for each of them."""
    tries = []

    def load(model):
        if model == "broken":
            tries.append(model)
            raise ModelBroken("model broken: weights are missing")
        return FakePipeline(model)

    now = [0.0]
    engine = Engine(load, max_batch=2, clock=lambda: now[0])
    good = [engine.submit(unit) for unit in numbered(2)]
    bad = [engine.submit(unit) for unit in numbered(3, model="broken", job="job_bad")]
    make_passes(engine)
    bad.append(engine.submit(tiny_unit(model="broken")))
    make_passes(engine)
    assert all(future.result() for future in good)
    assert all("weights are missing" in str(future.exception()) for future in bad)
    assert len(tries) == 1
    now[0] += 60
    engine.submit(tiny_unit(model="broken"))
    make_passes(engine)
    assert len(tries) == 2


def test_loader_that_raises_anything_breaks_the_model_not_the_engine():
    """What is no error of ours becomes ModelBroken, with its reason."""

    def load(_):
        raise KeyError("unet")

    engine = Engine(load, max_batch=1)
    future = engine.submit(tiny_unit())
    make_passes(engine)
    assert isinstance(future.exception(), ModelBroken)
    assert "unet" in str(future.exception())


def test_models_take_turns_without_losing_a_step():
    """With room for one model, seats of an unloaded one wait as they are and end with the same pixels."""
    loads = []

    def load(model):
        loads.append(model)
        return FakePipeline(model)

    engine = Engine(load, max_batch=2, patience=3)
    units = [tiny_unit(index=i, seed=i, model=f"m{i % 2}", scheduler="lms", num_inference_steps=8) for i in range(4)]
    futures = [engine.submit(unit) for unit in units]
    make_passes(engine)
    assert len(loads) > 2
    for unit, future in zip(units, futures, strict=True):
        (alone,) = render(FakePipeline(), [unit])
        np.testing.assert_allclose(future.result().pixels.astype(int), alone.pixels.astype(int), atol=1)


# -- the same bytes in any company


def test_invariant_bytes_do_not_depend_on_company(tiny_pipeline, monkeypatch):
    """Bit for bit: alone, in any order, in any seat, beside other samplers, steps, prompts and leavers."""

    def decode_unrounded(latents):
        """Return the float32 image as its bytes: rounding to 256 levels would hide most differences."""
        return tiny_pipeline.coder.decode_image(latents).permute(1, 2, 0).contiguous().view(torch.uint8)

    monkeypatch.setattr(tiny_pipeline, "decode", decode_unrounded)
    chance = random.Random(5)  # noqa: S311 - makes up a test case
    units = [
        tiny_unit(
            index=index,
            seed=index,
            prompt=f"shape {index}",
            scheduler=row.name,
            num_inference_steps=chance.randint(2, 5),
            guidance_scale=2.0 + index,
            reproducibility=INVARIANT,
        )
        for index, row in enumerate(schedulers_of("diffusion")[::11])
    ]
    alone = {unit.index: render(tiny_pipeline, [unit])[0].pixels.tobytes() for unit in units}
    for _ in range(3):
        order = chance.sample(units, len(units))
        engine = Engine(lambda _: tiny_pipeline, max_batch=4)
        futures = {}
        for unit in order:
            futures[unit.index] = engine.submit(unit)
            engine.submit(tiny_unit(index=99, job="job_leaver", reproducibility=INVARIANT))
            make_passes(engine, chance.randint(0, 2))
            engine.cancel("job_leaver")
        make_passes(engine)
        assert {index: future.result().pixels.tobytes() for index, future in futures.items()} == alone
        assert all(future.result().timings.batch_shape == 4 for future in futures.values())


def test_fast_and_invariant_never_share_a_lane():
    """An invariant forward has its one shape, with a fast one beside it or not."""
    pipeline = FakePipeline()
    fast, invariant = render(
        pipeline, [tiny_unit(prompt="fast"), tiny_unit(index=1, prompt="exact", reproducibility=INVARIANT)]
    )
    assert (fast.timings.batch_shape, invariant.timings.batch_shape) == (None, 4)
    assert (fast.approximations, invariant.approximations) == (pipeline.fast_approximations, ())
    assert all(len(batch) == 1 for batch in pipeline.batches)
    assert sorted(set(pipeline.shapes)) == [1, 4]


def test_rendered_tells_where_it_comes_from(tiny_pipeline):
    """An image knows its model's hash, device and precision."""
    (image,) = render(tiny_pipeline, [tiny_unit()])
    assert image.model_hash == tiny_pipeline.model_hash
    assert (image.device, image.dtype) == ("cpu", "float32")
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape == (SIZE_PX, SIZE_PX, 3)


def test_no_memory_for_loras_unloads_other_models_and_tries_again():
    """Putting LoRAs in needs room for a moment; models that only stay for later make it."""
    pipelines = {name: FakePipeline(name) for name in ("one", "two")}
    engine = Engine(pipelines.__getitem__, max_batch=2, fits=lambda models: len(models) <= 2)
    engine.submit(tiny_unit(model="one"))
    make_passes(engine)
    two = pipelines["two"]
    adapt = two.adapt

    def adapt_in_what_is_left(loras):
        if len(engine.stats().resident_models) > 1:
            raise torch.OutOfMemoryError("no memory")
        adapt(loras)

    two.adapt = adapt_in_what_is_left
    future = engine.submit(tiny_unit(model="two", loras=(Lora("style"),)))
    make_passes(engine)
    assert future.result()
    assert two.loras == (Lora("style"),)
    assert engine.stats().resident_models == ("two",)


def test_a_lane_whose_loras_cannot_be_put_in_fails_alone():
    """Its units fail with the reason, waiting and seated; a lane beside it goes on."""
    good, bad, late = render(
        FakePipeline(),
        [tiny_unit(index=0), *(tiny_unit(index=i, loras=(Lora("broken"),)) for i in (1, 2))],
        max_batch=1,
    )
    assert isinstance(good, Rendered)
    for failed in (bad, late):
        assert isinstance(failed, RenderFailed)
        assert "no such file" in str(failed)


def test_forms_are_forwards_of_their_own():
    """Seats of one lane whose rows cannot be joined, such as texts of other lengths, step together but apart."""
    pipeline = FakePipeline()
    units = [tiny_unit(index=i, seed=i, prompt=p) for i, p in enumerate(["a", "b long", "c", "d long"])]
    images = render(pipeline, units, max_batch=4)
    assert pipeline.batches[:2] == [["a", "c"], ["b long", "d long"]]
    for unit, image in zip(units, images, strict=True):
        (alone,) = render(FakePipeline(), [unit])
        assert np.array_equal(image.pixels, alone.pixels)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_two_passes_are_one_image(upscaler):
    """A unit with hires fix goes through two lanes and comes out once, large, its calls and time counted together."""
    hires = Hires(2 * SIZE_PX, 2 * SIZE_PX, 0.5, 4, upscaler)
    small, large = render(FakePipeline(), [tiny_unit(index=0), tiny_unit(index=1, hires=hires)], max_batch=2)
    assert small.pixels.shape == (SIZE_PX, SIZE_PX, 3)
    assert large.pixels.shape == (2 * SIZE_PX, 2 * SIZE_PX, 3)
    assert large.timings.steps == 3 + 2


def test_a_unit_cancelled_between_its_passes_is_gone():
    """Cancelling a unit that waits for its second pass ends it at once."""
    engine = Engine(lambda _: FakePipeline(), max_batch=1)
    first = engine.submit(tiny_unit(index=0, num_inference_steps=1, hires=Hires(32, 32, 0.5, 4, "latent")))
    make_passes(engine, 1)
    assert engine.stats().waiting == 1
    assert engine.cancel("job_test", 0) == 1
    assert engine.stats().waiting == engine.stats().running == 0
    with pytest.raises(UnitCancelled):
        first.result(timeout=1)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_a_first_pass_that_came_out_ruined_is_made_again(upscaler):
    """What a second pass starts from is looked at as a picture is: once is chance, and the unit says so."""
    unit = tiny_unit(hires=Hires(2 * SIZE_PX, 2 * SIZE_PX, 0.5, 4, upscaler))
    (clean,) = render(FakePipeline(), [unit])
    pipeline = FakePipeline()
    predict, calls = pipeline.predict, itertools.count()
    pipeline.predict = lambda *args, **kwargs: predict(*args, **kwargs) * (torch.nan if next(calls) == 0 else 1)
    (again,) = render(pipeline, [unit])
    assert np.array_equal(again.pixels, clean.pixels)
    assert any("rendered once more" in warning for warning in again.warnings)


def test_tables_of_a_model_that_is_here_are_made_by_whoever_submits():
    """The engine's thread finds the table ready; a unit whose table cannot be made fails in its turn all the same."""
    pipeline = FakePipeline()
    engine = Engine(lambda _: pipeline, max_batch=2)
    engine.submit(tiny_unit(num_inference_steps=1))
    make_passes(engine)
    made = tabulate.cache_info().misses
    future = engine.submit(tiny_unit(index=1, scheduler="kdpm2", num_inference_steps=17))
    assert tabulate.cache_info().misses == made + 1
    make_passes(engine)
    assert tabulate.cache_info().misses == made + 1
    assert future.result()


def test_a_model_for_inpainting_refuses_a_second_pass_before_the_first():
    """Nothing is rendered that would be thrown away."""
    pipeline = FakePipeline()
    pipeline.takes_mask = True
    (failed,) = render(pipeline, [tiny_unit(hires=Hires(2 * SIZE_PX, 2 * SIZE_PX, 0.5, 4, "latent"))])
    assert isinstance(failed, RenderFailed)
    assert "leave out hires" in str(failed)
    assert pipeline.batches == []
