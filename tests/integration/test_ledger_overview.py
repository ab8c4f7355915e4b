"""What an operator asks of the ledger: how long work waits, what went wrong, what is left to do, what was taken."""

import pytest

from expanded_jobs import expanded_job
from farm.ledger import ChoreBacklog, Ledger, ModelBacklog, WorkerReport
from farm.ledger import overview as overview_module
from farm.requests import Priority
from farm.settings import Settings
from told_clock import Clock

ALICE, ALICE_AGAIN, BOB = "alice:gpu0#1", "alice:gpu0#2", "bob:gpu0#1"


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


def open_job(ledger, clock, images=1, *, tenant="default", **fields):
    """Open a job now; return its id."""
    return ledger.open(expanded_job(created_at=clock(), tenant=tenant, num_images_per_prompt=images, **fields)).id


def report(ledger, name=ALICE, **fields):
    """Send a heartbeat."""
    given = {"pid": 1, "device": "cpu", "models": ("scenes",), "max_batch": 4, "started_at": 0.0, **fields}
    ledger.report(WorkerReport(name=name, node=name.partition("#")[0], **given))


def test_what_waits_is_told_by_priority_with_its_age(ledger, clock):
    """All tenants' jobs count, the oldest tells the age; what is handed out, paused or settled waits no more."""
    open_job(ledger, clock, 5, tenant="a")
    clock.now += 100
    urgent = open_job(ledger, clock, 2, tenant="b", priority="interactive")
    open_job(ledger, clock, 3, tenant="b")
    paused = open_job(ledger, clock, 7, tenant="c")
    ledger.pause(paused)
    clock.now += 20
    assert ledger.backlog(["scenes", "sd15"]) == [
        ModelBacklog("scenes", Priority.INTERACTIVE, images=2, oldest_s=20),
        ModelBacklog("scenes", Priority.NORMAL, images=8, oldest_s=120),
    ]
    report(ledger)
    assert len(ledger.feed("scenes", limit=1)) == 1
    assert {lane.priority: lane.images for lane in ledger.backlog(["scenes"])}[Priority.INTERACTIVE] == 1
    ledger.cancel(urgent)
    assert [lane.priority for lane in ledger.backlog(["scenes"])] == [Priority.NORMAL]


def test_of_very_many_jobs_some_are_counted(ledger, clock, monkeypatch):
    """What a scrape costs is bounded; that something waits, and for how long, is true all the same."""
    monkeypatch.setattr(overview_module, "_JOBS_LOOKED_AT", 2)
    for _ in range(4):
        open_job(ledger, clock, 10)
        clock.now += 5
    assert ledger.backlog(["scenes"]) == [ModelBacklog("scenes", Priority.NORMAL, images=20, oldest_s=20)]


def test_what_comes_back_is_counted_with_its_cause(ledger, clock):
    """A worker that goes, an error, a lease that ran out, a predecessor's death; and the image that is given up."""
    open_job(ledger, clock, 4)
    report(ledger)
    released, broken, expired, _ = ledger.feed("scenes")
    assert all(ledger.claim(hint, ALICE) for hint in (released, broken))
    assert ledger.release(released, ALICE)
    assert not ledger.release(released, ALICE)  # a repeat is nothing new
    assert ledger.failed(broken, ALICE, "no such LoRA", final=True)
    assert ledger.claim(expired, BOB)
    clock.now += 11
    assert ledger.reap() == 1
    report(ledger)
    orphaned, *_ = ledger.feed("scenes")
    assert ledger.claim(orphaned, ALICE)
    assert ledger.reap_node("alice:gpu0", keep=ALICE_AGAIN) == 1
    assert ledger.events() == {
        ("scenes", "back:released"): 1,
        ("scenes", "back:error"): 1,
        ("scenes", "back:expired"): 1,
        ("scenes", "back:died"): 1,
        ("scenes", "failed"): 1,
    }


def test_chores_are_told_by_when_they_are_due(ledger, clock):
    """What is for later is planned and not due; what is due says for how long."""
    ledger.cancel(open_job(ledger, clock))
    clock.now += 30
    manifest, expire = ledger.chores(["manifest", "expire"])
    assert manifest == ChoreBacklog("manifest", planned=1, due=1, overdue_s=30)
    assert expire == ChoreBacklog("expire", planned=0, due=0, overdue_s=0)
    (chore,) = ledger.take_chores(["manifest"])
    assert ledger.chores(["manifest"]) == [ChoreBacklog("manifest", planned=1, due=0, overdue_s=0)]
    assert ledger.manifest_written(chore.job)
    ledger.chore_done(chore)
    assert ledger.chores(["manifest", "expire"])[1].planned == 1
    assert ledger.chores(["expire"])[0].due == 0


def test_joules_of_a_process_that_began_anew_are_added(ledger, clock):
    """Differences are counted between heartbeats of one process; the next one starts at nothing."""
    report(ledger, energy_j=0.0)
    clock.now += 5
    report(ledger, energy_j=1000.7)
    report(ledger, ALICE_AGAIN, energy_j=0.0)
    clock.now += 5
    report(ledger, ALICE_AGAIN, energy_j=500.5)
    report(ledger, BOB, energy_j=None)
    minute = ledger.throughput().total[0]
    assert (minute.energy_j, minute.joules_per_image) == (1500, None)
    assert ledger.throughput().by_worker["alice:gpu0"][0].energy_j == 1500


def test_the_server_tells_how_full_it_is(ledger):
    """Used is something; without a limit the most is 0."""
    memory = ledger.redis_memory()
    assert memory.used_bytes > 100_000
    assert memory.max_bytes == 0
