"""The life of a unit on a worker: every way it can end, on a real ledger, with a hand-written engine and store."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from expanded_jobs import expanded_job
from farm.errors import Fatal, HubDown, LedgerDown, ModelBroken, RenderFailed, StorageDown
from farm.jobs import Hint, JobState, UnitState
from farm.ledger import Ledger, WorkerReport
from farm.recipes import read_recipe
from farm.settings import Settings
from servers import valkey
from told_clock import Clock
from worker.inputs import InputAway
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.render import Outcome, Renderer, _backoff_s
from worker.seat import EngineStopped, Rendered, Timings, UnitCancelled

ME = "here:cpu0#1"
WAIT_S = 60
"""Nothing takes so long; who waits in vain fails after it."""


class PretendEngine:
    """Hands out futures that the test settles, or settles them at once."""

    def __init__(self) -> None:
        self.outcome: Exception | None = None
        self.holds = False
        self.stopped = False
        self.lock = threading.RLock()  # units come on threads of their own
        self.futures: dict[Hint, Future] = {}
        self.arrived = threading.Event()
        self.inputs: dict[Hint, Inputs] = {}

    def submit(self, unit, inputs=NO_INPUTS):
        """Settle at once unless told to hold."""
        with self.lock:
            if self.stopped:
                raise EngineStopped("the engine is stopping")
            future = Future()
            self.futures[unit.hint] = future
            self.inputs[unit.hint] = inputs
            if not self.holds:
                self.settle(unit.hint)
        self.arrived.set()
        return future

    def settle(self, hint) -> None:
        """Finish a unit the way `outcome` says."""
        if self.outcome is not None:
            self.futures[hint].set_exception(self.outcome)
        else:
            self.futures[hint].set_result(image())

    def cancel(self, job, index=None):
        """Cancel what has not finished."""
        with self.lock:
            for hint, future in self.futures.items():
                if hint.job == job and index in (None, hint.index) and not future.done():
                    future.set_exception(UnitCancelled("cancelled"))

    def stop(self) -> None:
        """Give up everything, as the real one does without a drain."""
        with self.lock:
            self.stopped = True
            for future in self.futures.values():
                if not future.done():
                    future.set_exception(EngineStopped("the engine is stopping"))


class PretendPictures:
    """Has a picture for every unit, unless it is told to fail."""

    def __init__(self) -> None:
        self.outcomes: list[Exception] = []

    def fetch(self, unit):
        """Return the unit's pictures."""
        if self.outcomes:
            raise self.outcomes.pop(0)
        return Inputs(image=np.zeros((2, 2, 3), np.uint8)) if unit.image else NO_INPUTS


class PretendStore:
    """Keeps objects in a dict, unless it is down."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.types: set[str] = set()
        self.down: Exception | None = None
        self.refused = threading.Event()

    def put(self, key, data, content_type):
        """Put, or fail."""
        if (down := self.down) is not None:
            self.refused.set()
            raise down
        self.objects[key] = data
        self.types.add(content_type)


def image():
    """Return a small finished image."""
    return Rendered(
        pixels=np.full((128, 128, 3), 9, np.uint8),
        timings=Timings(0.1, 0.2, 1.0, 0.3, 0.5, 20, 2.0, None),
        model_hash="ab" * 32,
        device="cpu",
        dtype="float32",
        warnings=(),
    )


@pytest.fixture
def clock():
    """Return the ledger's clock: no lease ends because this machine is slow."""
    return Clock()


@pytest.fixture
def ledger(redis_url, clock):
    """Return a ledger on an empty server."""
    ledger = Ledger.connect(Settings(redis_url=redis_url, max_attempts=3), clock=clock)
    yield ledger
    ledger.close()


@pytest.fixture
def engine():
    """Return an engine that renders at once."""
    return PretendEngine()


@pytest.fixture
def store():
    """Return a store that works."""
    return PretendStore()


@pytest.fixture
def renderer(ledger, engine, store):
    """Return a renderer that keeps at most two undelivered images."""
    return Renderer(ME, ledger=ledger, engine=engine, store=store, pictures=PretendPictures(), max_undelivered=2)


def open_job(ledger, images=1, **fields):
    """Open a job and hand its units out; return its id and hints."""
    job = expanded_job(num_images_per_prompt=images, **fields)
    ledger.open(job)
    ledger.report(
        WorkerReport(name=ME, node="here:cpu0", pid=1, device="cpu", models=("scenes",), max_batch=32, started_at=0)
    )
    return job.header.id, ledger.feed("scenes")


