"""Who is served next: priorities, weights, limits, bounds on waiting. On a real server, with a clock that is told."""

from collections import Counter
from itertools import pairwise

import pytest

from expanded_jobs import expanded_job
from farm.errors import QueueFull
from farm.jobs import JobState, UnitState, UrgentHint
from farm.ledger import Ledger, TenantLimits, WorkerReport
from farm.requests import Priority
from farm.settings import Settings
from told_news import listen, told_by_now

ME = "alice:gpu0#1"


class Farm:
    """A ledger and one worker with so many seats, that renders what it is handed at the speed the test says."""

    def __init__(self, redis_url, seats=8) -> None:
        self.now = 1_800_000_000.0
        self.messages = []
        self.ledger = Ledger.connect(Settings(redis_url=redis_url, lease_s=1e6), clock=lambda: self.now)
        self.ledger.report(
            WorkerReport(
                name=ME, node="alice:gpu0", pid=1, device="cpu", models=("scenes",), max_batch=seats, started_at=0
            )
        )

    def open(self, tenant="default", images=1, priority=Priority.NORMAL) -> str:
        job = expanded_job(tenant=tenant, num_images_per_prompt=images, priority=priority, created_at=self.now)
        return self.ledger.open(job).id

    def serve(self, images, gpu_s=lambda _hint: 1.0) -> list:
        """Render `images` images, one after the other; return whose they were."""
        done = []
        while len(done) < images:
            self.messages += self.ledger.feed("scenes")
            if not self.messages:
                break
            hint = self.messages.pop(0)
            if self.ledger.claim(hint, ME) is None:
                continue
            self.now += 1
            assert self.ledger.stored(hint, ME, gpu_s=gpu_s(hint), render_s=1)
            done.append(hint)
        return done


@pytest.fixture
def farm(redis_url):
    """Return a farm with one worker and an empty ledger."""
    farm = Farm(redis_url)
    yield farm
    farm.ledger.close()


def test_gpu_time_is_shared_by_weight_whatever_an_image_costs(farm):
    """Tenants of weight 1, 2 and 4 whose images cost 3, 1 and 2 seconds get GPU time as 1 : 2 : 4, within 5%."""
    costs, jobs = {"a": 3.0, "b": 1.0, "c": 2.0}, {}
    for tenant, weight in {"a": 1, "b": 2, "c": 4}.items():
        farm.ledger.set_tenant(tenant, TenantLimits(weight=weight))
        jobs[farm.open(tenant, images=2000)] = tenant
    farm.serve(600, gpu_s=lambda hint: costs[jobs[hint.job]])
    used = {status.name: status.gpu_s for status in farm.ledger.tenants()}
    total = sum(used.values())
    assert used["a"] / total == pytest.approx(1 / 7, rel=0.05)
    assert used["b"] / total == pytest.approx(2 / 7, rel=0.05)
    assert used["c"] / total == pytest.approx(4 / 7, rel=0.05)


def test_nobody_saves_up_credit_while_idle(farm):
    """Who comes after a long silence gets an equal share from then on, not all that others had meanwhile."""
    farm.open("early", images=1)
    farm.serve(1)
    busy = farm.open("busy", images=1000)
    farm.serve(200)
    late = farm.open("early", images=1000)
    new = farm.open("new", images=1000)
    farm.serve(len(farm.messages))  # what was handed out before they came
    shares = Counter(hint.job for hint in farm.serve(90))
    assert all(28 <= shares[job] <= 32 for job in (busy, late, new)), shares


def test_a_pause_saves_up_no_credit(farm):
    """The tenant of a job paused for long goes on with an equal share."""
    paused = farm.open("patient", images=1000)
    busy = farm.open("busy", images=1000)
    farm.serve(10)
    farm.ledger.pause(paused)
    assert {hint.job for hint in farm.serve(100)} == {busy}
    farm.ledger.resume(paused)
    farm.serve(len(farm.messages))
    shares = Counter(hint.job for hint in farm.serve(40))
    assert 18 <= shares[paused] <= 22, shares


