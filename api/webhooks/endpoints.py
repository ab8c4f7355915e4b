"""Webhooks over HTTP: how far those of a job have got, and a test of a receiver."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final, Literal, get_args

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from api.bodies import parse_object, read_body
from api.guard.callers import OwnJob
from api.parts import Farm, Parts
from api.problems import (
    BODY_TOO_LARGE,
    INVALID_REQUEST,
    JOB_EXPIRED,
    LEDGER_DOWN,
    MALFORMED_JSON,
    UNKNOWN_JOB,
    UNSUPPORTED_MEDIA_TYPE,
    documented,
)
from api.schemas import when_if
from api.webhooks.deliveries import Delivery, State, deliveries_of
from api.webhooks.payload import JobEvent, ping
from api.webhooks.targets import MAX_URL_CHARS
from farm.requests import WebhookEvent

router = APIRouter(tags=["webhooks"])
messages = APIRouter(tags=["webhooks"])
"""What the farm sends, for the OpenAPI document; nothing answers here."""

_MAX_BODY_BYTES: Final = 16_384


class WebhookTest(BaseModel):
    """Where to send a test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(min_length=1, max_length=MAX_URL_CHARS, description="As `webhook.url` of a job.")


class WebhookTested(BaseModel):
    """What a receiver did with a test."""

    id: str = Field(description="The `webhook-id` that it was sent under.")
    delivered: bool = Field(description="Whether it answered 2xx.")
    status: int | None = Field(description="Its answer, if there was one.")
    error: str | None = Field(description="Why it is not delivered.")
    duration_s: float


class WebhookDelivery(BaseModel):
    """How far one event of a job has got."""

    event: str
    id: str | None = Field(description="Its `webhook-id`, the same at every try; null before the first.")
    state: State = Field(
        description=(
            "`waiting`: it has not happened, or nobody was told yet. `retrying`: failed, and is tried again. "
            "`delivered`. `gone`: the receiver answered 410, which ends it. `given_up`: the last try failed."
        )
    )
    tries: int
    status: int | None = Field(description="The receiver's last answer, if there was one.")
    error: str | None = Field(description="Why the last try failed.")
    tried_at: datetime | None
    next_try_at: datetime | None

    @classmethod
    def of(cls, event: str, delivery: Delivery) -> WebhookDelivery:
        """Return the ledger's record in this form."""
        return cls(
            event=event,
            id=delivery.id,
            state=delivery.state,
            tries=delivery.tries,
            status=delivery.status,
            error=delivery.error,
            tried_at=when_if(delivery.tried_at),
            next_try_at=when_if(delivery.next_try_at),
        )


class JobWebhooks(BaseModel):
    """The webhooks of a job, one for each event that it was to tell of; none for a job without."""

    object: Literal["list"] = "list"
    data: list[WebhookDelivery]


@router.get(
    "/v1/jobs/{job_id}/webhooks",  # noqa: FAST003  OwnJob takes it
    response_model=JobWebhooks,
    responses=documented(UNKNOWN_JOB, JOB_EXPIRED, INVALID_REQUEST, LEDGER_DOWN),
)
def list_job_webhooks(farm: Farm, job: OwnJob) -> JobWebhooks:
    """Tell how far the webhooks of a job have got."""
    job_id, webhook = job.header.id, job.header.webhook
    events = () if webhook is None else tuple(dict.fromkeys(webhook.events))
    found = deliveries_of(farm, job_id, events)
    return JobWebhooks(data=[WebhookDelivery.of(event, delivery) for event, delivery in found.items()])


@router.post(
    "/v1/webhooks/test",
    response_model=WebhookTested,
    responses=documented(MALFORMED_JSON, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/WebhookTest"}}},
        }
    },
)
async def test_webhook(request: Request, farm: Farm) -> WebhookTested:
    """Send a signed `farm.ping` to a receiver, once, and tell what came of it.

    Answers 200 whatever the receiver does; 422 when the URL is none that webhooks may go to.
    """
    body = await read_body(request, max_bytes=_MAX_BODY_BYTES)
    url = parse_object(body, WebhookTest).url
    farm.webhooks.check(url, field="url")
    return await to_thread.run_sync(_send_ping, farm, url, limiter=farm.testers)


def _receive(body: JobEvent) -> None:
    """Answer 2xx within 15 seconds; anything else, and the same message comes again. See docs/webhooks.md."""


for _event in get_args(WebhookEvent):
    messages.add_api_route(
        _event, _receive, methods=["POST"], name=_event, operation_id=_event, status_code=204, summary=f"Tell {_event}"
    )


def _send_ping(farm: Parts, url: str) -> WebhookTested:
    message = ping(now_s=time.time())
    started = time.monotonic()
    outcome = farm.webhooks.send(url, message)
    return WebhookTested(
        id=message.id,
        delivered=outcome.is_delivered,
        status=outcome.status,
        error=outcome.error,
        duration_s=round(time.monotonic() - started, 3),
    )
