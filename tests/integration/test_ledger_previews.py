"""What is seen of images before they are there: wanted by a watcher, told by a worker, gone when nobody needs it."""

import itertools

import pytest

from expanded_jobs import expanded_job
from farm.jobs import Watch
from farm.ledger import Ledger, News, Preview, WorkerReport
from farm.ledger.previews import MAX_PREVIEW_BYTES, PREVIEWS_CHANNEL
from farm.settings import Settings
from told_clock import Clock
from told_news import WAIT_S, listen, told_by_now

ALICE, BOB = "alice:gpu0#1", "bob:gpu0#1"
JPEG = bytes(range(256)) * 4  # blanks and all: what is kept before them is told apart from it
TINY = b"\xff \xd8"


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def ledger(redis_url, clock):
    """Return a ledger on an empty server, with a worker that serves the model that ships."""
    ledger = Ledger.connect(Settings(redis_url=redis_url, lease_s=10), clock=clock)
    ledger.report(
        WorkerReport(name=ALICE, node="alice:gpu0", pid=1, device="cpu", models=("scenes",), max_batch=4, started_at=0)
    )
    yield ledger
    ledger.close()


def claimed(ledger, count=1, **fields):
    """Open a job and let Alice claim all of it; return its id and the units."""
    job = expanded_job(num_images_per_prompt=count, **fields)
    ledger.open(job)
    return job.header.id, [ledger.claim(hint, ALICE) for hint in ledger.feed("scenes")]


def told_of_watchers(ledger):
    """Return what was told by now of jobs that are watched."""
    return [each for each in told_by_now(ledger) if each.watch is not None]


def test_a_preview_is_what_was_put_last(ledger, clock):
    """Steps without a picture leave the picture; a watcher sees which step it shows."""
    job, (first, second) = claimed(ledger, 2)
    assert ledger.preview(job, 0) is None
    assert ledger.previews(job) == {}
    assert ledger.put_preview(first.hint, ALICE, step=5, steps=20, jpeg=JPEG)
    assert ledger.put_preview(second.hint, ALICE, step=1, steps=8)
    clock.now += 0.5
    assert ledger.put_preview(first.hint, ALICE, step=6, steps=20)
    seen = Preview(step=6, steps=20, jpeg=JPEG, at=clock.now, jpeg_step=5)
    assert ledger.preview(job, 0) == seen
    assert ledger.previews(job) == {0: seen, 1: Preview(step=1, steps=8, jpeg=None, at=clock.now - 0.5)}
    assert ledger.put_preview(first.hint, ALICE, step=10, steps=20, jpeg=TINY)
    assert ledger.preview(job, 0) == Preview(step=10, steps=20, jpeg=TINY, at=clock.now, jpeg_step=10)


@pytest.mark.parametrize("end", ["stored", "failed", "release", "cancel_image", "expired", "retaken"])
def test_it_is_gone_when_no_worker_holds_the_image(ledger, clock, end):
    """However the image left its seat, and whoever puts one too late."""
    job, (first, second) = claimed(ledger, 2)
    for unit in (first, second):
        assert ledger.put_preview(unit.hint, ALICE, step=5, steps=20, jpeg=JPEG)
    match end:
        case "stored":
            ledger.stored(first.hint, ALICE, gpu_s=1, render_s=1)
        case "failed":
            ledger.failed(first.hint, ALICE, "broken", final=True)
        case "release":
            ledger.release(first.hint, ALICE)
        case "cancel_image":
            ledger.cancel_image(job, 0)
        case "expired":
            clock.now += 8
            ledger.renew(ALICE, [second.hint])
            clock.now += 8
            ledger.reap()
        case "retaken":
            ledger.release(first.hint, ALICE)
            ledger.report(
                WorkerReport(
                    name=BOB, node="bob:gpu0", pid=1, device="cpu", models=("scenes",), max_batch=4, started_at=0
                )
            )
            (again,) = ledger.feed("scenes")
            assert ledger.claim(again, BOB) is not None
    assert not ledger.put_preview(first.hint, ALICE, step=6, steps=20, jpeg=JPEG)
    assert ledger.preview(job, 0) is None
    assert list(ledger.previews(job)) == [1]
    ledger.stored(second.hint, ALICE, gpu_s=1, render_s=1)
    assert list(ledger._redis.scan_iter("*previews*")) == []


def test_a_cancelled_jobs_previews_go_with_its_seats(ledger):
    """The worker that hears of it renews its leases, and nothing is left."""
    job, units = claimed(ledger, 2)
    for unit in units:
        ledger.put_preview(unit.hint, ALICE, step=5, steps=20, jpeg=JPEG)
    ledger.cancel(job)
    assert ledger.renew(ALICE, [unit.hint for unit in units]) == {unit.hint for unit in units}
    assert list(ledger._redis.scan_iter("*previews*")) == []