def test_the_order_does_not_depend_on_how_many_jobs_a_tenant_sends(farm):
    """Ten jobs of one tenant and one of another share the farm by halves."""
    many = {farm.open("many", images=100) for _ in range(10)}
    one = farm.open("one", images=100)
    shares = Counter(hint.job in many for hint in farm.serve(60))
    assert shares[True] == pytest.approx(shares[False], abs=2)
    assert one not in many


def test_one_interactive_image_passes_a_hundred_thousand_bulk_ones(farm):
    """It is handed out at once, though all that may wait unclaimed does, and marked to be read before it."""
    bulk = farm.open("factory", images=100_000, priority=Priority.BULK)
    assert {hint.job for hint in farm.serve(20)} == {bulk}
    farm.messages += farm.ledger.feed("scenes")
    assert farm.ledger.feed("scenes") == [], "there is no room"
    now = farm.open("artist", priority=Priority.INTERACTIVE)
    (hint,) = farm.ledger.feed("scenes")
    assert hint == UrgentHint(now, 0, 1)
    assert isinstance(hint, UrgentHint)
    farm.now += 60
    again = farm.ledger.rehint("scenes", older_than_s=30)
    assert [each.job for each in again if isinstance(each, UrgentHint)] == [now]


def test_interactive_work_has_room_of_its_own_and_no_more(farm):
    """A unit for each seat beyond the two that anybody may have waiting."""
    farm.open("factory", images=100, priority=Priority.BULK)
    assert len(farm.ledger.feed("scenes")) == 16
    farm.open("artist", images=100, priority=Priority.INTERACTIVE)
    assert len(farm.ledger.feed("scenes")) == 8
    assert farm.ledger.feed("scenes") == []


def test_a_lower_priority_is_never_passed_over_more_than_sixteen_times(farm):
    """However much interactive and normal work there is, bulk moves."""
    jobs = {farm.open("t", images=2000, priority=priority): priority for priority in Priority}
    order = [jobs[hint.job] for hint in farm.serve(400)]
    for priority in (Priority.NORMAL, Priority.BULK):
        turns = [position for position, served in enumerate(order) if served is priority]
        gaps = [later - earlier for earlier, later in pairwise(turns)]
        assert turns[0] <= 17
        assert max(gaps) <= 18
    assert Counter(order)[Priority.INTERACTIVE] > 400 * 0.85


def test_a_tenant_keeps_to_its_seats(farm):
    """With max_running 3 no more than three of its images are in flight, and others take the rest."""
    farm.ledger.set_tenant("small", TenantLimits(max_running=3))
    small, large = farm.open("small", images=50), farm.open("large", images=50)
    hints = farm.ledger.feed("scenes")
    assert Counter(hint.job for hint in hints) == {small: 3, large: 13}
    mine = next(hint for hint in hints if hint.job == small)
    farm.ledger.claim(mine, ME)
    assert all(hint.job == large for hint in farm.ledger.feed("scenes"))
    farm.ledger.stored(mine, ME, gpu_s=1, render_s=1)
    for hint in hints:
        if hint.job == large:
            farm.ledger.claim(hint, ME)
    assert Counter(hint.job for hint in farm.ledger.feed("scenes"))[small] == 1


def test_a_tenant_at_its_limit_is_told_so_and_others_are_not(farm):
    """max_queued_images counts what waits, in paused jobs too."""
    farm.ledger.set_tenant("small", TenantLimits(max_queued_images=10))
    job = farm.open("small", images=8)
    farm.ledger.pause(job)
    with pytest.raises(QueueFull, match="8 images of tenant small"):
        farm.open("small", images=3)
    farm.open("small", images=2)
    farm.open("large", images=1000)
    status = farm.ledger.tenant("small")
    assert (status.queued, status.open_jobs, status.limits.max_queued_images) == (10, 2, 10)


