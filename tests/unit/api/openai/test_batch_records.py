"""How a batch stands, from its record and its job."""

from dataclasses import replace

import pytest

from api.openai.batch_lines import BatchError
from api.openai.batch_records import BatchRecord, Outcome, batch_as_it_stands, batch_of_job, job_of_batch
from expanded_jobs import expanded_job
from farm.jobs import Counts
from farm.ledger import JobStatus

CREATED_AT = 1_795_000_000.5
NOW = CREATED_AT + 60
RECORD = BatchRecord(
    id="batch_01m823mngen94670qtep",
    created_at=CREATED_AT,
    endpoint="/v1/images/generations",
    input_file_id="file-01m823mngen94670qtep",
    completion_window="24h",
    metadata={"a": "b"},
    model="scenes",
    total=4,
)
OUTCOME = Outcome(
    job_finished_at=NOW,
    is_cancelled=False,
    completed=3,
    failed=1,
    output_stamp="0" * 20,
    error_stamp=None,
    written_at=NOW + 1,
)


def job(*, queued=0, rendering=0, stored=0, failed=0, cancelled=0, finished_at=None):
    """Return a ledger job with these counts."""
    total = queued + rendering + stored + failed + cancelled
    return JobStatus(
        header=replace(expanded_job(num_images_per_prompt=total).header),
        counts=Counts(total, queued, rendering, stored, failed, cancelled),
        cancelled=bool(cancelled),
        started_at=None,
        finished_at=finished_at,
        gpu_s=0.0,
        retries=0,
        images_per_s=None,
        eta_s=None,
    )


@pytest.mark.parametrize(
    ("record", "status", "told", "counts", "times"),
    [
        ({}, None, "validating", (0, 0), set()),
        ({"created_at": NOW - 3600}, None, "failed", (0, 0), {"failed_at"}),
        ({"errors": [BatchError(code="c", message="m")]}, None, "failed", (0, 0), {"failed_at"}),
        ({}, job(queued=4), "in_progress", (0, 0), {"in_progress_at"}),
        ({}, job(queued=1, rendering=1, stored=1, failed=1), "in_progress", (1, 1), {"in_progress_at"}),
        ({}, job(stored=3, failed=1, finished_at=NOW), "finalizing", (3, 1), {"in_progress_at", "finalizing_at"}),
        ({}, job(stored=1, cancelled=3, finished_at=NOW), "cancelling", (1, 0), {"in_progress_at", "cancelling_at"}),
        (
            {"outcome": OUTCOME},
            None,
            "completed",
            (3, 1),
            {"in_progress_at", "finalizing_at", "completed_at"},
        ),
        (
            {"outcome": OUTCOME.model_copy(update={"is_cancelled": True})},
            None,
            "cancelled",
            (3, 1),
            {"in_progress_at", "cancelling_at", "cancelled_at"},
        ),
    ],
)
def test_each_state_follows_from_record_and_job(record, status, told, counts, times):
    """With the lines that are done, and the moments that have been."""
    batch = batch_as_it_stands(RECORD.model_copy(update=record), status, now=NOW)
    assert batch.status == told
    assert (batch.request_counts.completed, batch.request_counts.failed, batch.request_counts.total) == (*counts, 4)
    assert {name for name, value in batch if name.endswith("_at") and value is not None} == times | {"created_at"}
    assert (batch.errors is not None) == (told == "failed")


def test_lines_of_several_images_are_never_counted_too_soon():
    """A line is not done because half of its images are."""
    batch = batch_as_it_stands(RECORD, job(queued=5, stored=3), now=NOW)
    assert batch.request_counts.completed == 1


def test_a_finished_batch_names_its_files():
    """Only those that there are."""
    batch = batch_as_it_stands(RECORD.model_copy(update={"outcome": OUTCOME}), None, now=NOW)
    assert (batch.output_file_id, batch.error_file_id) == ("file-" + "0" * 20, None)


def test_a_batch_and_its_job_find_each_other():
    """Their ids have the same end."""
    assert job_of_batch(RECORD.id) == "job_01m823mngen94670qtep"
    assert batch_of_job(job_of_batch(RECORD.id)) == RECORD.id
