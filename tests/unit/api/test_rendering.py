"""A job that a client waits for: opened only where somebody renders, cancelled when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect

from api import rendering
from api.guard.callers import Caller, scopes_of
from api.problems import HttpProblem
from api.rendering import NO_WORKER, RENDER_FAILED, TOOK_TOO_LONG, Finished, check_rendered, fetch, render
from api_client import heartbeat
from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.errors import LedgerDown, Refused, StorageDown, UnknownJob
from farm.jobs import Counts, UnitState
from farm.ledger import ImageStatus, JobStatus
from farm.requests import JobSpec

SPEC = JobSpec(model="scenes", prompts=["a red circle"])
CALLER = Caller("default", scopes_of(["submit"]))
HEADER = expanded_job(num_images_per_prompt=3).header
JOB = JobStatus(
    header=HEADER,
    counts=Counts(total=3, queued=3, rendering=0, stored=0, failed=0, cancelled=0),
    cancelled=False,
    started_at=None,
    finished_at=None,
    gpu_s=0.0,
    retries=0,
    images_per_s=None,
    eta_s=None,
)
IMAGES = tuple(
    ImageStatus(index=i, prompt_index=0, prompt="a", seed=i, state=UnitState.STORED, attempts=1) for i in range(3)
)


class Farm:
    """The parts that rendering asks, played: a ledger, a watcher, a store."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.cancelled: list[str] = []
        self.workers = [heartbeat()]
        self.is_down = False
        self.ledger = SimpleNamespace(workers=self._workers, cancel=self._cancel, images=lambda *_, **__: IMAGES)
        self.watcher = SimpleNamespace(settled=self._settled)
        self.store = SimpleNamespace(get=lambda key: key.encode())
        self.is_settled = asyncio.Event()
        self.is_awaited = asyncio.Event()  # the job is open
        self.num_outages = 0

    def _workers(self):
        if self.is_down:
            self.num_outages += 1
            raise LedgerDown("away")
        return self.workers

    def _cancel(self, job_id):
        if job_id != HEADER.id:
            raise UnknownJob("not opened")
        self.cancelled.append(job_id)

    async def _settled(self, _job_id):
        self.is_awaited.set()
        await self.is_settled.wait()
        return JOB


class Request:
    """A client's connection; `hang_up` closes it."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self.hang_up = self._gone.set

    async def receive(self):
        """Return what ASGI servers send when the client has gone, and not before."""
        await self._gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Look often, have little patience, and open every job as the one above."""
    monkeypatch.setattr(rendering, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(rendering, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(rendering, "accept", lambda *_, **__: (JOB, True))
    monkeypatch.setattr(rendering, "hint_workers", lambda *_: None)


def run(play, **options):
    """Render while `play(farm, request)` happens; return the farm and what came of it."""

    async def main():
        farm, request = Farm(), Request()
        task = asyncio.create_task(render(farm, CALLER, SPEC, request, job_id=HEADER.id, **options))
        await play(farm, request, task)
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        return farm, outcome

    return asyncio.run(main())


def test_a_settled_job_is_answered_with_its_images():
    """In order, and nothing is cancelled."""

    async def play(farm, _request, _task):
        farm.is_settled.set()

    farm, outcome = run(play)
    assert outcome == Finished(JOB, IMAGES)
    assert farm.cancelled == []


def test_without_a_worker_nothing_is_opened():
    """The answer comes at once."""

    async def play(farm, _request, _task):
        farm.workers = [heartbeat("sdxl")]

    farm, outcome = run(play)
    assert outcome.kind is NO_WORKER
    assert farm.cancelled == []


def test_who_hangs_up_has_the_job_cancelled():
    """Nobody would get its images."""

    async def play(farm, request, _task):
        await farm.is_awaited.wait()
        request.hang_up()

    farm, outcome = run(play)
    assert isinstance(outcome, ClientDisconnect)
    assert farm.cancelled == [HEADER.id]


def test_an_endpoint_that_is_cancelled_cancels_the_job():
    """As when the server stops, or a stream's client leaves."""

    async def play(farm, _request, task):
        await farm.is_awaited.wait()
        task.cancel()

    farm, outcome = run(play)
    assert isinstance(outcome, asyncio.CancelledError)
    assert farm.cancelled == [HEADER.id]


def test_when_the_last_worker_goes_it_is_waited_for_a_while():
    """One that is killed comes back; one that does not leaves the client with an answer."""

    async def play(farm, _request, _task):
        await farm.is_awaited.wait()
        farm.workers = []

    farm, outcome = run(play)
    assert outcome.kind is NO_WORKER
    assert farm.cancelled == [HEADER.id]


def test_an_outage_of_the_ledger_is_not_the_end():
    """It is the watcher that loses its patience with it."""

    async def play(farm, _request, task):
        await farm.is_awaited.wait()
        farm.is_down = True
        # Several looks, and longer than a worker that is gone would be waited for.
        while farm.num_outages < 5 or time.monotonic() < started + 2 * rendering._PATIENCE_S:
            ended, _ = await asyncio.wait({task}, timeout=0.01)
            assert not ended
        farm.is_settled.set()

    started = time.monotonic()
    _, outcome = run(play)
    assert outcome.status is JOB


def test_a_limit_of_time_holds():
    """And the job ends with it."""

    async def play(_farm, _request, _task):
        pass

    farm, outcome = run(play, limit_s=0.05)
    assert outcome.kind is TOOK_TOO_LONG
    assert farm.cancelled == [HEADER.id]


def test_a_job_that_is_refused_is_nobodys(monkeypatch):
    """What accept raises comes through; there is nothing to cancel."""

    def refuse(*_, **__):
        raise Refused("no", field="width")

    monkeypatch.setattr(rendering, "accept", refuse)

    async def play(_farm, _request, _task):
        pass

    _, outcome = run(play)
    assert isinstance(outcome, Refused)


def test_files_come_in_the_order_of_their_images():
    """Those of stored ones alone; an outage of the store is told."""
    farm = Farm()
    finished = Finished(JOB, (IMAGES[0], replace(IMAGES[1], state=UnitState.CANCELLED), IMAGES[2]))
    files = asyncio.run(fetch(farm, finished))
    assert [file.decode()[-11:] for file in files] == ["0000000.png", "0000002.png"]

    def down(_key):
        raise StorageDown("away")

    farm.store.get = down
    with pytest.raises(StorageDown):
        asyncio.run(fetch(farm, finished))


def test_a_failed_image_is_told_with_its_reason():
    """Cancelled ones are no failure."""
    cancelled = replace(IMAGES[0], state=UnitState.CANCELLED)
    check_rendered(Finished(JOB, (cancelled, IMAGES[1])))
    failed = replace(IMAGES[1], state=UnitState.FAILED, error="no such LoRA")
    with pytest.raises(HttpProblem, match="image 1 of 3: no such LoRA") as told:
        check_rendered(Finished(JOB, (cancelled, failed, IMAGES[2])))
    assert told.value.kind is RENDER_FAILED
