"""`/v1/batches`: many image requests in a file, as one job of bulk priority underneath."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.background import BackgroundTasks

from api.bodies import parse_object, read_body
from api.guard.callers import Asker, Caller
from api.jobs import IdempotencyKey, accept
from api.links import base_of
from api.one_job import hint_workers
from api.openai.batch_lines import BatchError, Noted, parse_batch
from api.openai.batch_outputs import CHORE
from api.openai.batch_records import (
    FINAL,
    PREFIX,
    Batch,
    BatchList,
    BatchRecord,
    batch_as_it_stands,
    batch_of_job,
    job_of_batch,
)
from api.openai.errors import NO_SUCH_BATCH, NO_SUCH_FILE, documented, error_of
from api.openai.files import JSON_LINES, Files
from api.openai.images import row_of
from api.openai.requests import in_openai_words
from api.openai.shelves import Shelf
from api.parts import Farm, Parts
from api.problems import (
    BODY_TOO_LARGE,
    IDEMPOTENCY_CONFLICT,
    INVALID_REQUEST,
    LEDGER_DOWN,
    MALFORMED_JSON,
    QUEUE_FULL,
    STORAGE_DOWN,
    UNSUPPORTED_MEDIA_TYPE,
    HttpProblem,
    problem_of,
)
from farm.errors import IdempotencyConflict, QueueFull, Refused, UnknownJob
from farm.expand import expand
from farm.filing import lines_key, new_stamp, stamp_in
from farm.ledger import JobStatus
from farm.requests import JobSpec
from farm.storage import NoSuchObject

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/batches", tags=["openai"])

_MAX_BODY_BYTES: Final = 64 * 1024

BatchId = Annotated[str, Path(description="The `id` of a batch.", examples=["batch_01m823mngen94670qtep"])]


class OutputExpiry(BaseModel):
    """How long output files are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class BatchRequest(BaseModel):
    """A batch to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_file_id: str = Field(max_length=64, description="A file of purpose `batch`.")
    endpoint: Literal["/v1/images/generations"]
    completion_window: Literal["24h"] = Field(description="Taken as said; a batch that takes longer is finished.")
    metadata: (
        dict[
            Annotated[str, StringConstraints(max_length=64)],
            Annotated[str, StringConstraints(max_length=512)],
        ]
        | None
    ) = Field(None, max_length=16, description="Yours; returned as it is.")
    output_expires_after: OutputExpiry | None = None


class BatchesQuery(BaseModel):
    """Which batches to list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=64, description="Only batches older than this id.")
    limit: int = Field(20, ge=1, le=100, description="Batches on a page.")


@router.post(
    "",
    response_model=Batch,
    response_description="In progress; or failed, with the lines that are wrong.",
    responses=documented(
        MALFORMED_JSON,
        BODY_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        INVALID_REQUEST,
        NO_SUCH_FILE,
        IDEMPOTENCY_CONFLICT,
        QUEUE_FULL,
        LEDGER_DOWN,
        STORAGE_DOWN,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}},
        }
    },
)
async def create_batch(
    request: Request, farm: Farm, caller: Asker, background: BackgroundTasks, idempotency_key: IdempotencyKey = None
) -> Batch:
    """Begin a batch: look at every line of its file, and open one job of all of them.

    A file with a line that is wrong makes a batch that has `failed`, whose `errors` name the lines.
    """
    body = await read_body(request, max_bytes=_MAX_BODY_BYTES)
    asked = parse_object(body, BatchRequest)
    key = None if idempotency_key is None else f"openai-batch:{idempotency_key}"
    batch, model = await run_in_threadpool(_create, farm, base_of(request, farm) or "", caller, asked, key)
    if model is not None:
        background.add_task(hint_workers, farm, model)
    return batch


def _create(farm: Parts, base: str, caller: Caller, asked: BatchRequest, key: str | None) -> tuple[Batch, str | None]:
    """Return the batch, and its model if that has work now."""
    now = time.time()
    files = Files(farm.store, caller.tenant)
    if files.get(asked.input_file_id).purpose != "batch":
        raise Refused(
            "is a file of another purpose", field="input_file_id", value=asked.input_file_id, choices=["batch"]
        )
    parsed = parse_batch(
        files.pieces(asked.input_file_id),
        row_of=partial(row_of, farm, is_urgent=False),
        check=partial(_check, farm),
        max_lines=farm.settings.max_prompts,
    )
    stamp = new_stamp(now)
    record = BatchRecord(
        id=PREFIX + stamp,
        created_at=now,
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        metadata=asked.metadata,
        model=None if parsed.spec is None else parsed.spec.model,
        total=len(parsed.notes),
        output_expires_after_s=None if asked.output_expires_after is None else asked.output_expires_after.seconds,
        base=base,
        errors=parsed.errors,
    )
    shelf = shelf_of(farm, caller.tenant)
    if parsed.spec is None:
        shelf.put(stamp, record)
        return batch_as_it_stands(record, None, now=now), None
    farm.store.put_stream(lines_key(caller.tenant, stamp), _noted(parsed.notes), JSON_LINES)
    shelf.put(stamp, record)
    return _open(farm, caller, record, parsed.spec, key)


