"""Jobs and their images over HTTP: accept, list, report, cancel. What they mean is the ledger's business."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Final
from urllib.parse import urlencode

import fastapi
from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from api.bodies import parse_job_spec, read_body
from api.job_examples import ACCEPTED_HEADERS, JOB_SPEC_BODY
from api.parts import Farm, Parts
from api.problems import (
    BODY_TOO_LARGE,
    IDEMPOTENCY_CONFLICT,
    INVALID_REQUEST,
    LEDGER_DOWN,
    MALFORMED_JSON,
    QUEUE_FULL,
    UNKNOWN_IMAGE,
    UNKNOWN_JOB,
    UNKNOWN_MODEL,
    UNSUPPORTED_MEDIA_TYPE,
    documented,
)
from api.schemas import Image, ImagePage, Job, JobList
from api.uploads import check_keys
from farm.errors import Transient, UnknownJob
from farm.expand import expand
from farm.feeding import feed
from farm.jobs import JOB_ID_FORM, Counts, Header, JobSpec, JobState, Output, UnitState, new_job_id
from farm.ledger import ImageStatus, JobStatus, Ledger
from farm.pictures import hosts_of
from farm.storage import object_key, thumbnail_key, upscaled_key

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_TENANT: Final = "default"  # there is no authentication yet: everybody is one tenant
_DRAWN_SEED_BITS: Final = 32  # what every tool around Stable Diffusion can show and take
_MAX_SCANNED: Final = 1000  # jobs that one filtered listing looks at
_SCAN_PAGE: Final = 100
_MAX_OFFSET: Final = 2**53

JobId = Annotated[str, Path(description="The `id` of a job.", examples=["job_0000z3k9v1q8m4t7x2c5"])]
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


class ImagesQuery(BaseModel):
    """Which images of a job to list."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(0, ge=0, le=_MAX_OFFSET, description="Index of the first image.")
    limit: int = Field(100, ge=1, le=1000, description="Images on a page.")


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
async def create_job(request: Request, farm: Farm, idempotency_key: IdempotencyKey = None) -> JSONResponse:
    """Accept a batch of prompts.

    The job is durable when this answers, and workers take it up at once. Each prompt gives `num_images_per_prompt`
    images; image i has `seed + i`. What a prompt object leaves out comes from the job, and what the job leaves out
    from the model's defaults.
    """
    body = await read_body(request, max_bytes=farm.settings.max_body_bytes)
    # In a thread: a large body takes hundreds of milliseconds to check and expand, and the ledger's calls block.
    status, is_new = await run_in_threadpool(_accept_body, farm, body, idempotency_key)
    headers = {"Location": f"/v1/jobs/{status.header.id}"}
    if not is_new:
        headers["Idempotent-Replayed"] = "true"
    # After the answer: the job is safe in the ledger, and workers feed themselves should this fail.
    task = BackgroundTask(_hint_workers, farm, status.header.model) if is_new else None
    return JSONResponse(Job.of(status).model_dump(mode="json"), status_code=202, headers=headers, background=task)


def _accept_body(farm: Parts, body: bytes, idempotency_key: str | None) -> tuple[JobStatus, bool]:
    return accept(farm, parse_job_spec(body, max_prompts=farm.settings.max_prompts), idempotency_key=idempotency_key)


def accept(farm: Parts, spec: JobSpec, *, idempotency_key: str | None) -> tuple[JobStatus, bool]:
    """Put a job into the ledger; return it as it stands, and whether it is new.

    Raises Refused for what the catalog or the limits do not allow, QueueFull and LedgerDown.
    """
    settings = farm.settings
    row = farm.catalog.row(spec.model)
    job = expand(
        spec,
        row,
        job_id=new_job_id(),
        tenant=_TENANT,
        created_at=time.time(),
        drawn_seed=secrets.randbits(_DRAWN_SEED_BITS),
        max_prompts=settings.max_prompts,
        max_images=settings.max_images,
        controlnets=farm.catalog.controlnets_for(row),
        input_hosts=hosts_of(settings.input_hosts),
    )
    check_keys(farm, spec)
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


def _hint_workers(farm: Parts, model: str) -> None:
    try:
        feed(farm.ledger, farm.celery, [model])
    except Transient as error:
        log.warning("Workers were not told of new work: %s", error, extra={"action": "feed_failed", "model": model})