def test_it_expires_when_nothing_more_comes(ledger):
    """A minute after the latest step at most, whatever becomes of the worker."""
    _, (unit,) = claimed(ledger)
    ledger.put_preview(unit.hint, ALICE, step=5, steps=20, jpeg=JPEG)
    (key,) = ledger._redis.scan_iter("*previews*")
    assert 30 < ledger._redis.ttl(key) <= 60


def test_a_picture_too_large_is_refused(ledger):
    """What everybody's Redis has to hold is bounded."""
    job, (unit,) = claimed(ledger)
    with pytest.raises(ValueError, match="32769 bytes"):
        ledger.put_preview(unit.hint, ALICE, step=5, steps=20, jpeg=bytes(MAX_PREVIEW_BYTES + 1))
    assert ledger.preview(job, 0) is None


def test_claims_tell_that_a_job_is_watched(ledger):
    """Of a job that was wanted before it was there; nothing is told of any other."""
    watched, other = expanded_job(), expanded_job()
    ledger.want_previews(watched.header.id, for_s=40, every_steps=3)
    ledger.open(watched)
    ledger.open(other)
    units = {hint.job: ledger.claim(hint, ALICE) for hint in ledger.feed("scenes")}
    watch = units[watched.header.id].watch
    assert watch.every_steps == 3
    assert 20 < watch.for_s <= 40
    assert units[other.header.id].watch is None


def test_workers_that_hold_units_hear_of_a_watcher(ledger, clock):
    """Once, however often it is repeated, and again before what they know has run out."""
    job, _ = claimed(ledger)
    listen(ledger)
    told_at, began_at = [], clock.now
    for _ in range(10):
        ledger.want_previews(job, for_s=60)
        told_at += [(clock.now - began_at, each) for each in told_of_watchers(ledger)]
        clock.now += 20
    watch = News(job=job, watch=Watch(5, 60.0))
    assert told_at == [(0, watch), (40, watch), (80, watch), (120, watch), (160, watch)]


def test_workers_hear_of_a_watcher_who_wants_more(ledger):
    """At once; one who wants less changes nothing."""
    job, _ = claimed(ledger)
    listen(ledger)
    for every_steps in (5, 9, 2):
        ledger.want_previews(job, every_steps=every_steps)
    assert [each.watch.every_steps for each in told_of_watchers(ledger)] == [5, 2]


def test_nobody_hears_of_a_watcher_of_what_no_worker_holds(ledger):
    """A claim will say it; a hundred workers need not."""
    job = ledger.open(expanded_job()).id
    listen(ledger)
    ledger.want_previews(job)
    assert told_by_now(ledger) == []


@pytest.mark.parametrize("order", list(itertools.permutations([(10, 60), (2, 30), (5, 45)])))
def test_the_watcher_of_most_pictures_has_its_way(ledger, order):
    """And nobody is cut short by another who watches for less."""
    job = expanded_job()
    for every_steps, for_s in order:
        ledger.want_previews(job.header.id, every_steps=every_steps, for_s=for_s)
    ledger.open(job)
    (hint,) = ledger.feed("scenes")
    watch = ledger.claim(hint, ALICE).watch
    assert watch.every_steps == 2
    assert 45 < watch.for_s <= 60, "one asked for 60 s, the others for 45 and less"


@pytest.mark.parametrize("wrong", [{"every_steps": 0}, {"for_s": 0}, {"for_s": 3601}, {"for_s": float("nan")}])
def test_a_watch_that_makes_no_sense_is_refused(ledger, wrong):
    """No steps, no time, or for ever."""
    with pytest.raises(ValueError, match="previews every"):
        ledger.want_previews("job_x", **wrong)


def test_listeners_are_told_of_each_step(ledger):
    """With job, index, step, steps, and whether there is a new picture to read."""
    listener = ledger._redis.pubsub()
    listener.subscribe(PREVIEWS_CHANNEL)
    listener.get_message(timeout=WAIT_S)
    job, (unit,) = claimed(ledger)
    ledger.put_preview(unit.hint, ALICE, step=4, steps=20)
    ledger.put_preview(unit.hint, ALICE, step=5, steps=20, jpeg=JPEG)
    told = [listener.get_message(timeout=WAIT_S)["data"].decode() for _ in range(2)]
    listener.close()
    assert told == [f"{job} 0 4 20 0", f"{job} 0 5 20 1"]
