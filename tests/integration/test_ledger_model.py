"""The ledger against a model: done to in any order, and repeated, it loses nothing and doubles nothing."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from expanded_jobs import expanded_job
from farm.errors import Refused
from farm.jobs import JobState, UnitState
from farm.ledger import Ledger, WorkerReport
from farm.settings import Settings

NODES = ("a:gpu0", "b:gpu0", "c:cpu0")
LEASE_S = 10.0
_url = ""


@pytest.fixture(autouse=True)
def _server(fast_server):
    """Hand the server to the machine, which hypothesis builds itself."""
    global _url  # noqa: PLW0603  hypothesis gives no other way in
    _url = fast_server.url


class LedgerMachine(RuleBasedStateMachine):
    """Workers that claim, finish, fail, die and wake up; messages that are lost, doubled and late."""

    fails_for_good = False

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_800_000_000.0
        self.ledger = Ledger.connect(
            Settings(redis_url=_url, lease_s=LEASE_S, max_attempts=1000), clock=lambda: self.now
        )
        self.ledger._redis.flushall()
        self.jobs = {}  # id -> total
        self.cancelled = set()
        self.dropped = set()  # images cancelled singly
        self.paused = set()
        self.tenant_of = {}
        self.messages = []  # in Celery's queue
        self.seen = []  # every message ever sent: any may come again
        self.boots = dict.fromkeys(NODES, 1)
        self.held = {}  # (worker, hint) granted and not given up, also by workers that are dead
        self.counted = Counter()
        self.told = {}  # how settled jobs stood when all of their images were looked at

    def teardown(self) -> None:
        """However it went, honest workers bring it to its end."""
        self.settle()
        self.ledger.close()

    @initialize(data=st.data())
    def a_farm_at_work(self, data) -> None:
        """Begin with two jobs, some of their messages delivered: most rules have nothing to do in an empty farm."""
        self.beat()
        for tenant in "xy":
            self.open_job(2, data.draw(st.integers(1, 5)), tenant, data.draw(st.sampled_from(["normal", "bulk"])))
        for node in NODES:
            self.deliver(data, node, 1)

    def beat(self) -> None:
        for node, boot in self.boots.items():
            self.ledger.report(
                WorkerReport(
                    name=f"{node}#{boot}", node=node, pid=1, device="cpu", models=("scenes",), max_batch=1, started_at=0
                )
            )

    def send(self, hints) -> None:
        self.messages += hints
        self.seen += hints

    @rule(
        prompts=st.integers(1, 3),
        images=st.integers(1, 8),
        tenant=st.sampled_from("xy"),
        priority=st.sampled_from(["interactive", "normal", "bulk"]),
    )
    def open_job(self, prompts, images, tenant, priority) -> None:
        job = expanded_job(
            prompts=[f"p{i}" for i in range(prompts)],
            num_images_per_prompt=images,
            tenant=tenant,
            priority=priority,
            created_at=self.now,
        )
        self.ledger.open(job)
        self.ledger.open(job) if prompts == 1 else None  # the reply was lost, the client's library repeats
        self.jobs[job.header.id] = job.header.total
        self.tenant_of[job.header.id] = tenant
        self.feed()

    @rule()
    def feed(self) -> None:
        self.beat()
        self.send(self.ledger.feed("scenes"))

    @rule()
    def rehint(self) -> None:
        self.send(self.ledger.rehint("scenes", older_than_s=5))

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def lose_a_message(self, data) -> None:
        self.messages.pop(data.draw(st.integers(0, len(self.messages) - 1)))

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def repeat_any_message(self, data) -> None:
        self.messages.append(data.draw(st.sampled_from(self.seen)))

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), node=st.sampled_from(NODES), num_messages=st.integers(1, 4))
    def deliver(self, data, node, num_messages) -> None:
        for _ in range(min(num_messages, len(self.messages))):
            self.deliver_one(data, node)

    def deliver_one(self, data, node) -> None:
        hint = self.messages.pop(data.draw(st.integers(0, len(self.messages) - 1)))
        worker = f"{node}#{self.boots[node]}"
        unit = self.ledger.claim(hint, worker)
        if unit is not None:
            assert not self.counted[unit.job, unit.index], "an image that is stored was handed out again"
            assert hint.job not in self.cancelled
            assert hint.job not in self.paused, "a paused job's image was granted"
            assert (hint.job, hint.index) not in self.dropped
            assert (worker, hint) not in self.held
            assert self.ledger.image(*hint[:2]).attempts == hint.attempt, "an older message was granted"
            self.held[worker, hint] = True

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        endings=st.lists(st.sampled_from(["stored", "stored", "failed", "release"]), min_size=1, max_size=4),
        node=st.sampled_from(NODES),
    )
    def finish(self, data, endings, node) -> None:
        """Let any process that was ever granted a unit try to end it, once or twice, however late; then deliver."""
        for ending in endings:
            worker, hint = data.draw(st.sampled_from(sorted(self.held)))
            for _ in range(data.draw(st.integers(1, 2))):
                if ending == "stored":
                    counted = self.ledger.stored(hint, worker, gpu_s=1, render_s=1)
                    self.counted[hint.job, hint.index] += counted
                elif ending == "failed":
                    delay_s = data.draw(st.sampled_from([0.0, 5.0]))
                    self.ledger.failed(hint, worker, "boom", final=self.fails_for_good, delay_s=delay_s)
                else:
                    self.ledger.release(hint, worker)
        self.feed()
        self.deliver(data, node, len(endings))

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds) -> None:
        self.now += seconds

    @precondition(lambda self: self.held)
    @rule(node=st.sampled_from(NODES))
    def renew(self, node) -> None:
        worker = f"{node}#{self.boots[node]}"
        self.ledger.renew(worker, [hint for holder, hint in self.held if holder == worker])

    @rule()
    def reap(self) -> None:
        self.ledger.reap()

    @rule(node=st.sampled_from(NODES))
    def restart(self, node) -> None:
        self.boots[node] += 1
        self.ledger.reap_node(node, keep=f"{node}#{self.boots[node]}")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        if not self.ledger.cancel(job).state.is_final:
            raise AssertionError("a cancelled job is not final")
        if self.ledger.job(job).cancelled:
            self.cancelled.add(job)
            self.paused.discard(job)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Each image counted once; counts of each job sum up and agree with its images."""
        assert max(self.counted.values(), default=0) <= 1
        queued, num_open = Counter(), Counter()  # by tenant
        statuses = self.statuses()
        assert statuses.keys() == self.jobs.keys()
        for job, total in self.jobs.items():
            status = statuses[job]
            counts = status.counts
            assert min(counts.queued, counts.rendering, counts.stored, counts.failed, counts.cancelled) >= 0
            assert (counts.queued + counts.rendering + counts.stored + counts.failed + counts.cancelled) == total
            assert counts.stored == sum(self.counted[job, index] for index in range(total))
            if not status.state.is_final or self.told.get(job) != (status.finished_at, counts):
                self.images_agree(job, counts)
                self.told[job] = status.finished_at, counts
            assert (status.state is JobState.PAUSED) <= (job in self.paused)
            assert (status.finished_at is not None) == status.state.is_final
            queued[self.tenant_of[job]] += counts.queued
            num_open[self.tenant_of[job]] += not status.state.is_final
        redis = self.ledger._redis
        # What waits is in the backlog, or handed out, or waits for its delay to end.
        flying = Counter(map(self._tenant, redis.hkeys("farm:flight")))
        handed = Counter(map(self._tenant, redis.zrange("farm:handed:scenes", 0, -1)))
        later = Counter(self._tenant(member) for member in redis.zrange("farm:later", 0, -1) if self._is_wanted(member))
        told = self.ledger.tenants()
        assert {status.name for status in told} == set(self.tenant_of.values())
        for status in told:
            tenant = status.name
            assert status.running == flying[tenant]
            assert status.queued == queued[tenant] - handed[tenant] - later[tenant]
            assert status.open_jobs == num_open[tenant]

    def statuses(self) -> dict:
        return {status.header.id: status for status in self.ledger.jobs(limit=1000)}

    def images_agree(self, job, counts) -> None:
        states = Counter(image.state for image in self.ledger.images(job, limit=self.jobs[job]))
        assert states[UnitState.STORED] == counts.stored
        assert states[UnitState.RENDERING] == counts.rendering
        assert states[UnitState.FAILED] == counts.failed
        assert states[UnitState.CANCELLED] == counts.cancelled

    def _tenant(self, member) -> str:
        return self.tenant_of[member.decode().rpartition(":")[0]]

    def _is_wanted(self, member) -> bool:
        job, _, index = member.decode().rpartition(":")
        return job not in self.cancelled and (job, int(index)) not in self.dropped

    def settle(self) -> None:
        """Let honest workers go on: in the end every image of every job that was not cancelled is there."""
        for job in self.jobs:
            self.ledger.resume(job)
            if job not in self.cancelled:
                self.ledger.retry_failed(job)
        for _ in range(200):
            self.now += LEASE_S + 1
            self.beat()
            self.ledger.reap()
            hints = self.ledger.feed("scenes") + self.ledger.rehint("scenes", older_than_s=1)
            for hint in hints:
                worker = f"{NODES[0]}#{self.boots[NODES[0]]}"
                if self.ledger.claim(hint, worker) is not None:
                    self.counted[hint.job, hint.index] += self.ledger.stored(hint, worker, gpu_s=1, render_s=1)
            if all(status.state.is_final for status in self.statuses().values()):
                break
        for job, total in self.jobs.items():
            self.images_agree(job, self.ledger.job(job).counts)
            if job not in self.cancelled:
                assert all(self.counted[job, index] + ((job, index) in self.dropped) == 1 for index in range(total))
        # Nothing stays behind: no lease, no hand-out, nothing queued, nobody charged for what was not made.
        leftovers = self.ledger._redis.keys("farm:held:*") + self.ledger._redis.keys("farm:lane:*")
        assert not leftovers
        for tenant in self.ledger.tenants():
            assert (tenant.queued, tenant.running, tenant.open_jobs) == (0, 0, 0)
        assert self.ledger.queued_by_model().get("scenes", 0) == 0
        assert self.ledger.throughput().rendering_images == 0
        assert not self.ledger._redis.exists("farm:leases", "farm:flight", "farm:handed:scenes", "farm:later")


