"""Previews beside a real engine: who is shown what and when, and that no image knows of it."""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from farm.errors import LedgerDown
from farm.jobs import Hires, Watch
from farm.requests import Reproducibility
from overhead.noop import NoopPipeline
from overhead.noop import unit as noop_unit
from parity import BROWNIAN_WARNING
from picture_parity import mask, picture
from tiny_flow_models import save_tiny_flux
from tiny_models import SIZE_PX, tiny_row, tiny_unit
from units_of_all_kinds import units_of_all_kinds
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.pipelines.loading import load_pipeline
from worker.previews import Previews
from worker.previews.previews import MAX_JPEG_BYTES, jpeg_of
from worker.seat import UnitCancelled

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

CLOSELY = Watch(1, 1e6)


class Clock:
    """Goes on by as much as is asked for whenever it is looked at."""

    def __init__(self, step_s=1.0):
        self.now, self.step_s = 0.0, step_s

    def __call__(self):
        self.now += self.step_s
        return self.now


class Watcher:
    """Keeps what it is told."""

    def __init__(self):
        self.seen = defaultdict(list)  # by index: step, steps, JPEG
        self.away = False

    def __call__(self, hint, step, steps, jpeg):
        if self.away:
            raise LedgerDown("away")
        self.seen[hint.index].append((step, steps, jpeg))

    def steps(self, index=0):
        return [step for step, _, _ in self.seen[index]]

    def pictures(self, index=0):
        return {step: np.asarray(Image.open(io.BytesIO(jpeg))) for step, _, jpeg in self.seen[index] if jpeg}


def render(pipeline, units, inputs=None, *, previews=None, **options):
    """Render `units` on an engine whose passes this thread makes, and show what there is to see after each."""
    engine = Engine(lambda _: pipeline, **{"max_batch": 4, "previews": previews, **options})
    given = inputs or [NO_INPUTS] * len(units)
    futures = [engine.submit(unit, each) for unit, each in zip(units, given, strict=True)]
    with torch.inference_mode():
        while not engine._roster.is_empty:
            engine._pass(engine._next_lane())
            if previews is not None:
                previews.catch_up()
    return futures


@pytest.fixture
def watcher():
    """Return somebody who looks on."""
    return Watcher()


@pytest.fixture
def previews(watcher):
    """Return previews for it, without a thread; a second goes by whenever they look at the clock."""
    return Previews(watcher, clock=Clock())


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """Load a random Flux, whose latents its transformer takes packed."""
    folder = save_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny", guidance_embeds=True)
    row = tiny_row(folder, family="flux", max_sequence_length=16, guidance="embedded")
    return load_pipeline(row, models_dir=folder, device=torch.device("cpu"))


def all_kinds(**fields):
    """Return units of every sampler, some with a second pass, from a picture or with a mask; and their pictures."""
    units = units_of_all_kinds("sd15", **fields)
    inputs = [NO_INPUTS] * len(units)
    hires = Hires(width=SIZE_PX + 8, height=SIZE_PX, upscaler="latent", strength=0.7, num_inference_steps=4)
    units[0] = replace(units[0], hires=hires)
    for place, given in ((1, Inputs(image=picture(0))), (2, Inputs(image=picture(1), mask=mask(1)))):
        units[place], inputs[place] = replace(units[place], strength=0.6, num_inference_steps=8), given
    return units, inputs


@pytest.mark.parametrize("reproducibility", list(Reproducibility))
def test_no_bit_of_an_image_depends_on_who_watches(tiny_pipeline, previews, watcher, reproducibility):
    """Every sampler, hires fix, img2img and inpainting, watched at every step: the same bytes as with nobody there."""
    units, inputs = all_kinds(reproducibility=reproducibility)
    alone = [future.result() for future in render(tiny_pipeline, units, inputs)]
    watched = [replace(unit, watch=CLOSELY) for unit in units]
    shown = [future.result() for future in render(tiny_pipeline, watched, inputs, previews=previews)]
    for one, other in zip(alone, shown, strict=True):
        assert one.pixels.tobytes() == other.pixels.tobytes()
        assert one.warnings == other.warnings
    for unit in units:
        assert watcher.pictures(unit.index), f"nothing was seen of {unit}"


