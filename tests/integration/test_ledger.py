"""The ledger on a real server: every transition, its repeats, and who may make it."""

import time

import pytest
from redis.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

import servers
from expanded_jobs import expanded_job
from farm.errors import IdempotencyConflict, LedgerDown, QueueFull, UnknownJob
from farm.jobs import Hint, JobState, UnitState
from farm.ledger import Ledger, News, WorkerReport
from farm.settings import Settings
from told_clock import Clock
from told_news import listen, told_by_now

ALICE, BOB = "alice:gpu0#1", "bob:gpu0#1"


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def ledger(redis_url, clock):
    """Return a ledger on an empty server: leases of 10 s, three strikes."""
    ledger = Ledger.connect(Settings(redis_url=redis_url, lease_s=10, max_attempts=3), clock=clock)
    yield ledger
    ledger.close()


def job_of(clock=time.time, *, tenant="default", **fields):
    """Expand a job at the time that `clock` tells."""
    return expanded_job(created_at=clock(), tenant=tenant, **fields)


def report(name, *, max_batch=4, models=("scenes",), steps=0, seat_steps=0):
    """Return a heartbeat of worker `name`."""
    return WorkerReport(
        name=name,
        node=name.partition("#")[0],
        pid=1,
        device="cpu",
        models=models,
        max_batch=max_batch,
        steps=steps,
        seat_steps=seat_steps,
        started_at=0,
    )


def render(ledger, hint, worker=ALICE):
    """Do what a worker does with a message, less the picture; tell whether it counted."""
    return ledger.claim(hint, worker) is not None and ledger.stored(hint, worker, gpu_s=0.25, render_s=1.5)


def test_a_job_whose_images_all_have_seats_is_not_done_yet(ledger, clock):
    """Its last image comes at the model's pace, although nothing is queued any more."""
    ledger.report(report(ALICE, max_batch=8))
    ledger.open(job_of(clock, num_images_per_prompt=4))
    for hint in ledger.feed("scenes"):
        assert render(ledger, hint)
    clock.now += 6
    job = ledger.open(job_of(clock, num_images_per_prompt=3)).id
    assert len([ledger.claim(hint, ALICE) for hint in ledger.feed("scenes")]) == 3
    assert ledger.job(job).counts.rendering == 3
    assert ledger.job(job).eta_s == pytest.approx(3 / (4 / 60))


def test_a_job_goes_from_queued_to_done(ledger, clock):
    """Counts, state and times follow each unit, and the last image settles the job."""
    job_id = ledger.open(job_of(clock, num_images_per_prompt=3)).id
    assert ledger.job(job_id).state is JobState.QUEUED
    ledger.report(report(ALICE))
    hints = ledger.feed("scenes")
    assert hints == [Hint(job_id, index, 1) for index in range(3)]

    unit = ledger.claim(hints[0], ALICE)
    assert (unit.prompt, unit.seed, unit.attempt) == ("a red circle", 1, 1)
    status = ledger.job(job_id)
    assert (status.state, status.counts.rendering, status.counts.queued) == (JobState.RENDERING, 1, 2)
    clock.now += 2
    assert ledger.stored(hints[0], ALICE, gpu_s=0.25, render_s=1.5)
    assert all(render(ledger, hint) for hint in hints[1:])

    status = ledger.job(job_id)
    assert (status.state, status.counts.stored, status.finished_at) == (JobState.DONE, 3, clock.now)
    assert (status.gpu_s, status.retries, status.eta_s) == (0.75, 0, 0.0)
    image = ledger.image(job_id, 2)
    assert (image.state, image.seed, image.attempts, image.gpu_s, image.render_s) == (UnitState.STORED, 3, 1, 0.25, 1.5)
    assert image.stored_at == pytest.approx(clock.now, abs=0.11)


def test_a_clock_that_is_set_back_stores_nothing_in_times_to_come(ledger, clock):
    """What is stored before its job was created, by the clock, is as old as that."""
    created_at = clock.now
    job_id = ledger.open(job_of(clock)).id
    ledger.report(report(ALICE))
    (hint,) = ledger.feed("scenes")
    clock.now -= 5
    assert render(ledger, hint)
    assert ledger.image(job_id, 0).stored_at == created_at