def in_thread(work, *args):
    """Run `work` beside the test; its result is in the future."""
    with_one = ThreadPoolExecutor(1)
    future = with_one.submit(work, *args)
    with_one.shutdown(wait=False)
    return future


def test_an_image_is_put_and_counted(renderer, ledger, store):
    """The straight way: the object lies under its key with its recipe, the job is done, its time is known."""
    job, (hint,) = open_job(ledger)
    claimed = []
    renderer._on_claim = lambda: claimed.append(True)
    assert renderer.render(hint) is Outcome.STORED
    assert claimed
    assert read_recipe(store.objects[f"jobs/{job}/0000000.png"]).seed == 1
    assert store.types == {"image/png"}
    status = ledger.job(job)
    assert status.state is JobState.DONE
    assert status.gpu_s == pytest.approx(0.5)
    assert ledger.image(job, 0).render_s == pytest.approx(1.5)
    assert renderer.held == []
    assert renderer.num_undelivered == 0


def test_all_files_of_a_unit_are_put_before_it_is_counted(renderer, ledger, store):
    """A storage that goes away between them costs time, not a file; a repeat writes the same bytes again."""
    extras = {"thumbnail_px": 32, "upscale": 2}
    job, (hint,) = open_job(ledger, output=extras)
    put, counts = store.put, []

    def put_at_second_try(key, data, content_type):
        counts.append(ledger.job(job).counts.stored)
        if len(counts) % 2:
            raise StorageDown("away")
        put(key, data, content_type)

    store.put = put_at_second_try
    assert renderer.render(hint) is Outcome.STORED
    assert counts == [0] * 6
    assert ledger.job(job).counts.stored == 1
    names = ["0000000.thumb.webp", "0000000.x2.png", "0000000.png"]
    assert list(store.objects) == [f"jobs/{job}/{name}" for name in names]
    first = list(store.objects.values())
    _, (again,) = open_job(ledger, output=extras)
    assert renderer.render(again) is Outcome.STORED
    assert list(store.objects.values())[3:] == first


def test_a_unit_gets_the_pictures_that_it_names(renderer, ledger, engine):
    """They are there when the engine begins."""
    _, (hint,) = open_job(ledger, image="uploads/a.png")
    assert renderer.render(hint) is Outcome.STORED
    assert engine.inputs[hint].image is not None


def test_a_unit_whose_picture_is_missing_fails_with_the_reason(renderer, ledger):
    """No other worker would find it, so nobody else is asked."""
    job, (hint,) = open_job(ledger, image="uploads/a.png")
    renderer._pictures.outcomes = [RenderFailed("image 'uploads/a.png': the storage has nothing")]
    assert renderer.render(hint) is Outcome.FAILED
    failed = ledger.image(job, 0)
    assert (failed.state, failed.error) == (UnitState.FAILED, "image 'uploads/a.png': the storage has nothing")


def test_a_unit_waits_for_its_picture_while_the_storage_is_away(renderer, ledger):
    """It keeps its lease, and costs no strike."""
    job, (hint,) = open_job(ledger, image="uploads/a.png")
    renderer._pictures.outcomes = [StorageDown("away")] * 2
    assert renderer.render(hint) is Outcome.STORED
    assert ledger.job(job).retries == 0


def test_a_host_that_gives_no_picture_now_costs_a_strike(renderer, ledger, clock):
    """Somebody tries again, a while later; a seat's thread does not wait for strangers."""
    job, (hint,) = open_job(ledger, image="uploads/a.png")
    renderer._pictures.outcomes = [InputAway("the server answers 500")]
    assert renderer.render(hint) is Outcome.FAILED
    assert ledger.image(job, 0).state is UnitState.QUEUED
    clock.now += 0.7
    ledger.reap()
    assert ledger.feed("scenes") == [], "a second has not passed"
    clock.now += 0.6
    ledger.reap()
    assert [again.attempt for again in ledger.feed("scenes")] == [2]


def test_a_unit_waits_longer_after_each_try_that_found_nobody_there():
    """A hub or host that is away for a minute costs no unit of five attempts its life."""
    waits = [_backoff_s(attempt) for attempt in range(1, 6)]
    assert all(0.75 <= wait / expected <= 1.25 for wait, expected in zip(waits, (1, 4, 16, 60, 60), strict=True))


