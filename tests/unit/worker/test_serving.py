"""What a worker serves: from what waits, over the ledger's word, to the queues that it reads. On a real server."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from celery.contrib.testing.worker import start_worker

from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.jobs import Hint, UnitState, UrgentHint
from farm.ledger import Ledger, WorkerReport
from farm.queue import RENDER_TASK, hold_at_most, make_celery, publish, queue_length, queues, read_on, read_only
from farm.settings import Settings
from worker.pipelines.base import NO_INPUTS
from worker.render import Outcome, Renderer
from worker.serving import Serving

MODELS = ("scenes", "sd15", "sdxl")
WAIT_S = 60
"""Nothing takes so long; who waits in vain fails after it."""


OPTIONS = {
    "pool": "threads",
    "perform_ping_check": False,
    "without_heartbeat": True,
    "shutdown_timeout": WAIT_S,
}
"""Of Celery's workers in this process."""


def wait_until(is_so):
    """Wait for a condition."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


class PretendEngine:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.seats = 4
        self.load_s = {}
        self.resident_models = MODELS
        self.expected = []
        self.given_back = []

    def expect(self, model):
        """Note it."""
        self.expected.append(model)

    def give_back(self, models):
        """Note it."""
        self.given_back.append(list(models))


class Worker:
    """One worker's choice, its ledger, and its clock."""

    def __init__(self, redis_url, name, models=MODELS) -> None:
        self.name = name
        self.ledger = Ledger.connect(Settings(redis_url=redis_url), clock=lambda: self.now)
        self.now = 1_800_000_000.0
        self.engine = PretendEngine()
        self.serving = Serving(
            name,
            models,
            ledger=self.ledger,
            device=self.engine,
            fits=lambda together: len(together) <= 1,
            wait_s=60.0,
            clock=lambda: self.now,
        )

    def report(self):
        """Beat."""
        self.ledger.report(
            WorkerReport(
                name=self.name,
                node=self.name.partition("#")[0],
                pid=1,
                device="cpu",
                models=MODELS,
                serving=self.serving.models,
                max_batch=4,
                started_at=0,
            )
        )

    def open_job(self, model, images=20):
        """Open a job; return its id."""
        row = Catalog().row(model)
        size = {"width": row.width, "height": row.height}
        return self.ledger.open(expanded_job(row=row, num_images_per_prompt=images, **size)).id


@pytest.fixture
def pair(redis_url):
    """Return two workers of one farm."""
    workers = [Worker(redis_url, "here:gpu0#1"), Worker(redis_url, "here:gpu1#1")]
    yield workers
    for worker in workers:
        worker.ledger.close()


def test_a_worker_serves_what_waits(pair):
    """It tells the ledger, so that units are handed out, and the engine, so that weights are read ahead."""
    worker, _ = pair
    worker.report()
    assert not worker.serving.update()
    worker.open_job("sd15")
    assert worker.ledger.feed("sd15") == []
    assert worker.serving.update()
    assert (worker.serving.models, worker.engine.expected) == (("sd15",), ["sd15"])
    assert len(worker.ledger.feed("sd15")) == 8
    assert not worker.serving.update()


def test_two_workers_that_decide_at_once_take_two_models(pair, monkeypatch):
    """Both see the same; the ledger takes the first, and the other looks again."""
    one, other = pair
    for worker in pair:
        worker.report()
    one.open_job("sd15")
    one.now += 1
    one.open_job("sdxl")
    demand = one.ledger.demand()
    answers = [demand]
    look = other.ledger.demand
    monkeypatch.setattr(other.ledger, "demand", lambda: answers.pop() if answers else look())
    assert one.serving.update()
    assert other.serving.update()
    assert {*one.serving.models, *other.serving.models} == {"sd15", "sdxl"}


@pytest.mark.parametrize(("images", "given_back"), [(20, ["sd15"]), (4, [])])
def test_what_is_left_is_given_back_but_for_the_last(pair, images, given_back):
    """Units without a seat go back when others of their model wait; the last ones are finished where they are."""
    worker, _ = pair
    worker.report()
    worker.open_job("sd15", images=images)
    worker.serving.update()
    for hint in worker.ledger.feed("sd15"):
        worker.ledger.claim(hint, worker.name)
    worker.open_job("sdxl")
    worker.serving.update()
    for _ in range(40):
        worker.now += 4
        worker.report()
        worker.serving.update()
        if worker.serving.models == ("sdxl",):
            break
    assert worker.engine.given_back[1] == given_back


def test_a_worker_of_one_model_never_asks(redis_url):
    """There is nothing to decide."""
    worker = Worker(redis_url, "here:gpu0#1", ("scenes",))
    assert worker.serving.models == ("scenes",)
    assert not worker.serving.update()
    assert worker.engine.expected == []
    worker.ledger.close()