def test_pictures_come_every_few_steps_and_steps_between_them(tiny_pipeline, previews, watcher):
    """Of the last step there is none: the image itself is next."""
    unit = tiny_unit(num_inference_steps=12, watch=Watch(5, 1e6))
    render(tiny_pipeline, [unit], previews=previews)
    assert watcher.steps() == list(range(1, 13))
    assert {steps for _, steps, _ in watcher.seen[0]} == {12}
    assert list(watcher.pictures()) == [5, 10]
    assert watcher.pictures()[10].shape == (SIZE_PX, SIZE_PX, 3)


def test_whoever_comes_late_sees_something_at_once(tiny_pipeline, previews, watcher):
    """A watch that begins in mid-run shows the next step, and counts from there."""
    engine = Engine(lambda _: tiny_pipeline, max_batch=2, previews=previews)
    unit, other = tiny_unit(num_inference_steps=12), tiny_unit(index=1, job="job_other", num_inference_steps=12)
    engine.submit(unit)
    engine.submit(other)
    with torch.inference_mode():
        for call in range(12):
            if call == 6:
                previews.watch(unit.job, Watch(3, 1e6))
            engine._pass(engine._next_lane())
            previews.catch_up()
    assert watcher.steps() == list(range(7, 13))
    assert list(watcher.pictures()) == [7, 10]
    assert watcher.steps(1) == []


def test_a_watch_ends(tiny_pipeline, watcher):
    """When its time is over nothing is shown, and nothing is asked about it any more."""
    clock = Clock(0.0)
    previews = Previews(watcher, clock=clock)

    def tick(_latents):
        clock.now += 1

    unit = tiny_unit(num_inference_steps=12, watch=Watch(1, 5.5))
    hooked = Hooked(tiny_pipeline, tick)
    render(hooked, [unit], previews=previews)
    assert watcher.steps() == [1, 2, 3, 4, 5]
    assert not previews.watched


def test_a_unit_is_told_of_a_few_times_a_second(tiny_pipeline, watcher):
    """Steps of 30 ms, watched at each: one in seven is told of."""
    clock = Clock(0.0)

    def tick(_latents):
        clock.now += 0.03

    unit = tiny_unit(num_inference_steps=30, watch=CLOSELY)
    render(Hooked(tiny_pipeline, tick), [unit], previews=Previews(watcher, clock=clock))
    assert watcher.steps() == [1, 8, 15, 22, 29]
    assert list(watcher.pictures()) == [1, 8, 15, 22, 29]


def note_latents(previews):
    """Return a list that will have the latents of all pictures that are drawn."""
    seen, draw = [], previews._jpeg

    def note(news):
        if news.latents is not None:
            seen.append(news.latents.wait()[0].copy())
        return draw(news)

    previews._jpeg = note
    return seen


class Hooked:
    """A pipeline that does something before each forward."""

    def __init__(self, pipeline, before_predict=lambda _latents: None, **replaced):
        self._pipeline, self._before_predict = pipeline, before_predict
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def predict(self, latents, rides, **options):
        self._before_predict(latents)
        return self._pipeline.predict(latents, rides, **options)


def test_both_passes_of_hires_fix_are_one_run(tiny_pipeline, previews, watcher):
    """Steps are counted through, the second's in advance; pictures grow with the second pass."""
    hires = Hires(width=2 * SIZE_PX, height=2 * SIZE_PX, upscaler="latent", strength=0.5, num_inference_steps=8)
    unit = tiny_unit(num_inference_steps=6, hires=hires, watch=CLOSELY, scheduler="heun")
    render(tiny_pipeline, [unit], previews=previews)
    told = [(step, steps) for step, steps, _ in watcher.seen[0]]
    calls = told[-1][1]
    assert [step for step, _ in told] == list(range(1, calls + 1))
    assert all(abs(steps - calls) <= 1 for _, steps in told)
    pictures = watcher.pictures()
    assert list(pictures) == list(range(1, calls))
    assert pictures[11].shape == (SIZE_PX, SIZE_PX, 3), "11 calls of Heun are the first pass"
    assert pictures[12].shape == (2 * SIZE_PX, 2 * SIZE_PX, 3)