@pytest.mark.parametrize("error", [HubDown("away"), StorageDown("away")])
def test_a_model_that_cannot_be_had_now_is_tried_again_later(renderer, ledger, engine, error):
    """The hub is away when the engine wants to load: a strike, but no hurry."""
    job, (hint,) = open_job(ledger)
    engine.outcome = error
    assert renderer.render(hint) is Outcome.FAILED
    ledger.reap()
    assert ledger.feed("scenes") == []
    assert ledger.image(job, 0).state is UnitState.QUEUED
    assert ledger.image(job, 0).history == (f"{type(error).__name__}: away",)


def test_a_suspect_renders_with_nothing_beside_it(renderer, ledger, engine):
    """Its workers died twice: it waits for what its worker holds, which takes nothing more until it is made."""
    _, hints = open_job(ledger, images=3)
    suspect = die_twice(ledger, hints[0])
    engine.holds = True
    first = in_thread(renderer.render, hints[1])
    assert engine.arrived.wait(WAIT_S)
    alone = in_thread(renderer.render, suspect)
    wait_until(lambda: renderer._company._is_closed)
    second = in_thread(renderer.render, hints[2])
    time.sleep(0.1)  # for who does not keep to the rule
    assert list(engine.futures) == [hints[1]]
    engine.settle(hints[1])
    assert first.result(WAIT_S) is Outcome.STORED
    wait_until(lambda: suspect in engine.futures)
    time.sleep(0.1)
    assert renderer.held == [suspect], "were another one held, it would have a strike when this one kills the worker"
    assert ledger.job(suspect.job).counts.rendering == 1
    engine.settle(suspect)
    assert alone.result(WAIT_S) is Outcome.STORED
    wait_until(lambda: hints[2] in engine.futures)
    engine.settle(hints[2])
    assert second.result(WAIT_S) is Outcome.STORED


@pytest.mark.parametrize("cancelled", [True, False])
def test_who_waits_for_company_to_leave_hears_that_it_is_over(renderer, ledger, engine, cancelled):
    """Cancelled or drained while others sit, a suspect is given back, and the door stands open again."""
    _, hints = open_job(ledger, images=3)
    suspect = die_twice(ledger, hints[0])
    engine.holds = True
    first = in_thread(renderer.render, hints[1])
    assert engine.arrived.wait(WAIT_S)
    alone = in_thread(renderer.render, suspect)
    wait_until(lambda: suspect in renderer.held)
    if not cancelled:
        behind = in_thread(renderer.render, hints[2])
        renderer.drain()
        assert alone.result(WAIT_S) is Outcome.RELEASED
        engine.stop()
        assert behind.result(WAIT_S) is Outcome.RELEASED
        assert first.result(WAIT_S) is Outcome.RELEASED
        return
    renderer.lose([suspect])
    assert alone.result(WAIT_S) is Outcome.LOST
    second = in_thread(renderer.render, hints[2])
    wait_until(lambda: hints[2] in engine.futures)
    for hint in hints[1:]:
        engine.settle(hint)
    assert [first.result(WAIT_S), second.result(WAIT_S)] == [Outcome.STORED] * 2


def test_of_two_suspects_one_goes_back(renderer, ledger):
    """Claimed at the same moment they would wait for each other for ever: the second is free for others, unpunished."""
    job, hints = open_job(ledger, images=2)
    suspects = [die_twice(ledger, hint) for hint in hints]
    both = threading.Barrier(2)

    def fetch(_unit):
        both.wait(WAIT_S)
        return NO_INPUTS

    renderer._pictures.fetch = fetch
    outcomes = [in_thread(renderer.render, hint) for hint in suspects]
    assert sorted(outcome.result(WAIT_S) for outcome in outcomes) == [Outcome.RELEASED, Outcome.STORED]
    assert [len(image.history) for image in ledger.images(job)] == [2, 2]


def die_twice(ledger, hint):
    """Claim a unit with workers that die of it; return its next hint."""
    for boot in (1, 2):
        assert ledger.claim(hint, f"there:cpu0#{boot}")
        ledger.reap_node("there:cpu0", keep="there:cpu0#9")
        (hint,) = ledger.feed("scenes")
    return hint


