"""Upkeep, beat by beat, on a real ledger and a real queue, with a renderer that only remembers."""

from __future__ import annotations

import threading
import time

import pytest

from expanded_jobs import expanded_job
from farm.jobs import Hint, UnitState, UrgentHint, Watch
from farm.ledger import Ledger, WorkerReport
from farm.queue import make_celery, publish, queue_length
from farm.settings import Settings
from servers import valkey
from worker.upkeep import Appetite, Upkeep

ME, PREDECESSOR, OTHER = "here:cpu0#2", "here:cpu0#1", "there:cpu0#1"
MARK = "job_of_the_mark"
WAIT_S = 60
"""Nothing takes so long; who waits in vain fails after it."""


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
        self.cancelled.append((job, index))


class PretendServing:
    """Serves what the test says, and the next of its choices when asked to choose."""

    def __init__(self, *models) -> None:
        self.models = models
        self.choices = []

    def update(self):
        """Take the next choice, if there is one."""
        if not self.choices:
            return False
        self.models = self.choices.pop(0)
        return True


class Clock:
    """A clock that goes when told."""

    def __init__(self, now) -> None:
        self.now = now

    def __call__(self):
        return self.now


class Worker:
    """Upkeep and all it works with."""

    def __init__(self, redis_url, *, lease_s=4.0) -> None:
        self.settings = Settings(redis_url=redis_url, lease_s=lease_s)
        self.redis_clock = Clock(1_800_000_000.0)
        self.clock = Clock(1000.0)
        self.ledger = Ledger.connect(self.settings, clock=self.redis_clock)
        self.app = make_celery(self.settings)
        self.renderer = PretendRenderer()
        self.serving = PretendServing("scenes")
        self.nudge = threading.Event()
        self.seats = 4
        self.watched = []
        self.appetite = Appetite(lambda: self.seats, self.nudge)
        self.upkeep = self.make_upkeep()
        self.num_renewals = 0  # that were begun
        self.num_reaps = 0
        self.ledger.renew = self.counting("num_renewals", self.ledger.renew)
        self.ledger.reap = self.counting("num_reaps", self.ledger.reap)

    def counting(self, name, call):
        """Return `call`, which counts its calls."""

        def counted(*args, **kwargs):
            setattr(self, name, getattr(self, name) + 1)
            return call(*args, **kwargs)

        return counted

    def make_upkeep(self):
        """Return the upkeep of a fresh process."""
        return Upkeep(
            "here:cpu0",
            ledger=self.ledger,
            leases=self.ledger,
            renderer=self.renderer,
            app=self.app,
            serving=self.serving,
            able=("scenes", "other"),
            appetite=self.appetite,
            describe=lambda: report(ME).model_copy(update={"serving": self.serving.models, "seats": self.seats}),
            lease_s=self.settings.lease_s,
            nudge=self.nudge,
            on_watched=lambda job, watch: self.watched.append((job, watch)),
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
        worker.upkeep.renew()
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


def test_one_that_vanished_among_others_is_sent_again_later(worker):
    """While others wait in the queue it may only be slow: half a minute goes by first."""
    worker.open_job(3)
    worker.upkeep.beat()
    worker.ledger._redis.lpop("render.scenes")
    for _ in range(14):
        worker.tick(2)
        worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 2
    worker.tick(3)
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 5, "all three, for nobody knows which one is missing"


def test_a_worker_that_cannot_claim_is_not_fed(worker):
    """While images wait for the storage it stays on the list, with no queue to its name."""
    worker.open_job(20)
    worker.renderer.is_claiming = False
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 0
    assert worker.ledger.workers()[0].models == ()


def test_only_what_is_served_is_handed_out(worker):
    """A worker that serves nothing is sent nothing; when it has chosen, its units are on their way in the same call."""
    worker.open_job(20)
    worker.serving.models = ()
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 0
    worker.serving.choices = [("scenes",)]
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 0, "the ledger has not been told"
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 8


def test_when_nothing_is_left_the_next_model_is_chosen_at_once(worker):
    """Not at the next beat; while there is something to hand out, nobody asks what else there is."""
    worker.open_job(9)
    worker.upkeep.beat()
    worker.serving.choices = [("other",)]
    for hint in worker.ledger.rehint("scenes", older_than_s=0):
        worker.ledger.claim(hint, ME)
    worker.upkeep.find_work(choose=False)
    assert worker.serving.models == ("scenes",)
    worker.upkeep.find_work(choose=False)
    assert worker.serving.models == ("other",)


def test_units_are_handed_out_for_the_seats_that_are_of_use(worker):
    """A worker whose card gains nothing by a batch has two units ahead; that more seats pay it tells at once."""
    worker.open_job(40)
    worker.seats = 1
    worker.upkeep.beat()
    assert queue_length(worker.app, "scenes") == 2
    worker.upkeep.find_work(choose=False)
    assert queue_length(worker.app, "scenes") == 2
    worker.seats = 4
    worker.upkeep.find_work(choose=False)
    assert queue_length(worker.app, "scenes") == 8
    worker.seats = 1
    worker.upkeep.find_work(choose=False)
    assert worker.ledger.workers()[0].seats == 4, "fewer can wait for the beat"
    worker.upkeep.beat()
    assert worker.ledger.workers()[0].seats == 1


def test_fewer_seats_ask_for_more_sooner():
    """Half of what is handed out ahead follows the seats, or the last of them would be claimed with nobody asking."""
    nudge, seats = threading.Event(), 8
    appetite = Appetite(lambda: seats, nudge)
    seats = 1
    appetite.fed(2)
    appetite.claimed()
    assert nudge.is_set()


def test_claims_ask_for_more_when_half_is_gone():
    """Four seats have eight units ahead; and when there was no more to hand out, each claim asks."""
    nudge = threading.Event()
    appetite = Appetite(lambda: 4, nudge)
    appetite.fed(8)
    for claims in range(1, 5):
        appetite.claimed()
        assert nudge.is_set() == (claims == 4)
    appetite.fed(0)
    nudge.clear()
    appetite.claimed()
    assert nudge.is_set()


@pytest.fixture
def idle(redis_url):
    """Return a worker whose threads run, which has made its first beat and hears what is told.

    Its lease is an hour: whatever comes to pass, no beat brings it.
    """
    worker = Worker(redis_url, lease_s=3600.0)
    worker.serving.models = ()
    worker.upkeep.start()
    wait_until(worker.ledger.workers)

    def hears():
        worker.ledger._redis.publish("farm:news", f"cancelled {MARK}")
        return worker.renderer.cancelled

    wait_until(hears)
    yield worker
    worker.upkeep.stop()
    worker.ledger.close()
    worker.app.close()


def test_news_of_work_wakes_an_idle_worker_and_one_image_is_cancelled_alone(idle):
    """Nobody waits for the beat."""
    idle.serving.choices = [("scenes",)]
    idle.ledger.report(report(ME))
    job = idle.open_job(3)
    wait_until(lambda: queue_length(idle.app, "scenes") == 3)
    for hint in idle.ledger.rehint("scenes", older_than_s=-1):
        idle.ledger.claim(hint, ME)
    idle.ledger.cancel_image(job, 1)
    wait_until(lambda: (job, 1) in idle.renderer.cancelled)
    assert {each for each in idle.renderer.cancelled if each[0] != MARK} == {(job, 1)}


def test_news_of_a_watcher_reaches_who_shows_previews(idle):
    """And cancels nothing."""
    idle.ledger.report(report(ME))
    job = idle.open_job(1)
    (hint,) = idle.ledger.feed("scenes")
    idle.ledger.claim(hint, ME)
    idle.ledger.want_previews(job, every_steps=3, for_s=50)
    wait_until(lambda: idle.watched)
    assert idle.watched == [(job, Watch(3, 50.0))]
    assert {each[0] for each in idle.renderer.cancelled} == {MARK}


def test_leases_are_kept_while_everything_else_hangs(redis_url):
    """Reports, feeds and the like may be late; renewals have a thread of their own."""
    worker = Worker(redis_url, lease_s=0.25)
    worker.open_job(1)
    worker.ledger.report(report(ME))
    (hint,) = worker.ledger.feed("scenes")
    worker.ledger.claim(hint, ME)
    worker.renderer.held = [hint]
    hangs, is_over = threading.Event(), threading.Event()

    def hang():
        hangs.set()
        assert is_over.wait(300)

    worker.serving.update = hang
    worker.upkeep.start()
    assert hangs.wait(WAIT_S)
    for _ in range(4):
        worker.tick(0.2)  # of a lease of 0.25, so that each has to be renewed
        begun = worker.num_renewals
        wait_until(lambda begun=begun: worker.num_renewals > begun + 1)  # of two the first has been answered
    assert worker.ledger.reap() == 0
    is_over.set()
    worker.upkeep.stop()
    worker.ledger.close()
    worker.app.close()


def test_what_ends_while_a_beat_is_held_up_is_not_reaped_by_it(worker):
    """The network hangs between a beat's report and its reaping; both it and a renewal come through later."""
    worker.open_job(1)
    worker.ledger.report(report(OTHER))
    (hint,) = worker.ledger.feed("scenes")
    worker.ledger.claim(hint, OTHER)
    reaped_as_of, reap = [], worker.ledger.reap

    def late(**arguments):
        reaped_as_of.append(worker.redis_clock.now)
        worker.redis_clock.now += worker.settings.lease_s + 1
        return reap(**arguments)

    worker.ledger.reap = late
    while not reaped_as_of:  # until everybody has had a lease's time since this worker came
        worker.upkeep.beat()
        worker.clock.now += worker.settings.lease_s / 4
    assert not worker.ledger.renew(OTHER, [hint]), "it was taken away"


def test_after_a_beat_that_was_held_up_everybody_has_time_to_renew(worker):
    """Redis hangs for longer than a lease in the midst of a beat; the next one comes before the holder's renewal."""
    worker.open_job(1)
    worker.ledger.report(report(OTHER))
    (hint,) = worker.ledger.feed("scenes")
    worker.ledger.claim(hint, OTHER)
    for _ in range(6):  # from the fifth on it reaps
        worker.upkeep.beat()
        assert not worker.ledger.renew(OTHER, [hint])
        for clock in (worker.clock, worker.redis_clock):
            clock.now += worker.settings.lease_s / 4

    def hang():
        worker.clock.now += worker.settings.lease_s + 1
        worker.redis_clock.now += worker.settings.lease_s + 1

    worker.serving.update = hang
    worker.upkeep.beat()
    worker.serving.update = lambda: False
    worker.upkeep.beat()
    assert not worker.ledger.renew(OTHER, [hint]), "it was taken away"


def test_messages_of_models_that_nobody_serves_are_dropped_when_there_is_time(worker):
    """They speak of what went back to the backlog; those of served models, by whomever, are left alone."""
    for model in ("other", "scenes"):
        publish(worker.app, [(model, kind("job_x", n, 1)) for n, kind in enumerate((Hint, UrgentHint))])
    worker.ledger.report(report(OTHER).model_copy(update={"models": ("other",), "serving": ("other",)}))
    worker.upkeep.beat()
    assert (queue_length(worker.app, "other"), queue_length(worker.app, "scenes")) == (2, 2)
    worker.ledger.forget(OTHER)
    worker.renderer.held = [Hint("job_y", 0, 1)]
    worker.upkeep.beat()
    assert queue_length(worker.app, "other") == 2
    worker.renderer.held = []
    worker.upkeep.beat()
    assert (queue_length(worker.app, "other"), queue_length(worker.app, "scenes")) == (0, 2)


def test_the_threads_outlive_redis_and_give_everybody_time_to_renew():
    """After an outage longer than a lease, nobody's units are reaped before they could be renewed."""
    lease_s = 0.5
    with valkey() as server:
        worker = Worker(server.url, lease_s=lease_s)
        job = worker.open_job(2)
        worker.ledger.report(report(OTHER))
        hint, mine = worker.ledger.feed("scenes")
        worker.ledger.claim(hint, OTHER)
        worker.ledger.claim(mine, ME)
        worker.renderer.held = [mine]
        worker.upkeep.start()

        def renewed_again():
            begun = worker.num_renewals
            wait_until(lambda: worker.num_renewals > begun + 1)  # of two the first has come to its end

        def has_beaten():
            return any((each.name, each.seen_at) == (ME, worker.redis_clock.now) for each in worker.ledger.workers())

        while not worker.num_reaps:  # until upkeep would reap, were there anything
            wait_until(has_beaten)
            renewed_again()
            assert not worker.ledger.renew(OTHER, [hint])
            worker.tick(lease_s / 4)
        assert not worker.ledger.renew(OTHER, [hint])
        server.kill()
        renewed_again()  # in vain
        worker.tick(lease_s + 0.1)
        wait_until(lambda: worker.upkeep._is_cut_off)
        server.start()
        started_at = worker.redis_clock.now

        def has_beaten_again():
            worker.tick(0.1)
            return any(each.name == ME and each.seen_at > started_at for each in worker.ledger.workers())

        wait_until(has_beaten_again)
        assert worker.ledger.image(job, hint.index).state is UnitState.RENDERING
        assert not worker.ledger.renew(OTHER, [hint])
        renewed_again()
        assert worker.ledger.image(job, mine.index).state is UnitState.RENDERING
        assert worker.renderer.lost == set()

        def is_heard():  # what is told before it listens again is lost
            worker.ledger.cancel(worker.open_job(1))
            return worker.renderer.cancelled

        wait_until(is_heard)
        worker.upkeep.stop()
        worker.ledger.close()
        worker.app.close()


def wait_until(is_so):
    """Wait for a condition."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