def test_without_a_worker_nothing_is_handed_out(ledger, clock):
    """Units stay in the backlog, where order and cancel act at once, until somebody can take them."""
    ledger.open(job_of(clock))
    assert ledger.feed("scenes") == []
    ledger.report(report(ALICE))
    clock.now += 60  # Alice has not been heard of since
    assert ledger.feed("scenes") == []


def test_no_more_is_handed_out_than_seats_can_take_soon(ledger, clock):
    """At most two units per live seat wait unclaimed; claims make room."""
    ledger.open(job_of(clock, num_images_per_prompt=100))
    ledger.report(report(ALICE, max_batch=4))
    hints = ledger.feed("scenes")
    assert len(hints) == 8
    assert ledger.feed("scenes") == []
    ledger.claim(hints[0], ALICE)
    assert len(ledger.feed("scenes")) == 1


def test_the_feed_is_fair(ledger, clock):
    """Priorities first, then the tenant that has had the least, then jobs in the order they came."""
    names = {}
    for name, tenant, priority in [
        ("bulk", "a", "bulk"),
        ("a1", "a", "normal"),
        ("a2", "a", "normal"),
        ("b1", "b", "normal"),
        ("now", "b", "interactive"),
    ]:
        opened = ledger.open(job_of(clock, tenant=tenant, priority=priority, num_images_per_prompt=2))
        names[opened.id] = name
    ledger.report(report(ALICE, max_batch=32))
    order = [names[hint.job] for hint in ledger.feed("scenes")]
    # After its two interactive images b has had two more than a.
    assert order == ["now", "now", "a1", "a1", "a2", "b1", "a2", "b1", "bulk", "bulk"]


def test_one_claim_is_granted_per_attempt(ledger, clock):
    """A doubled message, or another worker with the same one, is told to drop it."""
    ledger.open(job_of(clock))
    ledger.report(report(ALICE))
    (hint,) = ledger.feed("scenes")
    assert ledger.claim(hint, ALICE) is not None
    assert ledger.claim(hint, ALICE) is None
    assert ledger.claim(hint, BOB) is None
    assert not ledger.stored(hint, BOB, gpu_s=0, render_s=0)
    assert ledger.stored(hint, ALICE, gpu_s=0, render_s=0)
    assert not ledger.stored(hint, ALICE, gpu_s=0, render_s=0)
    assert ledger.claim(hint, BOB) is None
    assert ledger.job(hint.job).counts.stored == 1


def test_a_message_nobody_sent_is_dropped(ledger, clock):
    """Hints of unknown jobs, images not handed out and attempts that never were grant nothing."""
    job_id = ledger.open(job_of(clock, num_images_per_prompt=5)).id
    ledger.report(report(ALICE, max_batch=1))
    hints = ledger.feed("scenes")
    assert [hint.index for hint in hints] == [0, 1]
    for forged in (Hint("job_none", 0, 1), Hint(job_id, 4, 1), Hint(job_id, 99, 1), Hint(job_id, 0, 2)):
        assert ledger.claim(forged, ALICE) is None


def test_a_reaper_that_was_held_up_takes_nothing_that_ended_meanwhile(ledger, clock):
    """An outage holds a call up for longer than a lease: the renewals that it held up too are still in time."""
    ledger.open(job_of(clock))
    assert ledger.report(report(ALICE)) == clock.now
    (hint,) = ledger.feed("scenes")
    ledger.claim(hint, ALICE)
    sent_at = clock.now + 5
    clock.now += 20
    assert ledger.reap(as_of=sent_at) == 0
    assert ledger.renew(ALICE, [hint]) == frozenset()
    clock.now += 20
    assert ledger.reap(as_of=clock.now + 99) == 1


def test_an_expired_lease_goes_back_and_its_holder_is_fenced(ledger, clock):
    """A frozen worker that wakes up after its lease finds its unit gone and counts nothing."""
    ledger.open(job_of(clock))
    ledger.report(report(ALICE))
    (hint,) = ledger.feed("scenes")
    ledger.claim(hint, ALICE)
    clock.now += 9
    assert ledger.renew(ALICE, [hint]) == frozenset()
    clock.now += 9
    assert ledger.reap() == 0
    clock.now += 2
    assert ledger.reap() == 1

    ledger.report(report(BOB))
    (again,) = ledger.feed("scenes")
    assert again == Hint(hint.job, 0, 2)
    assert ledger.claim(again, BOB) is not None
    assert ledger.renew(ALICE, [hint]) == {hint}
    assert not ledger.stored(hint, ALICE, gpu_s=0, render_s=0)
    assert not ledger.failed(hint, ALICE, "late", final=True)
    assert ledger.stored(again, BOB, gpu_s=0, render_s=0)
    image = ledger.image(hint.job, 0)
    assert (image.attempts, image.history) == (2, (f"lease of {ALICE} expired",))
    assert ledger.job(hint.job).retries == 1


