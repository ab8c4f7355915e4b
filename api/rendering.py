"""Rendering while a client waits: a job opened for it, its end awaited without a thread, its files fetched.

Owns what becomes of the job when the client hangs up or nobody is there to render it. What may be asked for and how the
answer looks is the business of the APIs that stand on this one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.guard.callers import Caller
from api.jobs import accept
from api.one_job import hint_workers
from api.parts import Parts
from api.problems import HttpProblem, Kind
from farm.errors import FarmError, LedgerDown, UnknownJob
from farm.jobs import JobState, UnitState, new_job_id
from farm.ledger import ImageStatus, JobStatus
from farm.requests import JobSpec
from farm.storage import object_key

log = logging.getLogger(__name__)

NO_WORKER: Final = Kind("no-worker", 503, "No worker serves the model")
RENDER_FAILED: Final = Kind("render-failed", 500, "An image could not be rendered")
TOOK_TOO_LONG: Final = Kind("took-too-long", 503, "The images were not ready in time")

_LOOK_EVERY_S: Final = 10.0  # for whether somebody still serves the model
_PATIENCE_S: Final = 60.0  # without anybody: a worker that was killed is back before
_RETRY_AFTER_S: Final = 10
_MAX_CANCELLED: Final = 8  # jobs under one Idempotency-Key that are passed over
_FETCHED_AT_ONCE: Final = 4  # files of one client


class Finished(NamedTuple):
    """A job whose images are all settled: stored, failed or cancelled."""

    status: JobStatus
    images: tuple[ImageStatus, ...]  # in order

    @property
    def stored(self) -> list[ImageStatus]:
        """The images that have a file."""
        return [image for image in self.images if image.state is UnitState.STORED]


async def render(
    farm: Parts,
    caller: Caller,
    spec: JobSpec,
    request: Request,
    *,
    job_id: str | None = None,
    limit_s: float | None = None,
    idempotency_key: str | None = None,
) -> Finished:
    """Open a job and return when all of it is settled. `spec` should ask for interactive priority.

    Whoever has to know the job's id before it is opened makes one (`new_job_id`). With an `idempotency_key` that was
    used before it is the earlier job that is waited for, unless that was cancelled: the client that hung up, and comes
    again, wants its images after all.

    The job is cancelled when this raises ClientDisconnect when the client of `request` has hung up, HttpProblem
    NO_WORKER at once when no live worker serves the model, or a minute after the last one has gone, TOOK_TOO_LONG after
    `limit_s`, LedgerDown, what `accept` raises.
    """
    job_id = job_id or new_job_id()
    async with opened(farm, caller, spec, job_id=job_id, idempotency_key=idempotency_key) as job:
        status = await _settled(farm, job, request, limit_s=limit_s)
    if status.state is JobState.CANCELLED and job.header.id != job_id:
        # An earlier job, whose client hung up a moment after we came.
        async with opened(farm, caller, spec, idempotency_key=idempotency_key) as job:
            status = await _settled(farm, job, request, limit_s=limit_s)
    images = await run_in_threadpool(farm.ledger.images, job.header.id, limit=job.header.total)
    return Finished(status, tuple(images))


@asynccontextmanager
async def opened(
    farm: Parts, caller: Caller, spec: JobSpec, *, job_id: str | None = None, idempotency_key: str | None = None
) -> AsyncIterator[JobStatus]:
    """Open a job for the length of a block; one that is left by an exception cancels it, being cancelled included.

    With an `idempotency_key` that was used before it is the earlier job, unless that was cancelled. Raises what
    `accept` does, and HttpProblem NO_WORKER when no live worker serves the model.
    """
    await run_in_threadpool(check_served, farm, spec.model)
    job_id = job_id or new_job_id()
    try:
        job = await run_in_threadpool(_open, farm, caller, spec, job_id, idempotency_key)
        job_id = job.header.id
        await run_in_threadpool(hint_workers, farm, spec.model)
        yield job
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(_cancel, farm, job_id)
        raise


def _open(farm: Parts, caller: Caller, spec: JobSpec, job_id: str, idempotency_key: str | None) -> JobStatus:
    key = idempotency_key
    for again in range(1, _MAX_CANCELLED + 1):
        job, is_new = accept(farm, spec, tenant=caller.tenant, idempotency_key=key, job_id=job_id)
        if is_new or job.state is not JobState.CANCELLED:
            break
        key = f"{idempotency_key}~{again}"
    return job


async def _settled(farm: Parts, job: JobStatus, request: Request, *, limit_s: float | None) -> JobStatus:
    """Return the job once it is settled; raises as `render` does."""
    model = job.header.model
    settled = asyncio.create_task(farm.watcher.settled(job.header.id))
    gone = asyncio.create_task(_hung_up(request))
    started = served_at = time.monotonic()
    try:
        while True:
            left_s = _LOOK_EVERY_S if limit_s is None else started + limit_s - time.monotonic()
            timeout_s = min(_LOOK_EVERY_S, max(left_s, 0))
            done, _ = await asyncio.wait({settled, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if settled in done:
                return settled.result()
            if gone in done:
                log.info("The client of %s hung up", job.header.id, extra={"action": "hung_up", "job": job.header.id})
                raise ClientDisconnect
            now = time.monotonic()
            if limit_s is not None and now - started >= limit_s:
                raise HttpProblem(
                    TOOK_TOO_LONG,
                    f"not ready within {limit_s:g} s; larger work is for POST /v1/jobs, which nobody has to wait for",
                    headers={"Retry-After": str(_RETRY_AFTER_S)},
                )
            try:
                is_alive = await run_in_threadpool(is_served, farm, model)
            except LedgerDown:
                is_alive = True  # nobody can tell; how long that is waited out is the watcher's business
            if is_alive:
                served_at = now
            elif now - served_at >= _PATIENCE_S:
                raise _nobody(model)
    finally:
        for task in (settled, gone):
            task.cancel()
        await asyncio.gather(settled, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    """Return when the client has closed its connection; what is left of its body is passed over."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def is_served(farm: Parts, model: str) -> bool:
    """Tell whether a live worker may render a model."""
    return any(model in worker.models for worker in farm.ledger.workers())