def _open(farm: Parts, caller: Caller, record: BatchRecord, spec: JobSpec, key: str | None) -> tuple[Batch, str | None]:
    """Open the job of a batch whose record is there. Should this process die now, the record tells that it failed."""
    stamp, shelf = record.id.removeprefix(PREFIX), shelf_of(farm, caller.tenant)
    job_id = job_of_batch(record.id)
    try:
        job, is_new = accept(farm, spec, tenant=caller.tenant, idempotency_key=key, job_id=job_id, afterwards=(CHORE,))
    except (QueueFull, IdempotencyConflict):
        _forget(farm, caller, stamp)
        raise
    except Refused as error:
        told = error_of(problem_of(in_openai_words(error)))
        errors = [BatchError(code=told.code or "invalid_value", message=told.message, param=told.param)]
        record = record.model_copy(update={"errors": errors})
        shelf.put(stamp, record)
        return batch_as_it_stands(record, None, now=time.time()), None
    if job.header.id != job_id:
        _forget(farm, caller, stamp)
        return read_batch(farm, caller, batch_of_job(job.header.id)), None
    log.info("Began %s", record.id, extra={"action": "batch_begun", "job": job_id, "lines": record.total})
    return batch_as_it_stands(record, job, now=time.time()), spec.model if is_new else None


def _forget(farm: Parts, caller: Caller, stamp: str) -> None:
    """Delete what is kept of a batch that is none after all."""
    shelf_of(farm, caller.tenant).delete(stamp)
    farm.store.delete_many([lines_key(caller.tenant, stamp)])


def _check(farm: Parts, spec: JobSpec) -> None:
    """Raise Refused for a line that the model does not render."""
    row = farm.catalog.row(spec.model)
    expand(spec, row, job_id="", tenant="", created_at=0.0, drawn_seed=0, max_prompts=1, max_images=10)


def _noted(notes: list[Noted]) -> Iterator[bytes]:
    for note in notes:
        yield json.dumps(note, separators=(",", ":")).encode() + b"\n"


def shelf_of(farm: Parts, tenant: str) -> Shelf[BatchRecord]:
    """Return where a tenant's batches are."""
    return Shelf(farm.store, tenant, "batches", BatchRecord)


def read_batch(farm: Parts, caller: Caller, batch_id: str) -> Batch:
    """Return a batch as it stands; raises HttpProblem when it is none of the caller's."""
    return batch_as_it_stands(*_found(farm, caller, batch_id), now=time.time())


def _found(farm: Parts, caller: Caller, batch_id: str) -> tuple[BatchRecord, JobStatus | None]:
    stamp = _stamp_of(batch_id)
    try:
        record = shelf_of(farm, caller.tenant).get(stamp)
    except NoSuchObject as error:
        raise _unknown(batch_id) from error
    return record, _job_of(farm, record)


def _job_of(farm: Parts, record: BatchRecord) -> JobStatus | None:
    if record.is_settled:
        return None
    try:
        return farm.ledger.job(job_of_batch(record.id))
    except UnknownJob:
        return None


def _stamp_of(batch_id: str) -> str:
    stamp = stamp_in(batch_id, PREFIX)
    if stamp is None:
        raise _unknown(batch_id)
    return stamp


def _unknown(batch_id: str) -> HttpProblem:
    return HttpProblem(NO_SUCH_BATCH, f"there is no batch {batch_id[:64]!r}")


@router.get(
    "", response_model=BatchList, responses=documented(NO_SUCH_BATCH, INVALID_REQUEST, LEDGER_DOWN, STORAGE_DOWN)
)
def list_batches(farm: Farm, caller: Asker, query: Annotated[BatchesQuery, Query()]) -> BatchList:
    """List batches, newest first. While `has_more`, ask again with `after` the last one's id."""
    after = None if query.after is None else _stamp_of(query.after)
    records = list(islice(shelf_of(farm, caller.tenant).newest(after=after), query.limit + 1))
    now = time.time()
    data = [batch_as_it_stands(record, _job_of(farm, record), now=now) for record in records[: query.limit]]
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(records) > query.limit,
    )


@router.get(
    "/{batch_id}", response_model=Batch, responses=documented(NO_SUCH_BATCH, INVALID_REQUEST, LEDGER_DOWN, STORAGE_DOWN)
)
def get_batch(farm: Farm, caller: Asker, batch_id: BatchId) -> Batch:
    """Tell how a batch stands."""
    return read_batch(farm, caller, batch_id)


@router.post(
    "/{batch_id}/cancel",
    response_model=Batch,
    response_description="The batch as it stands now: cancelling, or cancelled.",
    responses=documented(NO_SUCH_BATCH, INVALID_REQUEST, LEDGER_DOWN, STORAGE_DOWN),
)
def cancel_batch(farm: Farm, caller: Asker, batch_id: BatchId) -> Batch:
    """Cancel a batch. What is rendered stays, and is told in its output file."""
    record, job = _found(farm, caller, batch_id)
    before = batch_as_it_stands(record, job, now=time.time())
    if before.status in ("cancelling", "cancelled"):
        return before
    if job is not None and before.status not in FINAL:
        job = farm.ledger.cancel(job.header.id)
    batch = batch_as_it_stands(record, job, now=time.time())
    if batch.status != "cancelling":
        raise Refused(f"is {batch.status}: there is nothing to cancel", field="batch_id", value=batch_id)
    return batch