def test_units_given_back_come_first(ledger, clock):
    """What was started once does not queue behind what was not."""
    ledger.open(job_of(clock, num_images_per_prompt=20))
    ledger.report(report(ALICE, max_batch=2))
    hints = ledger.feed("scenes")
    ledger.claim(hints[1], ALICE)
    assert ledger.release(hints[1], ALICE)
    assert not ledger.release(hints[1], ALICE)
    assert ledger.feed("scenes") == [Hint(hints[1].job, 1, 2)]
    assert ledger.image(hints[1].job, 1).history == ()


def test_a_restarted_worker_takes_its_predecessors_units_back_at_once(ledger, clock):
    """The new process of a node returns what the dead one held, and nobody else's."""
    ledger.open(job_of(clock, num_images_per_prompt=3))
    ledger.report(report(ALICE))
    hints = ledger.feed("scenes")
    ledger.claim(hints[0], ALICE)
    ledger.claim(hints[1], BOB)
    assert ledger.reap_node("alice:gpu0", keep="alice:gpu0#2") == 1
    assert ledger.renew(BOB, [hints[1]]) == frozenset()
    ledger.report(report("alice:gpu0#2"))
    assert ledger.feed("scenes")[0] == Hint(hints[0].job, 0, 2)


def test_three_strikes_fail_a_unit_with_its_history(ledger, clock):
    """A unit that fails each time is given up after its attempts; its job ends as failed."""
    job_id = ledger.open(job_of(clock)).id
    ledger.report(report(ALICE))
    for attempt in (1, 2, 3):
        (hint,) = ledger.feed("scenes")
        assert hint.attempt == attempt
        ledger.claim(hint, ALICE)
        assert ledger.failed(hint, ALICE, f"boom {attempt}", final=False)
    assert ledger.feed("scenes") == []
    status, image = ledger.job(job_id), ledger.image(job_id, 0)
    assert (status.state, status.counts.failed, status.counts.queued) == (JobState.FAILED, 1, 0)
    assert (image.state, image.error, image.attempts) == (UnitState.FAILED, "boom 3", 3)
    assert image.history == ("boom 1", "boom 2", "boom 3")


def test_a_final_failure_needs_one_attempt(ledger, clock):
    """What cannot succeed anywhere is not tried again."""
    job_id = ledger.open(job_of(clock, num_images_per_prompt=2)).id
    ledger.report(report(ALICE))
    first, second = ledger.feed("scenes")
    ledger.claim(first, ALICE)
    ledger.failed(first, ALICE, "the model is broken", final=True)
    assert render(ledger, second)
    status, image = ledger.job(job_id), ledger.image(job_id, 0)
    assert (status.state, status.counts.stored, status.counts.failed) == (JobState.FAILED, 1, 1)
    assert (image.error, image.attempts) == ("the model is broken", 1)


def test_cancel_takes_everything_pending_and_tells_who_runs(ledger, clock):
    """Pending units vanish, running ones are gone at the next renewal, late images do not count."""
    job_id = ledger.open(job_of(clock, num_images_per_prompt=10)).id
    ledger.report(report(ALICE, max_batch=2))
    done, running, late, handed = ledger.feed("scenes")
    assert render(ledger, done)
    ledger.claim(running, ALICE)
    ledger.claim(late, ALICE)
    listen(ledger)
    status = ledger.cancel(job_id)
    assert (status.state, status.counts.stored, status.counts.cancelled) == (JobState.CANCELLED, 1, 9)
    assert told_by_now(ledger) == [News(job=job_id)]

    assert not ledger.stored(late, ALICE, gpu_s=0, render_s=0)
    assert ledger.renew(ALICE, [running]) == {running}
    assert ledger.claim(handed, ALICE) is None
    assert ledger.feed("scenes") == []
    assert ledger.reap() == 0
    assert ledger.cancel(job_id) == status
    assert ledger.queued_by_model() == {"scenes": 0}
    assert [image.state for image in ledger.images(job_id, limit=2)] == [UnitState.STORED, UnitState.CANCELLED]