def check_served(farm: Parts, model: str) -> None:
    """Raise HttpProblem NO_WORKER unless a live worker may render a model of the catalog; UnknownModel for others."""
    farm.catalog.row(model)
    if not is_served(farm, model):
        raise _nobody(model)


def _nobody(model: str) -> HttpProblem:
    detail = f"no worker that is alive serves {model}; a job sent to /v1/jobs would wait for one"
    return HttpProblem(NO_WORKER, detail, headers={"Retry-After": str(_RETRY_AFTER_S)})


def _cancel(farm: Parts, job_id: str) -> None:
    """Cancel a job that nobody waits for any more, if it can be done and there is one."""
    try:
        farm.ledger.cancel(job_id)
    except UnknownJob:  # it was refused
        pass
    except FarmError as error:
        log.warning("%s was not cancelled: %s", job_id, error, extra={"action": "cancel_failed", "job": job_id})


def check_rendered(finished: Finished) -> None:
    """Raise HttpProblem RENDER_FAILED, with the reason, when an image has failed; cancelled ones have not."""
    failed = [image for image in finished.images if image.state is UnitState.FAILED]
    if failed:
        which = f"image {failed[0].index} of {len(finished.images)}"
        others = f", and {len(failed) - 1} more failed" if len(failed) > 1 else ""
        raise HttpProblem(RENDER_FAILED, f"{which}: {failed[0].error}{others} (job {finished.status.header.id})")


async def fetch(farm: Parts, finished: Finished) -> list[bytes]:
    """Return the files of the images that are stored, in order; raises StorageDown."""
    header = finished.status.header
    limiter = CapacityLimiter(_FETCHED_AT_ONCE)
    keys = [object_key(header.id, image.index, header.output.format) for image in finished.stored]
    return await asyncio.gather(*(to_thread.run_sync(farm.store.get, key, limiter=limiter) for key in keys))
