"""What is left to do when a job settles: on the list from the moment of the commit until it is said to be done."""

import pytest

from expanded_jobs import expanded_job
from farm.errors import UnknownJob
from farm.ledger import Ledger, WorkerReport
from farm.settings import Settings
from told_clock import Clock

ME = "alice:gpu0#1"
ALL = ("manifest", "webhook", "expire")


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def ledger(redis_url, clock):
    """Return a ledger on an empty server with one worker; jobs are kept for 100 s."""
    ledger = Ledger.connect(Settings(redis_url=redis_url, lease_s=1e6, keep_jobs_s=100), clock=clock)
    ledger.report(
        WorkerReport(name=ME, node="alice:gpu0", pid=1, device="cpu", models=("scenes",), max_batch=8, started_at=0)
    )
    yield ledger
    ledger.close()


def open_job(ledger, **fields):
    """Open a job of two images."""
    return ledger.open(expanded_job(num_images_per_prompt=2, **fields)).id


def render(ledger, *, fails=False):
    """Render all that waits, or fail at it."""
    for hint in ledger.feed("scenes"):
        assert ledger.claim(hint, ME) is not None
        if fails:
            ledger.failed(hint, ME, "boom", final=True)
        else:
            ledger.stored(hint, ME, gpu_s=1, render_s=1)


def events(chores):
    """Return kinds and events."""
    return [(chore.kind, chore.event) for chore in chores]


def test_a_settled_job_leaves_a_manifest_to_write(ledger):
    """Not before it is settled; and without a webhook nobody is told."""
    job = open_job(ledger)
    assert ledger.take_chores(ALL) == []
    render(ledger)
    (chore,) = ledger.take_chores(ALL)
    assert (chore.kind, chore.job, chore.tries) == ("manifest", job, 0)


@pytest.mark.parametrize("ending", ["done", "failed", "cancelled"])
def test_a_webhook_hears_of_start_and_end(ledger, ending):
    """Once each, in the script that commits it, of the events it asked for."""
    url = "https://example.com/hook"
    open_job(ledger, webhook={"url": url, "events": ["job.done", "job.failed"]})
    job = open_job(ledger, webhook={"url": url, "events": ["job.started", f"job.{ending}"]})
    first = ledger.feed("scenes")[2]
    ledger.claim(first, ME)
    assert events(ledger.take_chores(ALL)) == [("webhook", "job.started")]
    if ending == "cancelled":
        ledger.cancel(job)
    else:
        ledger.failed(first, ME, "boom", final=True) if ending == "failed" else ledger.stored(
            first, ME, gpu_s=1, render_s=1
        )
        last = first._replace(index=1)
        ledger.claim(last, ME)
        ledger.stored(last, ME, gpu_s=1, render_s=1)
    assert ("webhook", f"job.{ending}") in events(ledger.take_chores(ALL))
    assert ledger.job(job).header.webhook.url == url


def test_a_chore_that_was_taken_and_not_done_comes_again(ledger, clock):
    """The doer died: when its lease is over somebody else gets it, under the same name."""
    open_job(ledger)
    render(ledger)
    (first,) = ledger.take_chores(ALL, lease_s=60)
    clock.now += 59
    assert ledger.take_chores(ALL, lease_s=60) == []
    clock.now += 2
    (again,) = ledger.take_chores(ALL, lease_s=60)
    assert again.member == first.member
    ledger.chore_done(again)
    clock.now += 1000
    assert ledger.take_chores(ALL) == []


def test_a_chore_put_off_remembers_its_tries(ledger, clock):
    """And is due when its delay is over."""
    open_job(ledger)
    render(ledger)
    (chore,) = ledger.take_chores(ALL, lease_s=60)
    ledger.chore_later(chore, 5)
    clock.now += 6
    (again,) = ledger.take_chores(ALL, lease_s=60)
    assert again.tries == 1
    ledger.chore_done(again)
    ledger.chore_later(again, 5)  # a slow doer, late: what is done stays done
    clock.now += 1000
    assert ledger.take_chores(ALL) == []


def test_a_job_expires_after_its_manifest_and_its_time(ledger, clock):
    """Then nothing of it is left in Redis."""
    job = open_job(ledger, tenant="t")
    render(ledger)
    assert not ledger.expire_job(job), "its manifest is not written"
    (chore,) = ledger.take_chores(ALL)
    assert ledger.manifest_written(job)
    ledger.chore_done(chore)
    clock.now += 99
    assert ledger.take_chores(ALL) == []
    clock.now += 2
    (chore,) = ledger.take_chores(ALL)
    assert (chore.kind, chore.job) == ("expire", job)
    assert ledger.expire_job(job)
    ledger.chore_done(chore)
    with pytest.raises(UnknownJob):
        ledger.job(job)
    assert ledger.jobs() == []
    assert not [key for key in ledger._redis.keys("*") if job.encode() in key]
    assert not ledger.expire_job(job)


def test_a_retry_takes_back_what_was_to_be_done_about_the_end(ledger, clock):
    """Neither the old manifest nor its expiry holds for a job that goes on; its second end is told as another."""
    job = open_job(ledger, webhook={"url": "https://example.com", "events": ["job.failed"]})
    render(ledger, fails=True)
    told = ledger.take_chores(("webhook",))
    assert ledger.manifest_written(job)
    ledger.retry_failed(job)
    assert not ledger.manifest_written(job)
    clock.now += 1000
    assert "expire" not in {chore.kind for chore in ledger.take_chores(ALL)}
    assert not ledger.expire_job(job)
    render(ledger, fails=True)
    assert ("manifest", "settled") in events(ledger.take_chores(("manifest",)))
    members = {chore.member for chore in ledger.take_chores(("webhook",))}
    assert len(members | {told[0].member}) == 2


def test_an_expired_job_frees_its_idempotency_key(ledger):
    """A repeat of the request then opens a new job, for the old one can be shown to nobody."""
    first = ledger.open(expanded_job(), idempotency_key="k", fingerprint="f")
    render(ledger)
    ledger.manifest_written(first.id)
    assert ledger.open(expanded_job(), idempotency_key="k", fingerprint="f").id == first.id
    for chore in ledger.take_chores(("manifest",)):
        ledger.chore_done(chore)
    assert ledger.expire_job(first.id)
    assert ledger.open(expanded_job(), idempotency_key="k", fingerprint="f").created


def test_a_job_brings_the_chores_it_was_opened_with(ledger, clock):
    """At its end, beside the manifest, and once for each end; it does not expire before they are done."""
    job = ledger.open(expanded_job(afterwards=("grid", "openai_batch"))).id
    assert ledger.job(job).header.afterwards == ("grid", "openai_batch")
    kinds = ("grid", "openai_batch")
    assert ledger.take_chores(kinds) == []
    render(ledger, fails=True)
    ledger.retry_failed(job)
    assert ledger.take_chores(kinds) == []  # it has not ended after all
    render(ledger)
    grid, batch = ledger.take_chores(kinds)
    assert [(chore.kind, chore.job, chore.count) for chore in (grid, batch)] == [(kind, job, 2) for kind in kinds]
    (manifest,) = ledger.take_chores(["manifest"])
    ledger.manifest_written(job)
    ledger.chore_done(manifest)
    clock.now += 200
    ledger.chore_done(grid)
    assert not ledger.expire_job(job)
    ledger.chore_done(batch)
    assert ledger.expire_job(job)
