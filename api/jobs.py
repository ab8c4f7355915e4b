"""Jobs over HTTP: accepted and listed. What becomes of one is in api/one_job.py, its images are in api/images.py."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Final
from urllib.parse import urlencode

import fastapi
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from api.bodies import parse_job_spec, read_body
from api.callers import TENANT_NAME, Asker, Caller
from api.job_examples import ACCEPTED_HEADERS, JOB_SPEC_BODY
from api.one_job import hint_workers
from api.parts import Farm, Parts
from api.problems import (
    BODY_TOO_LARGE,
    IDEMPOTENCY_CONFLICT,
    INVALID_REQUEST,
    LEDGER_DOWN,
    MALFORMED_JSON,
    QUEUE_FULL,
    UNKNOWN_MODEL,
    UNSUPPORTED_MEDIA_TYPE,
    documented,
)
from api.schemas import Job, JobList
from api.uploads import check_keys
from farm.expand import expand
from farm.jobs import Counts, Header, JobState, new_job_id
from farm.ledger import JobStatus, Ledger
from farm.pictures import hosts_of
from farm.requests import JobSpec

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_DRAWN_SEED_BITS: Final = 32  # what every tool around Stable Diffusion can show and take
_MAX_SCANNED: Final = 1000  # jobs that one filtered listing looks at
_SCAN_PAGE: Final = 100

IdempotencyKey = Annotated[
    str | None,
    fastapi.Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description=(
            "Any unique printable text without blanks. A repeat of the same request with the same key answers with "
            "the first one's job instead of making another."
        ),
    ),
]


class JobsQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=500, description="Jobs on a page.")
    before: str | None = Field(None, max_length=64, description="Only jobs older than this id: the cursor of paging.")
    state: JobState | None = Field(
        None, description="Only jobs in this state; a page may then hold fewer than `limit`, and still have a `next`."
    )
    tenant: str | None = Field(None, pattern=TENANT_NAME, description="Only this tenant's jobs; likewise.")

    def wants(self, status: JobStatus) -> bool:
        """Whether a job belongs on the list."""
        return self.state in (None, status.state) and self.tenant in (None, status.header.tenant)


@router.post(
    "",
    status_code=202,
    response_model=Job,
    response_description="Accepted: the job is in the ledger and will be rendered.",
    responses={
        202: {"headers": ACCEPTED_HEADERS},
        **documented(
            MALFORMED_JSON,
            BODY_TOO_LARGE,
            UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            UNKNOWN_MODEL,
            IDEMPOTENCY_CONFLICT,
            QUEUE_FULL,
            LEDGER_DOWN,
        ),
    },
    openapi_extra={"requestBody": JOB_SPEC_BODY},
)
async def create_job(
    request: Request, farm: Farm, caller: Asker, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Accept a batch of prompts.

    The job is durable when this answers, and workers take it up at once. Each prompt gives `num_images_per_prompt`
    images; image i has `seed + i`. What a prompt object leaves out comes from the job, and what the job leaves out
    from the model's defaults.
    """
    body = await read_body(
        request, max_bytes=farm.settings.max_body_bytes, remedy="; split the batch into several jobs"
    )
    # In a thread: a large body takes hundreds of milliseconds to check and expand, and the ledger's calls block.
    status, is_new = await run_in_threadpool(_accept_body, farm, caller, body, idempotency_key)
    headers = {"Location": f"/v1/jobs/{status.header.id}"}
    if not is_new:
        headers["Idempotent-Replayed"] = "true"
    # After the answer: the job is safe in the ledger, and workers feed themselves should this fail.
    task = BackgroundTask(hint_workers, farm, status.header.model) if is_new else None
    job = Job.of(status, farm.settings.gpu_hour_price)
    return JSONResponse(job.model_dump(mode="json"), status_code=202, headers=headers, background=task)


def _accept_body(farm: Parts, caller: Caller, body: bytes, idempotency_key: str | None) -> tuple[JobStatus, bool]:
    spec = parse_job_spec(body, max_prompts=farm.settings.max_prompts)
    return accept(farm, spec, tenant=caller.tenant, idempotency_key=idempotency_key)