def test_what_is_shown_is_the_picture_that_the_model_has_in_mind(tiny_pipeline, previews):
    """A model that sees through the noise of a run has nothing in mind behind it, however much noise is left."""
    seen, noise = note_latents(previews), []

    def predict(latents, _rides, **_options):
        noise.append(latents.clone())  # of unit deviation, in the first call
        return noise[0]

    render(Hooked(tiny_pipeline, predict=predict), [tiny_unit(num_inference_steps=8, watch=CLOSELY)], previews=previews)
    assert len(seen) == 7
    assert max(np.abs(each).max() for each in seen) < 0.3 < noise[4].abs().max()


def test_inpainting_shows_the_known_part_as_it_is(tiny_pipeline, previews):
    """What the mask keeps is in the estimate from the first step on, without noise."""
    seen = note_latents(previews)
    black = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    black[:, : SIZE_PX // 2] = 255  # the left half is painted anew
    unit = tiny_unit(num_inference_steps=6, strength=0.9, watch=CLOSELY, scheduler="euler_ancestral")
    render(tiny_pipeline, [unit], [Inputs(image=picture(3), mask=black)], previews=previews)
    right = [each[..., SIZE_PX // 4 :] for each in seen]
    assert len(right) > 2
    for each in right:
        assert np.array_equal(each, right[0])
    assert not np.array_equal(seen[0], seen[-1])


def test_flux_is_drawn_as_it_lies_and_not_as_it_is_packed(flux, previews, watcher):
    """Previews have the shape of the picture, at sizes that are not square too."""
    units = [
        tiny_unit(
            index=i,
            scheduler="flow_euler",
            guidance_scale=3.5,
            guided=False,
            width=24,
            height=16 + 4 * i,
            num_inference_steps=4,
            watch=CLOSELY,
        )
        for i in range(2)
    ]
    rendered = [future.result().pixels for future in render(flux, units, previews=previews)]
    for unit, pixels in zip(units, rendered, strict=True):
        pictures = watcher.pictures(unit.index)
        assert list(pictures) == [1, 2, 3]
        assert {each.shape for each in pictures.values()} == {pixels.shape}


def test_the_sketch_learns_from_pictures_that_were_never_watched(tiny_pipeline, previews, watcher):
    """Whoever watches first has the use of them; of a model that was seen enough nothing more is copied."""
    render(tiny_pipeline, [tiny_unit(index=i, seed=i) for i in range(12)], previews=previews)
    (sketch,) = previews._sketches.values()
    assert sketch._seen == 8 * (SIZE_PX // 2) ** 2
    assert watcher.seen == {}


def test_previews_that_fail_cost_no_image(tiny_pipeline, previews, watcher, caplog):
    """A decoder that cannot take the sample ends them, with a word; whoever still watches has them begin again."""

    def decode(latents):
        if latents.shape[-1] == 32:
            raise torch.OutOfMemoryError("no room for a sample")
        return tiny_pipeline.decode(latents)

    hooked = Hooked(tiny_pipeline, decode=decode)
    units = [tiny_unit(index=i, num_inference_steps=4, watch=Watch(2, 1e6)) for i in range(2)]
    futures = render(hooked, units, previews=previews)
    assert all(future.result().pixels is not None for future in futures)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "no previews: no room for a sample"
    ]
    assert watcher.steps() == [1]
    render(hooked, [tiny_unit(index=5, num_inference_steps=4, watch=Watch(2, 1e6))], previews=previews)
    assert list(watcher.pictures(5)) == [2], "by now it has learned from the first two pictures"


def test_a_watcher_out_of_reach_costs_nothing(tiny_pipeline, previews, watcher):
    """While Redis is away previews are lost, and come again when it is back."""
    watcher.away = True
    render(tiny_pipeline, [tiny_unit(watch=CLOSELY)], previews=previews)
    assert watcher.seen == {}
    watcher.away = False
    render(tiny_pipeline, [tiny_unit(watch=CLOSELY)], previews=previews)
    assert watcher.steps() == [1, 2, 3]


def test_who_draws_too_slowly_shows_the_latest(tiny_pipeline, previews, watcher):
    """Nothing piles up behind a slow thread, and a picture is not driven out by a step without one."""
    engine = Engine(lambda _: tiny_pipeline, max_batch=2, previews=previews)
    engine.submit(tiny_unit(num_inference_steps=12, watch=Watch(4, 1e6)))
    with torch.inference_mode():
        for _ in range(10):
            engine._pass(engine._next_lane())
    previews.catch_up()
    assert [(step, jpeg is not None) for step, _, jpeg in watcher.seen[0]] == [(8, True)]


def test_a_ruined_run_that_begins_anew_is_shown_anew(tiny_pipeline, previews, watcher):
    """Its steps are counted from the start, and its pictures come as often as before."""
    ruins = [True]

    def ruin(latents):
        if ruins and len(watcher.seen[0]) == 3:
            ruins.clear()
            latents.fill_(torch.nan)

    unit = tiny_unit(num_inference_steps=5, watch=Watch(2, 1e6))
    (future,) = render(Hooked(tiny_pipeline, ruin), [unit], previews=previews)
    assert future.result().warnings
    assert watcher.steps() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    shown = [step for step, _, jpeg in watcher.seen[0] if jpeg]
    assert shown == [2, 4, 2, 4]


def test_a_cancelled_unit_is_shown_no_more(tiny_pipeline, previews, watcher):
    """Its neighbours are."""
    engine = Engine(lambda _: tiny_pipeline, max_batch=2, previews=previews)
    futures = [engine.submit(tiny_unit(index=i, num_inference_steps=6, watch=CLOSELY)) for i in range(2)]
    with torch.inference_mode():
        for call in range(6):
            if call == 3:
                engine.cancel("job_test", 0)
            engine._pass(engine._next_lane())
            previews.catch_up()
    with pytest.raises(UnitCancelled):
        futures[0].result()
    assert watcher.steps(0) == [1, 2, 3]
    assert watcher.steps(1) == [1, 2, 3, 4, 5, 6]


class Elsewhere(NoopPipeline):
    """A model on a device that has no numbers: reading any back raises."""

    device = torch.device("meta")

    def predict(self, latents, _rides, *, guided, batch_shape):
        """Return something of the right shape."""
        return torch.zeros_like(latents)

    def decode(self, latents):
        """Return a picture that is elsewhere."""
        return torch.zeros((8 * latents.shape[2], 8 * latents.shape[3], 3), dtype=torch.uint8, device=self.device)


def test_showing_waits_for_no_device(previews):
    """The engine's thread begins to copy, the first sample included, and asks for no number of what it copies."""
    pipeline = Elsewhere(size_px=64, max_batch=4, pictures=[])
    engine = Engine(lambda _: pipeline, max_batch=4, previews=previews)
    for index in range(4):
        engine.submit(replace(noop_unit(index, size_px=64), watch=CLOSELY))
    with torch.inference_mode():
        for _ in range(3):
            engine._pass(engine._next_lane())
    assert len(previews._lessons) == 1
    assert {news.latents._copies[0].shape for news in previews._news.values()} == {(1, 4, 8, 8)}
    assert previews.watched, "nothing failed"


def test_the_thread_shows_what_it_is_given_and_stops(tiny_pipeline):
    """Started, it needs nobody to ask it."""
    told = threading.Event()
    previews = Previews(lambda _hint, _step, _steps, jpeg: told.set() if jpeg else None)
    previews.start()
    engine = Engine(lambda _: tiny_pipeline, max_batch=2, previews=previews)
    engine.start()
    engine.submit(tiny_unit(watch=Watch(1, 3600))).result(60)
    assert told.wait(60)
    engine.stop()
    previews.stop()
    previews._thread.join(60)  # a slow one is left behind by `stop`
    assert not previews._thread.is_alive()


@pytest.mark.parametrize("shape", [(256, 256), (32, 64), (1, 300)])
def test_a_jpeg_is_small_whatever_it_shows(shape):
    """Noise compresses badly; it still fits, and has the longer side that was asked for."""
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    jpeg = jpeg_of(noise, 256)
    assert len(jpeg) <= MAX_JPEG_BYTES
    assert max(Image.open(io.BytesIO(jpeg)).size) == 256