@router.get("", response_model=JobList, responses=documented(INVALID_REQUEST, LEDGER_DOWN))
def list_jobs(farm: Farm, query: Annotated[JobsQuery, Query()]) -> JobList:
    """List jobs, newest first. Follow `next` until it is null."""
    found: list[JobStatus] = []
    cursor, has_more = query.before, False
    page_size = query.limit + 1 if query.state is None else max(query.limit + 1, _SCAN_PAGE)
    for num_scanned, status in enumerate(_newest(farm.ledger, before=query.before, page_size=page_size)):
        if len(found) == query.limit or num_scanned == _MAX_SCANNED:
            has_more = True
            break
        cursor = status.header.id
        if query.state is None or query.state is status.state:
            found.append(status)
    following = {"before": cursor, "limit": query.limit} | ({"state": query.state.value} if query.state else {})
    return JobList(
        data=[Job.of(status) for status in found],
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


@router.get("/{job_id}", response_model=Job, responses=documented(UNKNOWN_JOB, LEDGER_DOWN))
def get_job(farm: Farm, job_id: JobId) -> Job:
    """Tell how far a job is."""
    return Job.of(farm.ledger.job(_known_form(job_id)))


@router.delete(
    "/{job_id}",
    response_model=Job,
    response_description="The job as it stands now: cancelled, or as it had ended before.",
    responses=documented(UNKNOWN_JOB, LEDGER_DOWN),
)
def cancel_job(farm: Farm, job_id: JobId) -> Job:
    """Cancel a job.

    What waits vanishes at once, what is being rendered leaves its batch at the next step, what is stored stays.
    Cancelling again, or a job that has ended, changes nothing.
    """
    return Job.of(farm.ledger.cancel(_known_form(job_id)))


@router.get(
    "/{job_id}/images", response_model=ImagePage, responses=documented(UNKNOWN_JOB, INVALID_REQUEST, LEDGER_DOWN)
)
def list_images(farm: Farm, job_id: JobId, query: Annotated[ImagesQuery, Query()]) -> ImagePage:
    """List a job's images in order, with a signed URL for each that is stored. Follow `next` until it is null."""
    header = farm.ledger.job(_known_form(job_id)).header
    images = farm.ledger.images(job_id, offset=query.offset, limit=query.limit)
    end = query.offset + len(images)
    following = urlencode({"offset": end, "limit": query.limit})
    return ImagePage(
        data=[_image(farm, job_id, status, header.output) for status in images],
        total=header.total,
        offset=query.offset,
        limit=query.limit,
        next=f"/v1/jobs/{job_id}/images?{following}" if images and end < header.total else None,
    )


@router.get(
    "/{job_id}/images/{index}",
    response_model=Image,
    responses=documented(UNKNOWN_JOB, UNKNOWN_IMAGE, INVALID_REQUEST, LEDGER_DOWN),
)
def get_image(farm: Farm, job_id: JobId, index: Annotated[int, Path(ge=0, le=_MAX_OFFSET)]) -> Image:
    """Tell where one image of a job is."""
    header = farm.ledger.job(_known_form(job_id)).header
    return _image(farm, job_id, farm.ledger.image(job_id, index), header.output)


def _image(farm: Parts, job_id: str, status: ImageStatus, output: Output) -> Image:
    if status.state is not UnitState.STORED:
        return Image.of(status)
    signed, index = farm.store.presigned_url, status.index
    key = object_key(job_id, index, output.format)
    thumbnail = None if output.thumbnail_px is None else thumbnail_key(job_id, index)
    upscaled = None if output.upscale is None else upscaled_key(job_id, index, output.format, output.upscale)
    return Image.of(
        status,
        key=key,
        url=signed(key),
        thumbnail_url=None if thumbnail is None else signed(thumbnail),
        upscaled_url=None if upscaled is None else signed(upscaled),
    )


def _known_form(job_id: str) -> str:
    """Return the id; raises UnknownJob for what can be no job's id, so that it never becomes part of a key."""
    if JOB_ID_FORM.fullmatch(job_id):
        return job_id
    raise UnknownJob(f"there is no job {job_id[:64]!r}", field="id", value=job_id)