def test_a_paused_job_starts_nothing_and_goes_on_where_it_was(farm):
    """What runs is finished, what was handed out goes back, another job overtakes; resumed, it comes first again."""
    job, other = farm.open(images=30), farm.open(images=30)
    hints = farm.ledger.feed("scenes")
    assert farm.ledger.claim(hints[0], ME) is not None
    status = farm.ledger.pause(job)
    assert status.state is JobState.RENDERING
    assert status.paused
    assert farm.ledger.claim(hints[1], ME) is None
    assert farm.ledger.stored(hints[0], ME, gpu_s=1, render_s=1)
    assert farm.ledger.job(job).state is JobState.PAUSED
    assert {hint.job for hint in farm.serve(10)} == {other}
    assert farm.ledger.resume(job).state is JobState.RENDERING
    done = farm.serve(60)
    assert sorted(hint.index for hint in done if hint.job == job) == list(range(1, 30))
    assert farm.ledger.job(job).state is JobState.DONE
    assert farm.ledger.job(job).retries == 0, "to be handed out again is no retry for those that nobody had"


def test_a_paused_job_can_be_cancelled(farm):
    """And leaves nothing waiting."""
    job = farm.open("t", images=30)
    farm.ledger.feed("scenes")
    farm.ledger.pause(job)
    assert farm.ledger.cancel(job).counts.cancelled == 30
    status = farm.ledger.tenant("t")
    assert (status.queued, status.running, status.open_jobs) == (0, 0, 0)
    assert farm.ledger.resume(job).state is JobState.CANCELLED


def test_single_images_are_cancelled_wherever_they_are(farm):
    """One that was never handed out, one that was, one that runs; the others make the job done."""
    job = farm.open(images=40)
    hints = farm.ledger.feed("scenes")
    farm.ledger.claim(hints[0], ME)
    listen(farm.ledger)
    for index in (0, 1, 30):
        assert farm.ledger.cancel_image(job, index).state is UnitState.CANCELLED
    assert [(news.job, news.index) for news in told_by_now(farm.ledger) if news.job] == [(job, 0)]
    assert farm.ledger.renew(ME, [hints[0]]) == {hints[0]}
    assert not farm.ledger.stored(hints[0], ME, gpu_s=1, render_s=1)
    assert farm.ledger.claim(hints[1], ME) is None
    for hint in hints[2:]:
        farm.ledger.claim(hint, ME)
        farm.ledger.stored(hint, ME, gpu_s=1, render_s=1)
    farm.serve(40)
    status = farm.ledger.job(job)
    assert (status.state, status.counts.stored, status.counts.cancelled) == (JobState.DONE, 37, 3)


def test_the_last_image_cancelled_settles_the_job(farm):
    """All of them cancelled singly is a job cancelled."""
    job = farm.open(images=2)
    farm.ledger.cancel_image(job, 0)
    farm.ledger.cancel_image(job, 0)
    assert farm.ledger.job(job).state is JobState.QUEUED
    farm.ledger.cancel_image(job, 1)
    assert farm.ledger.job(job).state is JobState.CANCELLED
    assert farm.ledger.tenant("default").queued == 0


def test_failed_images_are_tried_again_when_asked(farm):
    """Their strikes are forgotten, their history and attempts are not; the job is done in the end."""
    job = farm.open(images=3)
    hints = farm.ledger.feed("scenes")
    for hint in hints:
        farm.ledger.claim(hint, ME)
    farm.ledger.failed(hints[0], ME, "the model is broken", final=True)
    farm.ledger.failed(hints[2], ME, "the model is broken", final=True)
    farm.ledger.stored(hints[1], ME, gpu_s=1, render_s=1)
    assert farm.ledger.job(job).state is JobState.FAILED
    status = farm.ledger.retry_failed(job)
    assert (status.state, status.counts.failed, status.finished_at) == (JobState.RENDERING, 0, None)
    assert [(hint.index, hint.attempt) for hint in farm.serve(2)] == [(0, 2), (2, 2)]
    assert farm.ledger.job(job).state is JobState.DONE
    assert farm.ledger.image(job, 0).history == ("the model is broken",)


