"""Jobs over HTTP: accepted and listed. What becomes of one is in api/one_job.py, its images are in api/images.py."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Annotated, Final
from urllib.parse import urlencode

import fastapi
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from api.batches.cells import JOB_PARAMETERS
from api.batches.forms import Sent, job_asked, read_sent
from api.batches.places import told_by
from api.batches.preparing import prepare
from api.guard.audit import note_made
from api.guard.callers import TENANT_NAME, Asker, Caller
from api.job_examples import ACCEPTED_HEADERS, JOB_SPEC_BODY
from api.one_job import hint_workers
from api.parts import Farm, Parts
from api.problems import IDEMPOTENCY_CONFLICT, INVALID_REQUEST, JOB_SPEC_PROBLEMS, LEDGER_DOWN, QUEUE_FULL, documented
from api.schemas import Job, JobList
from api.tracing import note_job
from farm.jobs import Counts, Header, JobState
from farm.ledger import JobStatus, Ledger
from farm.requests import JobSpec

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

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
        **documented(*JOB_SPEC_PROBLEMS, IDEMPOTENCY_CONFLICT, QUEUE_FULL),
    },
    openapi_extra={"requestBody": JOB_SPEC_BODY, "parameters": JOB_PARAMETERS},
)
async def create_job(
    request: Request, farm: Farm, caller: Asker, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Accept a batch of prompts.

    The job is durable when this answers, and workers take it up at once. Each prompt gives `num_images_per_prompt`
    images; image i has `seed + i`. What a prompt object leaves out comes from the job, and what the job leaves out
    from the model's defaults. Any field of the job may come in the query instead, where it wins over the body: parts of
    objects with dots (`output.format=webp`, `labels.shoot=spring`), lists with commas (`matrix.seed=1,2`).
    """
    sent = await read_sent(request, max_bytes=farm.settings.max_body_bytes)
    # In a thread: a large body takes hundreds of milliseconds to check and expand, and the ledger's calls block.
    status, is_new = await run_in_threadpool(_accept_sent, farm, caller, sent, idempotency_key)
    headers = {"Location": f"/v1/jobs/{status.header.id}"}
    if not is_new:
        headers["Idempotent-Replayed"] = "true"
    # After the answer: the job is safe in the ledger, and workers feed themselves should this fail.
    task = BackgroundTask(hint_workers, farm, status.header.model) if is_new else None
    job = Job.of(status, farm.settings.gpu_hour_price)
    return JSONResponse(job.model_dump(mode="json"), status_code=202, headers=headers, background=task)


def _accept_sent(farm: Parts, caller: Caller, sent: Sent, idempotency_key: str | None) -> tuple[JobStatus, bool]:
    spec, places = job_asked(sent, max_prompts=farm.settings.max_prompts)
    with told_by(places):
        return accept(
            farm, spec, tenant=caller.tenant, idempotency_key=idempotency_key, may_name_all=caller.is_operator
        )


def accept(
    farm: Parts,
    spec: JobSpec,
    *,
    tenant: str,
    idempotency_key: str | None,
    job_id: str | None = None,
    afterwards: Sequence[str] = (),
    may_name_all: bool = False,
) -> tuple[JobStatus, bool]:
    """Put a tenant's job into the ledger; return it as it stands, and whether it is new.

    It may start from pictures of other tenants if `may_name_all`.

    Whoever has to know its id before it is there makes one (`new_job_id`); `afterwards` names the chores that its end
    brings, beside the manifest: kinds that `api.app` has handlers for.

    Raises Refused for what the catalog or the limits do not allow, QueueFull and LedgerDown.
    """
    job = prepare(farm, spec, tenant=tenant, job_id=job_id, afterwards=afterwards, may_name_all=may_name_all)
    opened = farm.ledger.open(
        job,
        idempotency_key=idempotency_key,
        fingerprint=_fingerprint(spec) if idempotency_key else "",
        max_queued_images=farm.settings.max_queued_images,
    )
    if not opened.created:
        return farm.ledger.job(opened.id), False
    note_job(opened.id)
    note_made(f"/v1/jobs/{opened.id}")
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
    document = spec.model_dump(mode="json")
    if spec.matrix is not None:
        document["matrix"] = [(name, document["matrix"][name]) for name in spec.matrix.axes]  # the order of the images
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
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
