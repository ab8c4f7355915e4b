"""The ledger against a model: done to in any order, and repeated, it loses nothing and doubles nothing."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from expanded_jobs import expanded_job
from farm.jobs import UnitState
from farm.ledger import Ledger, WorkerReport
from farm.settings import Settings

NODES = ("a:gpu0", "b:gpu0", "c:cpu0")
LEASE_S = 10.0
_url = ""


@pytest.fixture(autouse=True)
def _server(valkey_server):
    """Hand the server to the machine, which hypothesis builds itself."""
    global _url  # noqa: PLW0603  hypothesis gives no other way in
    _url = valkey_server.url


class LedgerMachine(RuleBasedStateMachine):
    """Workers that claim, finish, fail, die and wake up; messages that are lost, doubled and late."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_800_000_000.0
        self.ledger = Ledger.connect(
            Settings(redis_url=_url, lease_s=LEASE_S, max_attempts=1000), clock=lambda: self.now
        )
        self.ledger._redis.flushall()
        self.jobs = {}  # id -> total
        self.cancelled = set()
        self.messages = []  # in Celery's queue
        self.seen = []  # every message ever sent: any may come again
        self.boots = dict.fromkeys(NODES, 1)
        self.held = {}  # (worker, hint) granted and not given up, also by workers that are dead
        self.counted = Counter()

    def teardown(self) -> None:
        """However it went, honest workers bring it to its end."""
        self.settle()
        self.ledger.close()

    @initialize()
    def first_heartbeats(self) -> None:
        self.beat()

    def beat(self) -> None:
        for node, boot in self.boots.items():
            self.ledger.report(
                WorkerReport(
                    name=f"{node}#{boot}", node=node, pid=1, device="cpu", models=("scenes",), max_batch=2, started_at=0
                )
            )

    def send(self, hints) -> None:
        self.messages += hints
        self.seen += hints

    @rule(prompts=st.integers(1, 3), images=st.integers(1, 3), tenant=st.sampled_from("xy"))
    def open_job(self, prompts, images, tenant) -> None:
        job = expanded_job(
            prompts=[f"p{i}" for i in range(prompts)],
            num_images_per_prompt=images,
            tenant=tenant,
            created_at=self.now,
        )
        self.ledger.open(job)
        self.ledger.open(job) if prompts == 1 else None  # the reply was lost, the client's library repeats
        self.jobs[job.header.id] = job.header.total
        self.feed()

    @rule()
    def feed(self) -> None:
        self.beat()
        self.send(self.ledger.feed("scenes"))

    @rule()
    def rehint(self) -> None:
        self.send(self.ledger.rehint("scenes", older_than_s=5))

    @rule(data=st.data())
    def lose_a_message(self, data) -> None:
        if self.messages:
            self.messages.pop(data.draw(st.integers(0, len(self.messages) - 1)))

    @rule(data=st.data())
    def repeat_any_message(self, data) -> None:
        if self.seen:
            self.messages.append(data.draw(st.sampled_from(self.seen)))

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
            assert (worker, hint) not in self.held
            self.held[worker, hint] = True

    @rule(data=st.data(), ending=st.sampled_from(["stored", "stored", "stored", "failed", "release"]))
    def finish(self, data, ending) -> None:
        """Any process that was ever granted a unit may try to end it, once or twice, however late."""
        if not self.held:
            return
        worker, hint = data.draw(st.sampled_from(sorted(self.held)))
        for _ in range(data.draw(st.integers(1, 2))):
            if ending == "stored":
                counted = self.ledger.stored(hint, worker, gpu_s=1, render_s=1)
                self.counted[hint.job, hint.index] += counted
            elif ending == "failed":
                self.ledger.failed(hint, worker, "boom", final=False)
            else:
                self.ledger.release(hint, worker)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds) -> None:
        self.now += seconds

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

    @rule(data=st.data())
    def cancel(self, data) -> None:
        if self.jobs:
            job = data.draw(st.sampled_from(sorted(self.jobs)))
            if not self.ledger.cancel(job).state.is_final:
                raise AssertionError("a cancelled job is not final")
            if self.ledger.job(job).cancelled:
                self.cancelled.add(job)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Each image counted once; counts of each job sum up and agree with its images."""
        assert all(count == 1 for count in self.counted.values() if count)
        assert max(self.counted.values(), default=0) <= 1
        queued = 0
        for job, total in self.jobs.items():
            counts = self.ledger.job(job).counts
            assert (counts.queued + counts.rendering + counts.stored + counts.failed + counts.cancelled) == total
            assert counts.stored == sum(self.counted[job, index] for index in range(total))
            states = Counter(image.state for image in self.ledger.images(job, limit=total))
            assert states[UnitState.STORED] == counts.stored
            assert states[UnitState.RENDERING] == counts.rendering
            queued += 0 if job in self.cancelled else counts.queued
        assert self.ledger.queued_by_model().get("scenes", 0) <= queued + len(self.seen)

    def settle(self) -> None:
        """Let honest workers go on: in the end every image of every job that was not cancelled is there."""
        for _ in range(200):
            self.now += LEASE_S + 1
            self.beat()
            self.ledger.reap()
            hints = self.ledger.feed("scenes") + self.ledger.rehint("scenes", older_than_s=1)
            for hint in hints:
                worker = f"{NODES[0]}#{self.boots[NODES[0]]}"
                if self.ledger.claim(hint, worker) is not None:
                    self.counted[hint.job, hint.index] += self.ledger.stored(hint, worker, gpu_s=1, render_s=1)
            if all(self.ledger.job(job).state.is_final for job in self.jobs):
                break
        for job, total in self.jobs.items():
            if job not in self.cancelled:
                assert [self.counted[job, index] for index in range(total)] == [1] * total
        # Nothing stays behind: no lease, no hand-out, nothing queued.
        leftovers = self.ledger._redis.keys("farm:held:*") + self.ledger._redis.keys("farm:again:*")
        assert self.ledger.queued_by_model().get("scenes", 0) == 0
        assert self.ledger.throughput().rendering_images == 0
        assert not self.ledger._redis.exists("farm:leases", "farm:flight", "farm:handed:scenes"), leftovers


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    phases=(Phase.explicit, Phase.generate),  # a failing run is printed whole rather than shrunk for minutes
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