def test_a_finished_job_cannot_be_cancelled(ledger, clock):
    """Done stays done."""
    job_id = ledger.open(job_of(clock)).id
    ledger.report(report(ALICE))
    assert render(ledger, ledger.feed("scenes")[0])
    assert ledger.cancel(job_id).state is JobState.DONE


def test_a_vanished_message_is_hinted_again(ledger, clock):
    """A unit handed out and never claimed is hinted with the same attempt; one of the two messages wins."""
    ledger.open(job_of(clock))
    ledger.report(report(ALICE))
    (hint,) = ledger.feed("scenes")
    assert ledger.rehint("scenes", older_than_s=2) == []
    clock.now += 3
    assert ledger.rehint("scenes", older_than_s=2) == [hint]
    assert ledger.rehint("scenes", older_than_s=2) == []
    assert render(ledger, hint)
    assert ledger.claim(hint, BOB) is None


def test_an_idempotency_key_opens_one_job(ledger, clock):
    """The same key and body answer the same job; another body is a conflict; another tenant's key is another key."""
    first = ledger.open(job_of(clock), idempotency_key="k", fingerprint="f")
    assert first.created
    again = ledger.open(job_of(clock), idempotency_key="k", fingerprint="f")
    assert again == (first.id, False)
    with pytest.raises(IdempotencyConflict):
        ledger.open(job_of(clock), idempotency_key="k", fingerprint="g")
    assert ledger.open(job_of(clock, tenant="b"), idempotency_key="k", fingerprint="g").created
    assert ledger.num_jobs() == 2


def test_a_full_farm_says_so_and_keeps_nothing(ledger, clock):
    """Above the limit a job is refused with a time to come back, and leaves no trace."""
    ledger.open(job_of(clock, num_images_per_prompt=8), max_queued_images=10)
    with pytest.raises(QueueFull) as caught:
        ledger.open(job_of(clock, num_images_per_prompt=3), max_queued_images=10)
    assert caught.value.retry_after_s > 0
    assert ledger.num_jobs() == 1
    assert len(ledger._redis.keys("*:entries")) == 1


def test_a_writer_that_is_cut_off_leaves_nothing_for_ever(ledger, clock, monkeypatch):
    """The connection breaks right before the command that lets what was written expire."""
    send, cuts = Connection.send_packed_command, []

    def send_until_expire(self, command, **options):
        data = b"".join([command] if isinstance(command, bytes) else command)
        if (at := data.find(b"EXPIRE")) < 0:
            return send(self, command, **options)
        cuts.append(at)
        send(self, [data[: data.rindex(b"*", 0, at)]], **options)
        self.disconnect()
        raise RedisConnectionError("cut")

    monkeypatch.setattr(Connection, "send_packed_command", send_until_expire)
    with pytest.raises(LedgerDown):
        ledger.open(job_of(clock))
    monkeypatch.undo()
    time.sleep(0.2)  # until the server has read what was sent
    assert cuts
    assert [key for key in ledger._redis.keys("*:entries") if ledger._redis.ttl(key) < 0] == []


def test_a_million_images_cost_their_prompts(ledger, clock):
    """100 prompts x 10,000 seeds grow Redis by less than 2 MB, and cancel leaves no queue behind."""
    before = ledger._redis.info("memory")["used_memory"]
    prompts = [f"a red heart number {i} left of a green house at night" for i in range(100)]
    job_id = ledger.open(job_of(clock, prompts=prompts, num_images_per_prompt=10_000)).id
    assert ledger.job(job_id).counts.queued == 1_000_000
    assert ledger._redis.info("memory")["used_memory"] - before < 2_000_000
    last = ledger.images(job_id, offset=999_999, limit=10)
    assert [(image.prompt, image.seed) for image in last] == [(prompts[-1], 10_000)]
    assert ledger.cancel(job_id).counts.cancelled == 1_000_000
    assert ledger.queued_by_model() == {"scenes": 0}


