"""What a batch is: the record of it in S3, and how it stands, which follows from the record and its ledger job.

The record is written before the job is opened and names it by its id; once more when the output files are there. In
between the ledger is the truth. A process that dies leaves a record without a job, which is told as failed, or a job
whose end brings a chore (batch_outputs.py): nothing is lost, and nothing done twice.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, Field

from api.openai.batch_lines import BatchError
from api.openai.files import PREFIX as FILE_PREFIX
from farm.filing import JOB_PREFIX
from farm.jobs import JobState
from farm.ledger import JobStatus

PREFIX: Final = "batch_"

_BEGINS_WITHIN_S: Final = 300.0
"""After so long without a job there will be none: whoever was to open it has died."""

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
FINAL: Final = frozenset({"failed", "completed", "cancelled"})


def job_of_batch(batch_id: str) -> str:
    """Return the id of a batch's job: they share their stamp."""
    return JOB_PREFIX + batch_id.removeprefix(PREFIX)


def batch_of_job(job_id: str) -> str:
    """Return the id of the batch that a job is."""
    return PREFIX + job_id.removeprefix(JOB_PREFIX)


class Outcome(BaseModel):
    """What became of a batch, when its files are written."""

    job_finished_at: float  # of which end of its job: failed images may have been tried again since
    is_cancelled: bool
    completed: int  # lines
    failed: int
    output_stamp: str | None
    error_stamp: str | None
    written_at: float


class BatchRecord(BaseModel):
    """What is kept of a batch."""

    id: str
    created_at: float
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    model: str | None
    total: int  # lines
    output_expires_after_s: int | None = None
    base: str = ""  # the API's address as whoever began it knows it, for links that lead through it
    errors: list[BatchError] = []
    outcome: Outcome | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the record alone tells how the batch stands."""
        return bool(self.errors) or self.outcome is not None


class BatchErrors(BaseModel):
    """What keeps a batch from being begun."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Lines by what became of them. While a batch runs these are estimates if lines have several images."""

    total: int
    completed: int
    failed: int


class Batch(BaseModel):
    """A batch as it stands. Times are Unix times."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = Field(None, description="The model that renders it.")
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = Field(description="JSON Lines: the lines all of whose images are there.")
    error_file_id: str | None = Field(description="JSON Lines: the others.")
    created_at: int
    in_progress_at: int | None
    expires_at: int | None = Field(None, description="Always null: the farm finishes what it took on.")
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None = None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


def batch_as_it_stands(record: BatchRecord, job: JobStatus | None, *, now: float) -> Batch:
    """Return a batch; `job` is its ledger job, None where the ledger has none, or the record alone tells."""
    status = _status_of(record, job, now)
    outcome = record.outcome
    is_cancelled = status in ("cancelling", "cancelled")
    finished_at = outcome.job_finished_at if outcome else None if job is None else job.finished_at
    begun_at = None if status in ("validating", "failed") else record.created_at
    errors = record.errors
    if status == "failed" and not errors:
        errors = [BatchError(code="not_begun", message="the farm stopped before the batch was begun: create it again")]
    return Batch(
        id=record.id,
        endpoint=record.endpoint,
        model=record.model,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=record.input_file_id,
        completion_window=record.completion_window,
        status=status,
        output_file_id=None if outcome is None else _file_id(outcome.output_stamp),
        error_file_id=None if outcome is None else _file_id(outcome.error_stamp),
        created_at=int(record.created_at),
        in_progress_at=_whole(begun_at),
        finalizing_at=_whole(finished_at) if not is_cancelled else None,
        completed_at=int(outcome.written_at) if outcome and status == "completed" else None,
        failed_at=int(record.created_at) if status == "failed" else None,
        cancelling_at=_whole(finished_at) if is_cancelled else None,
        cancelled_at=int(outcome.written_at) if outcome and status == "cancelled" else None,
        request_counts=_counts_of(record, job),
        metadata=record.metadata,
    )


def _status_of(record: BatchRecord, job: JobStatus | None, now: float) -> Status:
    if record.errors:
        return "failed"
    if record.outcome is not None:
        return "cancelled" if record.outcome.is_cancelled else "completed"
    if job is None:
        return "validating" if now - record.created_at < _BEGINS_WITHIN_S else "failed"
    if job.state is JobState.CANCELLED:
        return "cancelling"
    return "finalizing" if job.state.is_final else "in_progress"


def _counts_of(record: BatchRecord, job: JobStatus | None) -> RequestCounts:
    if record.outcome is not None:
        outcome = record.outcome
        return RequestCounts(total=record.total, completed=outcome.completed, failed=outcome.failed)
    if job is None:
        return RequestCounts(total=record.total, completed=0, failed=0)
    counts = job.counts
    # Lines of one image each, as most are: exactly so. Of lines with several: never too many.
    completed = counts.stored * record.total // counts.total
    return RequestCounts(total=record.total, completed=completed, failed=min(counts.failed, record.total - completed))


def _file_id(stamp: str | None) -> str | None:
    return None if stamp is None else FILE_PREFIX + stamp


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)
