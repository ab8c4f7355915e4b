"""`POST /v1/images/generations`: images from a prompt, while the client waits or as a stream of events."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from api.bodies import parse_object, read_body
from api.field_errors import nul_in
from api.guard.callers import Asker, Caller
from api.jobs import IdempotencyKey
from api.links import Links, links_of
from api.openai.answers import ImageData, ImagesAnswer, as_url, encoded, images_answer
from api.openai.errors import NOT_AGAIN, documented
from api.openai.requests import GenerationRequest, ImageRequest, in_openai_words, job_of
from api.openai.streaming import Events, events_of
from api.parts import Farm, Parts
from api.problems import (
    BODY_TOO_LARGE,
    IDEMPOTENCY_CONFLICT,
    INVALID_REQUEST,
    JOB_CANCELLED,
    LEDGER_DOWN,
    MALFORMED_JSON,
    QUEUE_FULL,
    STORAGE_DOWN,
    UNKNOWN_MODEL,
    UNSUPPORTED_MEDIA_TYPE,
    HttpProblem,
)
from api.rendering import (
    NO_WORKER,
    RENDER_FAILED,
    TOOK_TOO_LONG,
    Finished,
    check_rendered,
    check_served,
    fetch,
    render,
)
from farm.catalog import ModelRow
from farm.errors import Refused, StorageDown
from farm.requests import JobSpec

router = APIRouter(prefix="/v1/images", tags=["openai"])

_MAX_BODY_BYTES: Final = 256 * 1024  # two prompts of 8,000 characters, every one escaped
_THEIR_MODELS: Final = re.compile(r"(gpt-image|dall-e|chatgpt-image)[a-z0-9.-]*")

ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {"X-Request-Id": {"description": "The job that rendered it.", "schema": {"type": "string"}}},
    },
    **documented(
        BODY_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        INVALID_REQUEST,
        UNKNOWN_MODEL,
        IDEMPOTENCY_CONFLICT,
        JOB_CANCELLED,
        QUEUE_FULL,
        NO_WORKER,
        RENDER_FAILED,
        TOOK_TOO_LONG,
        LEDGER_DOWN,
        STORAGE_DOWN,
    ),
}
"""What an endpoint may answer that renders."""


@router.post(
    "/generations",
    response_model=ImagesAnswer,
    response_description="The images; with `stream` a stream of events that ends with each of them.",
    responses={**ANSWERS, 400: documented(MALFORMED_JSON, INVALID_REQUEST, IDEMPOTENCY_CONFLICT)[400]},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": GenerationRequest.model_json_schema()}},
        }
    },
)
async def generate_images(
    request: Request, farm: Farm, caller: Asker, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make images from a prompt, and wait for them.

    A client that hangs up cancels them. Asked again with the same `Idempotency-Key` the same images are answered, not
    made anew.
    """
    body = await read_body(request, max_bytes=_MAX_BODY_BYTES)
    asked = parse_object(body, GenerationRequest)
    if b"\\u0000" in body and (at := nul_in(asked.model_dump())) is not None:
        raise Refused("no image file can carry a NUL character", field=at)
    asked.check_stream()
    row = await run_in_threadpool(row_of, farm, asked.model)
    spec = job_of(asked, row)
    events = "image_generation"
    return await answer(farm, caller, request, asked, spec, idempotency_key=idempotency_key, events=events)


def row_of(farm: Parts, name: str | None, *, is_urgent: bool = True) -> ModelRow:
    """Return the model that is meant; raises UnknownModel, and HttpProblem when no worker serves what is urgent.

    A request that names none gets FARM_OPENAI_MODEL, and so does one that names OpenAI's own. Without that setting it
    is the first of the catalog that workers serve, and OpenAI's are unknown.
    """
    default = farm.settings.openai_model
    if name is None and default is None:
        served = {model for worker in farm.ledger.workers() for model in worker.models}
        default = next((row.name for row in farm.catalog if row.name in served), None)
        if default is None:
            raise HttpProblem(NO_WORKER, "no worker is alive", headers={"Retry-After": "10"})
    is_theirs = name is None or (default is not None and _THEIR_MODELS.fullmatch(name) is not None)
    row = farm.catalog.row(str(default if is_theirs and name not in farm.catalog else name))
    if is_urgent:
        check_served(farm, row.name)
    return row


async def answer(
    farm: Parts,
    caller: Caller,
    request: Request,
    asked: ImageRequest,
    spec: JobSpec,
    *,
    idempotency_key: str | None,
    events: str,
) -> Response:
    """Render a job of one prompt and answer with its images, in the way that was asked for.

    `events` begins the types of a stream's events. Raises as `api.rendering.render` does, and HttpProblem for an image
    that failed.
    """
    # A name of its own, so that it never meets a key of POST /v1/jobs.
    key = None if idempotency_key is None else f"openai:{idempotency_key}"
    limit_s = farm.settings.openai_wait_s
    try:
        if asked.stream:
            stream = events_of(farm, caller, asked, spec, events=events, limit_s=limit_s, idempotency_key=key)
            job_id = (
                await anext(stream)
            ).decode()  # what refuses the job has a status of its own, before there are events
            return Events(stream, headers={"X-Request-Id": job_id})
        finished = await render(farm, caller, spec, request, limit_s=limit_s, idempotency_key=key)
    except Refused as error:
        raise in_openai_words(error) from error
    check_rendered(finished)
    if not finished.stored:
        raise HttpProblem(JOB_CANCELLED, f"{finished.status.header.id} was cancelled", headers=NOT_AGAIN)
    size = (spec.prompts[0].width, spec.prompts[0].height)  # type: ignore[union-attr]
    data = await _shown(farm, await links_of(request), finished, asked, can_retry=key is not None)
    body = images_answer(finished.status.header, finished.stored, data, size=size)  # type: ignore[arg-type]
    # In a thread: ten large images in base64 take a moment to be written.
    content = await run_in_threadpool(body.model_dump_json)
    headers = {"X-Request-Id": finished.status.header.id}
    return Response(content, media_type="application/json", headers=headers)


async def _shown(
    farm: Parts, links: Links, finished: Finished, asked: ImageRequest, *, can_retry: bool
) -> list[ImageData]:
    if asked.answers_urls:
        return [as_url(links, finished.status.header, image) for image in finished.stored]
    try:
        files = await fetch(farm, finished)
    except StorageDown as error:
        job_id = finished.status.header.id
        detail = f"the images of {job_id} are rendered and stored, but the store does not answer now"
        headers = {"Retry-After": "5"} if can_retry else NOT_AGAIN  # which would render them again
        raise HttpProblem(STORAGE_DOWN, detail, headers=headers) from error
    return [encoded(image, data) for image, data in zip(finished.stored, files, strict=True)]