def test_only_served_queues_are_read(redis_url):
    """A real consumer follows what is served, from nothing to something and on to something else, and back."""
    app = make_celery(Settings(redis_url=redis_url))
    served, asked, got = [], [], []

    def serves():
        asked.append(list(served))
        return asked[-1]

    read_only(app, serves)

    @app.task(name=RENDER_TASK, shared=False)
    def render(job, *_):
        got.append(job)

    app.conf.task_queues = queues(MODELS)

    def expect(*jobs):
        wait_until(lambda: len(got) >= len(jobs))
        time.sleep(0.3)  # no more than those
        assert sorted(got) == sorted(jobs)
        got.clear()

    with start_worker(app, concurrency=2, **OPTIONS):
        for model in MODELS:
            publish(app, [(model, Hint(f"{model} {n}", 0, 1)) for n in range(3)])
        before = len(asked)
        wait_until(lambda: len(asked) > before)
        assert got == []
        served[:] = ["sd15"]
        expect("sd15 0", "sd15 1", "sd15 2")
        served[:] = []
        wait_until(lambda: asked[-1] == [])  # a read that had begun might still have brought one
        publish(app, [("sd15", Hint("late", 0, 1))])
        expect()
        served[:] = ["scenes", "sd15"]
        expect("scenes 0", "scenes 1", "scenes 2", "late")
        assert queue_length(app, "sdxl") == 3
    app.close()


def test_urgent_messages_are_read_first(redis_url):
    """An interactive image does not stand in line behind what was handed out before it."""
    app = make_celery(Settings(redis_url=redis_url))
    read_only(app, lambda: MODELS)
    got = []

    @app.task(name=RENDER_TASK, shared=False)
    def render(job, *_):
        got.append(job)

    app.conf.task_queues = queues(MODELS)
    publish(app, [("scenes", Hint("bulk", n, 1)) for n in range(20)])
    publish(app, [("scenes", UrgentHint("now", n, 1)) for n in range(2)])
    assert queue_length(app, "scenes") == 22
    with start_worker(app, concurrency=1, **OPTIONS):
        wait_until(lambda: len(got) >= 22)
    assert got == ["now", "now"] + ["bulk"] * 20
    app.close()


def test_no_more_is_read_than_seats_want(redis_url):
    """What a worker has no use for is there for others: it reads as far as its limit says, which rises and falls."""
    app = make_celery(Settings(redis_url=redis_url))
    limit = 2
    hold_at_most(app, lambda: limit)
    begun, finished = [], threading.Semaphore(0)

    @app.task(name=RENDER_TASK, shared=False)
    def render(_job, index, _attempt):
        begun.append(index)
        finished.acquire(timeout=2 * WAIT_S)

    app.conf.task_queues = queues(["scenes"])

    def expect(count):
        wait_until(lambda: len(begun) >= count)
        time.sleep(0.3)  # no more than those
        assert sorted(begun) == list(range(count))  # of two that are read together either may begin first

    publish(app, [("scenes", Hint("job", n, 1)) for n in range(12)])
    with start_worker(app, concurrency=8, **OPTIONS):
        expect(2)
        assert queue_length(app, "scenes") == 10
        finished.release()
        expect(3)
        limit = 5
        read_on()
        expect(6)
        limit = 1
        for _ in range(5):
            finished.release()
        expect(7)
        assert queue_length(app, "scenes") == 5
        for _ in range(6):
            finished.release()
        expect(12)
    app.close()


def test_a_worker_that_may_read_on_is_woken(monkeypatch):
    """Its loop sleeps for up to seconds; where there is none yet nothing happens."""
    turns = []
    monkeypatch.setattr("farm.queue.get_event_loop", lambda: SimpleNamespace(call_soon=turns.append))
    read_on()
    assert len(turns) == 1
    turns[0]()
    monkeypatch.setattr("farm.queue.get_event_loop", lambda: None)
    read_on()


def test_a_unit_of_a_model_that_was_left_goes_back(pair):
    """Its message was read a moment before: it is released unmade, without a strike, to be made elsewhere."""
    worker, _ = pair
    job = worker.open_job("sd15", images=1)
    worker.serving.update()
    (hint,) = worker.ledger.feed("sd15")
    renderer = Renderer(
        worker.name,
        ledger=worker.ledger,
        engine=worker.engine,
        store=None,
        pictures=SimpleNamespace(fetch=lambda _unit: NO_INPUTS),
        max_undelivered=4,
        serves=lambda model: model == "sdxl",
    )
    assert renderer.render(hint) is Outcome.RELEASED
    image = worker.ledger.image(job, 0)
    assert (image.state, image.history) == (UnitState.QUEUED, ())