def test_ten_thousand_prompts_keep_their_own_parameters(ledger, clock):
    """Entries staged in pieces come back whole and in order."""
    prompts = [{"prompt": f"p{i}", "seed": i, "num_images_per_prompt": 1 + i % 3} for i in range(10_000)]
    job = job_of(clock, prompts=prompts)
    job_id = ledger.open(job).id
    images = ledger.images(job_id, offset=9_000, limit=1_000)
    assert [image.index for image in images] == list(range(9_000, 10_000))
    assert all(image.prompt == f"p{image.prompt_index}" for image in images)
    assert all(0 <= image.seed - image.prompt_index < 3 for image in images)


def test_jobs_are_listed_newest_first_in_pages(ledger, clock):
    """`before` continues where a page ended."""
    ids = []
    for _ in range(5):
        ids.append(ledger.open(job_of(clock)).id)
        time.sleep(0.002)
    page = ledger.jobs(limit=3)
    assert [status.header.id for status in page] == ids[:1:-1]
    assert [status.header.id for status in ledger.jobs(limit=3, before=page[-1].header.id)] == ids[1::-1]


def test_unknown_jobs_are_refused(ledger):
    """Nothing is answered for a job that is not there."""
    for ask in (ledger.job, ledger.cancel, ledger.images):
        with pytest.raises(UnknownJob):
            ask("job_nope")


def test_throughput_counts_images_by_model_and_worker(ledger, clock):
    """Rates come from what was counted within each window; occupancy from the workers' steps."""
    ledger.open(job_of(clock, num_images_per_prompt=4))
    ledger.report(report(ALICE))
    hints = ledger.feed("scenes")
    assert render(ledger, hints[0])
    ledger.report(report(ALICE, steps=10, seat_steps=25))
    clock.now += 120
    ledger.report(report(ALICE, steps=20, seat_steps=65))
    assert render(ledger, hints[1])
    minute, five, hour = ledger.throughput().total
    assert (minute.images, five.images, hour.images) == (1, 2, 2)
    assert (minute.mean_seat_occupancy, five.mean_seat_occupancy) == (4.0, 3.25)
    assert hour.gpu_s_per_image == 0.25
    assert ledger.throughput().by_worker["alice:gpu0"][0].images_per_s == pytest.approx(1 / 60)
    assert ledger.throughput().by_model["scenes"][1].images == 2
    assert ledger.images_by_model() == {"scenes": 2}


def test_workers_are_listed_while_they_are_heard_of(ledger, clock):
    """A silent worker leaves the list, one that stops in order leaves at once."""
    ledger.report(report(ALICE))
    ledger.report(report(BOB))
    assert [worker.name for worker in ledger.workers()] == [ALICE, BOB]
    ledger.forget(BOB)
    assert [worker.name for worker in ledger.workers()] == [ALICE]
    clock.now += 11
    assert ledger.workers() == []


def test_a_stopped_server_is_a_ledger_that_is_down():
    """Without Redis every call raises LedgerDown; when it is back, killed or not, everything accepted is there."""
    with servers.valkey() as server:
        ledger = Ledger.connect(server.settings())
        job_id = ledger.open(job_of(num_images_per_prompt=2)).id
        server.kill()
        for ask in (ledger.ping, ledger.throughput, lambda: ledger.job(job_id), lambda: ledger.feed("scenes")):
            with pytest.raises(LedgerDown):
                ask()
        with pytest.raises(LedgerDown):
            ledger.open(job_of())
        server.start()
        assert ledger.job(job_id).counts.queued == 2
        ledger.close()


def test_a_full_server_is_a_ledger_that_is_down():
    """A Redis that may write nothing more accepts nothing, still answers, and works again when there is room."""
    with servers.valkey() as server:
        ledger = Ledger.connect(server.settings())
        job_id = ledger.open(job_of()).id
        ledger._redis.config_set("maxmemory", 1)
        for change in (lambda: ledger.open(job_of()), lambda: ledger.cancel(job_id)):
            with pytest.raises(LedgerDown):
                change()
        assert ledger.job(job_id).counts.queued == 1
        ledger._redis.config_set("maxmemory", 0)
        assert ledger.open(job_of()).created
        assert ledger.num_jobs() == 2
        ledger.close()