def accept(
    farm: Parts,
    spec: JobSpec,
    *,
    tenant: str,
    idempotency_key: str | None,
    job_id: str | None = None,
    afterwards: Sequence[str] = (),
) -> tuple[JobStatus, bool]:
    """Put a tenant's job into the ledger; return it as it stands, and whether it is new.

    Whoever has to know its id before it is there makes one (`new_job_id`); `afterwards` names the chores that its end
    brings, beside the manifest: kinds that `api.app` has handlers for.

    Raises Refused for what the catalog or the limits do not allow, QueueFull and LedgerDown.
    """
    settings = farm.settings
    row = farm.catalog.row(spec.model)
    job = expand(
        spec,
        row,
        job_id=job_id or new_job_id(),
        tenant=tenant,
        created_at=time.time(),
        drawn_seed=secrets.randbits(_DRAWN_SEED_BITS),
        max_prompts=settings.max_prompts,
        max_images=settings.max_images,
        controlnets=farm.catalog.controlnets_for(row),
        input_hosts=hosts_of(settings.input_hosts),
        afterwards=afterwards,
    )
    check_keys(farm, spec)
    if spec.webhook is not None:
        farm.webhooks.check(spec.webhook.url, field="webhook.url")
    opened = farm.ledger.open(
        job,
        idempotency_key=idempotency_key,
        fingerprint=_fingerprint(spec) if idempotency_key else "",
        max_queued_images=settings.max_queued_images,
    )
    if not opened.created:
        return farm.ledger.job(opened.id), False
    extra = {"action": "job_accepted", "job": opened.id, "model": spec.model, "images": job.header.total}
    log.info("Accepted %s: %d images of %s", opened.id, job.header.total, spec.model, extra=extra)
    return _fresh(job.header), True


def _fresh(header: Header) -> JobStatus:
    """Return the status of a job just opened. Not asked of the ledger: from here on nothing may fail."""
    total = header.total
    return JobStatus(
        header=header,
        counts=Counts(total=total, queued=total, rendering=0, stored=0, failed=0, cancelled=0),
        cancelled=False,
        paused=False,
        started_at=None,
        finished_at=None,
        gpu_s=0.0,
        retries=0,
        images_per_s=None,
        eta_s=None,
    )


def _fingerprint(spec: JobSpec) -> str:
    """Return what two bodies that ask for the same have in common, whatever their white space and order."""
    canonical = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@router.get("", response_model=JobList, responses=documented(INVALID_REQUEST, LEDGER_DOWN))
def list_jobs(farm: Farm, caller: Asker, query: Annotated[JobsQuery, Query()]) -> JobList:
    """List jobs, newest first. Follow `next` until it is null."""
    found: list[JobStatus] = []
    cursor, has_more = query.before, False
    is_filtered = not caller.is_operator or query.state is not None or query.tenant is not None
    page_size = max(query.limit + 1, _SCAN_PAGE) if is_filtered else query.limit + 1
    for num_scanned, status in enumerate(_newest(farm.ledger, before=query.before, page_size=page_size)):
        if len(found) == query.limit or num_scanned == _MAX_SCANNED:
            has_more = True
            break
        cursor = status.header.id
        if caller.sees(status.header) and query.wants(status):
            found.append(status)
    following = {**query.model_dump(mode="json", exclude_none=True), "before": cursor}
    return JobList(
        data=[Job.of(status, farm.settings.gpu_hour_price) for status in found],
        has_more=has_more,
        next=f"/v1/jobs?{urlencode(following)}" if has_more else None,
    )


def _newest(ledger: Ledger, *, before: str | None, page_size: int) -> Iterator[JobStatus]:
    """Yield jobs from the newest on, or from just below `before`, asking for a page at a time."""
    while page := ledger.jobs(page_size, before=before):
        yield from page
        if len(page) < page_size:
            return
        before = page[-1].header.id
