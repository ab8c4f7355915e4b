"""What a webhook says: its type, when that happened, and the job as GET /v1/jobs/{id} answers it. Pure."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Final

from pydantic import BaseModel, Field

from api.schemas import Job, when
from api.webhooks.sending import Message
from farm.ledger import JobStatus

PING: Final = "farm.ping"
"""The type of what `POST /v1/webhooks/test` sends."""


class JobEvent(BaseModel):
    """The body of a webhook about a job."""

    type: str = Field(description="What happened, such as `job.done`.")
    timestamp: datetime = Field(description="When it happened; not when this try was made.")
    data: Job = Field(description="The job as it stands when this try is made.")


class Ping(BaseModel):
    """The body of a test."""

    type: str = PING
    timestamp: datetime
    data: dict[str, str] = Field(default_factory=dict)


def message_id(job_id: str, event: str, count: int) -> str:
    """Return the id of the message about the `count`-th such event of a job: the same at every try, whoever makes it.

    A job fails twice when its failed images were retried in between: two messages, and no duplicates.
    """
    # No dots: they separate what is signed.
    return f"msg_{job_id.removeprefix('job_')}_{event.removeprefix('job.')}_{count}"


def message_of(
    status: JobStatus, event: str, count: int, *, now_s: float, gpu_hour_price: float | None = None
) -> Message:
    """Return the message about an event of a job; `now_s` (Unix time) stands in where the job does not tell when."""
    happened = status.started_at if event == "job.started" else status.finished_at
    body = JobEvent(type=event, timestamp=when(happened or now_s), data=Job.of(status, gpu_hour_price))
    return Message(message_id(status.header.id, event, count), body.model_dump_json().encode())


def ping(*, now_s: float) -> Message:
    """Return a message that says nothing, with an id of its own."""
    return Message(f"msg_ping_{secrets.token_hex(10)}", Ping(timestamp=when(now_s)).model_dump_json().encode())