def wait_until(is_so):
    """Wait for a condition."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("cancelled", [True, False])
def test_who_waits_for_a_picture_hears_that_it_is_over(renderer, ledger, cancelled):
    """Cancelled or drained, the unit is given back without a seat."""
    job, (hint,) = open_job(ledger, image="uploads/a.png")
    renderer._pictures.outcomes = [StorageDown("away")] * 1000
    outcome = in_thread(renderer.render, hint)
    wait_until(lambda: renderer.held)
    if cancelled:
        renderer.cancel(job)
    else:
        renderer.drain()
    assert outcome.result(WAIT_S) is (Outcome.LOST if cancelled else Outcome.RELEASED)


def test_a_second_message_for_a_unit_is_dropped(renderer, ledger, store):
    """Whatever Celery delivers twice, stale or by mistake, costs one question to the ledger."""
    _, (hint,) = open_job(ledger)
    assert renderer.render(hint) is Outcome.STORED
    store.objects.clear()
    for message in (hint, hint._replace(attempt=7), hint._replace(index=5), Hint("job_none", 0, 1)):
        assert renderer.render(message) is Outcome.DROPPED
    assert store.objects == {}


@pytest.mark.parametrize("error", [RenderFailed("the image came out all black, twice"), ModelBroken("no weights")])
def test_what_cannot_be_rendered_fails_at_once(renderer, ledger, engine, error):
    """Nobody else could do better, so the unit is not tried again."""
    job, (hint,) = open_job(ledger)
    engine.outcome = error
    assert renderer.render(hint) is Outcome.FAILED
    failed = ledger.image(job, 0)
    assert (failed.state, failed.error) == (UnitState.FAILED, str(error))
    assert renderer.num_failures == 1


def test_the_unexpected_is_tried_again_until_attempts_run_out(renderer, ledger, engine):
    """A bug or bad luck is one strike; the last one fails the unit with its history."""
    job, (hint,) = open_job(ledger)
    engine.outcome = ZeroDivisionError("oops")
    for attempt in (2, 3):
        assert renderer.render(hint) is Outcome.FAILED
        assert ledger.image(job, 0).state is UnitState.QUEUED
        (hint,) = ledger.feed("scenes")
        assert hint.attempt == attempt
    assert renderer.render(hint) is Outcome.FAILED
    failed = ledger.image(job, 0)
    assert failed.state is UnitState.FAILED
    assert failed.history == ("ZeroDivisionError: oops",) * 3


def test_a_cancelled_unit_leaves_its_seat_and_the_ledger(renderer, ledger, engine, store):
    """Its future ends at once, nothing is put, nothing stays leased."""
    job, (hint,) = open_job(ledger)
    engine.holds = True
    outcome = in_thread(renderer.render, hint)
    assert engine.arrived.wait(WAIT_S)
    assert renderer.held == [hint]
    ledger.cancel(job)
    renderer.cancel(job)
    assert outcome.result(WAIT_S) is Outcome.LOST
    assert store.objects == {}
    assert ledger.job(job).counts.cancelled == 1
    assert ledger.renew(ME, [hint]) == {hint}


def test_a_unit_cancelled_on_its_way_to_the_engine_gets_no_seat_for_long(renderer, ledger, engine, store):
    """The engine is told of a cancel in vain while a unit is on its way there; it is told again when it has it."""
    job, (hint,) = open_job(ledger)
    engine.holds = True
    submit = engine.submit

    def submit_after_the_cancel(unit, inputs):
        ledger.cancel(job)
        renderer.cancel(job)
        return submit(unit, inputs)

    engine.submit = submit_after_the_cancel
    assert in_thread(renderer.render, hint).result(WAIT_S) is Outcome.LOST
    assert store.objects == {}


def test_a_lease_lost_while_the_image_waits_for_storage_is_noticed_before_the_put(renderer, ledger, store):
    """The storage coming back must not make a stale attempt write."""
    _, (hint,) = open_job(ledger)
    store.down = StorageDown("away")
    outcome = in_thread(renderer.render, hint)
    assert store.refused.wait(WAIT_S)
    renderer.lose([hint])
    store.down = None
    assert outcome.result(WAIT_S) is Outcome.LOST
    assert store.objects == {}


def test_an_image_of_a_stale_attempt_is_not_counted(renderer, ledger, engine):
    """Even if nobody told us: the ledger counts the newer attempt only."""
    job, (hint,) = open_job(ledger)
    engine.holds = True
    outcome = in_thread(renderer.render, hint)
    assert engine.arrived.wait(WAIT_S)
    ledger.release(hint, ME)
    engine.settle(hint)
    assert outcome.result(WAIT_S) is Outcome.REPEATED
    assert ledger.job(job).counts.stored == 0


@pytest.mark.parametrize("error", [StorageDown("away"), Fatal("the storage refuses our credentials")])
def test_images_wait_for_the_storage_and_then_no_more_is_claimed(renderer, ledger, engine, store, error):
    """With two finished images waiting, the bound, a fourth unit is not claimed; the third, begun before, waits too."""
    job, hints = open_job(ledger, images=4)
    store.down = error
    engine.holds = True
    outcomes = [in_thread(renderer.render, hint) for hint in hints[:3]]
    wait_until(lambda: len(engine.futures) == 3)
    for hint in hints[:3]:
        engine.settle(hint)
    wait_until(lambda: renderer.num_undelivered == 3)
    assert not renderer.is_claiming
    engine.holds = False
    outcomes.append(in_thread(renderer.render, hints[3]))
    time.sleep(0.1)  # for who does not keep to the bound
    assert ledger.job(job).counts.rendering == 3
    assert set(renderer.held) == set(hints[:3])
    store.down = None
    assert [outcome.result(WAIT_S) for outcome in outcomes] == [Outcome.STORED] * 4
    assert ledger.job(job).state is JobState.DONE
    assert renderer.is_claiming


def test_a_stopping_worker_gives_back_what_it_holds_without_a_strike(renderer, ledger, engine, store):
    """Rendering, waiting for the storage, or just arrived: all units are free for others at once."""
    job, hints = open_job(ledger, images=3)
    store.down = StorageDown("away")
    waiting = in_thread(renderer.render, hints[0])
    assert store.refused.wait(WAIT_S)
    engine.holds = True
    engine.arrived.clear()
    rendering = in_thread(renderer.render, hints[1])
    assert engine.arrived.wait(WAIT_S)
    renderer.drain()
    engine.stop()
    assert waiting.result(WAIT_S) is Outcome.RELEASED
    assert rendering.result(WAIT_S) is Outcome.RELEASED
    assert renderer.render(hints[2]) is Outcome.RELEASED
    assert len(ledger.feed("scenes")) == 3
    assert ledger.image(job, 0).history == ()


def test_a_stopping_worker_does_not_wait_for_redis():
    """With Redis away there is nobody to give back to: leases run out by themselves."""
    engine, store = PretendEngine(), PretendStore()
    ledger = Ledger.connect(Settings(redis_url="redis://127.0.0.1:1/0"))
    renderer = Renderer(ME, ledger=ledger, engine=engine, store=store, pictures=PretendPictures(), max_undelivered=2)
    outcome = in_thread(renderer.render, Hint("job_a", 0, 1))
    time.sleep(0.1)
    renderer.drain()
    assert outcome.result(WAIT_S) is Outcome.DROPPED
    ledger.close()


def test_a_claim_whose_answer_was_lost_is_ours_all_the_same(renderer, ledger, monkeypatch):
    """The outage came between the grant and its answer: asking again finds the lease, and no strike comes of it."""
    job, (hint,) = open_job(ledger)
    claim = ledger.claim

    def claim_and_lose_the_answer(*args, **options):
        monkeypatch.setattr(ledger, "claim", claim)
        assert claim(*args, **options)
        raise LedgerDown("the connection broke")

    monkeypatch.setattr(ledger, "claim", claim_and_lose_the_answer)
    assert renderer.render(hint) is Outcome.STORED
    assert ledger.job(job).retries == 0


def test_what_was_finished_while_redis_was_away_is_counted_when_it_is_back(engine, store):
    """The image is put in the meantime, and counted once Redis answers; AOF kept the lease."""
    with valkey() as server:
        ledger = Ledger.connect(server.settings())
        renderer = Renderer(
            ME, ledger=ledger, engine=engine, store=store, pictures=PretendPictures(), max_undelivered=2
        )
        job, (hint,) = open_job(ledger)
        engine.holds = True
        outcome = in_thread(renderer.render, hint)
        assert engine.arrived.wait(WAIT_S)
        server.kill()
        engine.settle(hint)
        wait_until(lambda: store.objects)
        assert not outcome.done()
        server.start()
        assert outcome.result(WAIT_S) is Outcome.STORED
        assert ledger.job(job).state is JobState.DONE
        ledger.close()