class EditedLedgerMachine(LedgerMachine):
    """The same, while people pause, resume, retry and cancel single images, and workers come and go."""

    fails_for_good = True

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel_an_image(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        index = data.draw(st.integers(0, self.jobs[job] - 1))
        was = self.ledger.image(job, index).state
        status = self.ledger.cancel_image(job, index)
        if was in (UnitState.QUEUED, UnitState.RENDERING):
            assert status.state is UnitState.CANCELLED
            self.dropped.add((job, index))
        else:
            assert status.state is was

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def pause(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        if not self.ledger.pause(job).state.is_final:
            self.paused.add(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def resume(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        self.ledger.resume(job)
        self.paused.discard(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry_failed(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        if job in self.cancelled:
            with pytest.raises(Refused):
                self.ledger.retry_failed(job)
        else:
            assert self.ledger.retry_failed(job).counts.failed == 0

    @rule(node=st.sampled_from(NODES))
    def leave(self, node) -> None:
        """Stop a worker from reading: if it was the last, what nobody has claimed waits in the backlog."""
        self.ledger.forget(f"{node}#{self.boots[node]}")

    @rule()
    def ask_for_demand(self) -> None:
        demand = self.ledger.demand()
        waiting = sum(model.queued for model in demand.models.values())
        assert waiting == self.ledger._counts_by_model("queued").get("scenes", 0)


_settings = settings(
    max_examples=15,
    stateful_step_count=40,
    phases=(Phase.explicit, Phase.generate),  # a failing run is printed whole rather than shrunk for minutes
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = _settings
TestEditedLedgerMachine = EditedLedgerMachine.TestCase
TestEditedLedgerMachine.settings = _settings