def test_a_delayed_unit_waits_and_is_then_handed_out(farm):
    """What failed for want of something far away is not tried again at once."""
    job = farm.open(images=1)
    (hint,) = farm.ledger.feed("scenes")
    farm.ledger.claim(hint, ME)
    farm.ledger.failed(hint, ME, "the hub is away", final=False, delay_s=30)
    assert farm.ledger.job(job).counts.queued == 1
    farm.now += 29
    farm.ledger.reap()
    assert farm.ledger.feed("scenes") == []
    farm.now += 2
    farm.ledger.reap()
    assert farm.ledger.feed("scenes") == [hint._replace(attempt=2)]


def test_a_delayed_image_can_be_cancelled(farm):
    """It is nowhere else than in the queue of those that wait for their time."""
    job = farm.open("t", images=1)
    (hint,) = farm.ledger.feed("scenes")
    farm.ledger.claim(hint, ME)
    farm.ledger.failed(hint, ME, "the hub is away", final=False, delay_s=30)
    assert farm.ledger.cancel_image(job, 0).state is UnitState.CANCELLED
    farm.now += 31
    farm.ledger.reap()
    assert farm.ledger.feed("scenes") == []
    assert farm.ledger.tenant("t").queued == 0


def test_a_unit_whose_workers_died_twice_is_rendered_alone(farm):
    """Twice may be chance or a neighbour's doing; from then on there is one suspect."""
    job = farm.open(images=1)
    alone = []
    for _ in range(3):
        (hint,) = farm.ledger.feed("scenes")
        alone.append(farm.ledger.claim(hint, ME).alone)
        farm.now += 1e6 + 1
        assert farm.ledger.reap() == 1
        farm.ledger.report(_report())
    assert alone == [False, False, True]
    assert len(farm.ledger.image(job, 0).history) == 3


def test_a_cancelled_tenant_leaves_the_others_alone(farm):
    """All of its jobs are cancelled, and nobody else's."""
    mine = [farm.open("a", images=5) for _ in range(3)]
    other = farm.open("b", images=5)
    assert farm.ledger.cancel_tenant("a") == 3
    assert farm.ledger.cancel_tenant("a") == 0
    assert all(farm.ledger.job(job).state is JobState.CANCELLED for job in mine)
    assert {hint.job for hint in farm.serve(10)} == {other}


def test_what_tenants_paid_in_advance_comes_out_even(farm):
    """Handed out, given back, cancelled, stored: in the end a tenant has paid for what it got, to the millisecond."""
    farm.ledger.set_tenant("t", TenantLimits(weight=2))
    job, gone = farm.open("t", images=20), farm.open("t", images=20)
    for hint in farm.ledger.feed("scenes")[:5]:
        farm.ledger.claim(hint, ME)
        farm.ledger.failed(hint, ME, "boom", final=False)
    farm.ledger.feed("scenes")
    farm.ledger.cancel_image(job, 19)
    farm.ledger.cancel(gone)
    farm.ledger.forget(ME)  # what is handed out goes back
    farm.ledger.report(_report())
    farm.serve(50, gpu_s=lambda hint: 1.0 + hint.index)
    status = farm.ledger.tenant("t")
    assert farm.ledger.job(job).state is JobState.DONE
    assert status.gpu_s == sum(1.0 + index for index in range(19))
    assert float(farm.ledger._redis.hget("farm:tenant:t", "vtime")) == pytest.approx(status.gpu_s * 1000 / 2, abs=1)


def _report() -> WorkerReport:
    return WorkerReport(name=ME, node="alice:gpu0", pid=1, device="cpu", models=("scenes",), max_batch=8, started_at=0)
