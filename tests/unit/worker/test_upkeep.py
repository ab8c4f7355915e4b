"""Upkeep, beat by beat, on a real ledger and a real queue, with a renderer that only remembers."""

from __future__ import annotations

import threading
import time

import pytest

from expanded_jobs import expanded_job
from farm.jobs import UnitState
from farm.ledger import Ledger, WorkerReport
from farm.queue import make_celery, queue_length
from farm.settings import Settings
from servers import valkey
from worker.upkeep import Upkeep

ME, PREDECESSOR, OTHER = "here:cpu0#2", "here:cpu0#1", "there:cpu0#1"


class PretendRenderer:
    """Holds what the test says, and remembers what it lost."""

    name = ME

    def __init__(self) -> None:
        self.held = []
        self.is_claiming = True
        self.lost = set()
        self.cancelled = []

    def lose(self, hints):
        """Note them."""
        self.lost |= set(hints)

    def cancel(self, job, index=None):
        """Note it."""
        self.cancelled.append(job)


class Clock:
    """A clock that goes when told."""

    def __init__(self, now) -> None:
        self.now = now

    def __call__(self):
        return self.now


class Worker:
    """Upkeep and all it works with."""

    def __init__(self, redis_url, *, lease_s=4.0, is_real_time=False) -> None:
        self.settings = Settings(redis_url=redis_url, lease_s=lease_s)
        self.redis_clock = None if is_real_time else Clock(time.time())
        self.clock = time.monotonic if is_real_time else Clock(1000.0)
        self.ledger = Ledger.connect(self.settings, clock=self.redis_clock)
        self.app = make_celery(self.settings)
        self.renderer = PretendRenderer()
        self.nudge = threading.Event()
        self.upkeep = self.make_upkeep()

    def make_upkeep(self):
        """Return the upkeep of a fresh process."""
        return Upkeep(
            "here:cpu0",
            ledger=self.ledger,
            renderer=self.renderer,
            app=self.app,
            models=("scenes",),
            describe=lambda: report(ME),
            lease_s=self.settings.lease_s,
            nudge=self.nudge,
            clock=self.clock,
        )

    def open_job(self, images):
        """Open a job; return its id."""
        return self.ledger.open(expanded_job(num_images_per_prompt=images)).id

    def tick(self, seconds):
        """Let time pass for Redis and for us."""
        self.redis_clock.now += seconds
        self.clock.now += seconds


def report(name):
    """Return a heartbeat of four seats."""
    return WorkerReport(
        name=name, node=name.partition("#")[0], pid=1, device="cpu", models=("scenes",), max_batch=4, started_at=0
    )


@pytest.fixture
def worker(redis_url):
    """Return a worker on an empty Redis."""
    worker = Worker(redis_url)
    yield worker
    worker.ledger.close()
    worker.app.close()


def test_a_beat_brings_work(worker):
    """Reported and fed in one beat: twice as many units as seats are on their way."""
    worker.open_job(20)
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 8
    assert [each.name for each in worker.ledger.workers()] == [ME]


def test_the_first_beat_takes_a_predecessors_units_back(worker):
    """A restarted worker does not wait for the leases of its dead self; others' leases stay."""
    job = worker.open_job(2)
    worker.ledger.report(report(PREDECESSOR))
    mine, others = worker.ledger.feed("scenes")
    assert worker.ledger.claim(mine, PREDECESSOR)
    assert worker.ledger.claim(others, OTHER)
    worker.upkeep.beat()
    assert worker.ledger.image(job, mine.index).history == (f"{PREDECESSOR} died",)
    assert worker.ledger.image(job, others.index).state is UnitState.RENDERING


def test_leases_are_renewed_and_lost_ones_stop(worker):
    """Renewing keeps a unit as long as it takes; a cancelled one is given up at the next beat."""
    kept, cancelled = worker.open_job(1), worker.open_job(1)
    worker.upkeep.beat()
    hints = worker.ledger.rehint("scenes", older_than_s=-1)
    assert all(worker.ledger.claim(hint, ME) for hint in hints)
    worker.renderer.held = hints
    worker.ledger.cancel(cancelled)
    for _ in range(10):
        worker.tick(1)
        worker.upkeep.beat()
    assert {hint.job for hint in worker.renderer.lost} == {cancelled}
    assert worker.ledger.image(kept, 0).attempts == 1


def test_other_workers_expired_leases_are_reaped(worker):
    """A worker that vanished without a successor loses its units to the others."""
    job = worker.open_job(1)
    worker.ledger.report(report(OTHER))
    (hint,) = worker.ledger.feed("scenes")
    worker.ledger.claim(hint, OTHER)
    for _ in range(6):
        assert worker.ledger.image(job, 0).history == ()
        worker.upkeep.beat()
        worker.tick(0.9)
    assert worker.ledger.image(job, 0).history == (f"lease of {OTHER} expired",)


def test_a_worker_that_was_cut_off_itself_judges_nobody(worker):
    """Redis was frozen, for all: leases ran out meanwhile, and are renewed before anybody may reap them."""
    job = worker.open_job(1)
    worker.ledger.report(report(OTHER))
    (hint,) = worker.ledger.feed("scenes")
    worker.ledger.claim(hint, OTHER)
    for _ in range(6):
        worker.upkeep.beat()
        worker.tick(1)
        assert not worker.ledger.renew(OTHER, [hint])
    worker.tick(5)  # no call failed: all were answered late
    worker.upkeep.beat()
    assert not worker.ledger.renew(OTHER, [hint])
    assert worker.ledger.image(job, 0).history == ()


def test_vanished_messages_are_sent_again(worker):
    """What was handed out and is in no queue is hinted again after two seconds, not before."""
    worker.open_job(3)
    worker.upkeep.beat()
    worker.app.pool.acquire().default_channel.queue_purge("render.scenes")
    worker.tick(1)
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 0
    worker.tick(2)
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 3
    worker.tick(3)
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 3


def test_a_worker_that_cannot_claim_is_not_fed(worker):
    """While images wait for the storage it stays on the list, with no queue to its name."""
    worker.open_job(20)
    worker.renderer.is_claiming = False
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 0
    assert worker.ledger.workers()[0].models == ()


def test_the_threads_outlive_redis_and_give_everybody_time_to_renew():
    """After an outage longer than a lease, nobody's units are reaped before they could be renewed."""
    lease_s = 1.0
    with valkey() as server:
        worker = Worker(server.url, lease_s=lease_s, is_real_time=True)
        job = worker.open_job(1)
        worker.ledger.report(report(OTHER))
        (hint,) = worker.ledger.feed("scenes")
        worker.ledger.claim(hint, OTHER)
        worker.upkeep.start()
        for _ in range(6):  # long enough for upkeep to reap, were there anything
            time.sleep(lease_s / 4)
            assert not worker.ledger.renew(OTHER, [hint])
        server.kill()
        time.sleep(lease_s + 0.1)
        server.start()
        wait_until(lambda: [each.name for each in worker.ledger.workers()] == [ME])
        assert worker.ledger.image(job, 0).state is UnitState.RENDERING
        assert not worker.ledger.renew(OTHER, [hint])
        worker.ledger.cancel(job)
        wait_until(lambda: job in worker.renderer.cancelled)
        worker.upkeep.stop()
        worker.ledger.close()
        worker.app.close()


def wait_until(is_so, timeout_s=10):
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
