"""The one place where errors become HTTP answers: which status each has, and the document it is told in (RFC 9457)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from api.dialects import Render, dialect_of
from api.field_errors import MAX_ERRORS, FieldError, cut, echo, translate
from farm.errors import (
    FarmError,
    IdempotencyConflict,
    JobCancelled,
    LedgerDown,
    QueueFull,
    Refused,
    StorageDown,
    UnknownJob,
    UnknownModel,
)

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
_METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_RETRY_AFTER_S: Final = 5
_MAX_TEXT_CHARS: Final = 300
_MAX_EXPLAINED: Final = 2_000


class Problem(BaseModel):
    """What went wrong (RFC 9457). `type` is stable and meant for programs; `detail` is meant for people."""

    model_config = ConfigDict(
        extra="allow",  # RFC 9457: a type may have members of its own, such as readiness' `checks`
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:diffusion-farm:problem:invalid-request",
                    "title": "The request is not valid",
                    "status": 422,
                    "detail": "prompts.3.width: sd15 renders multiples of 8 pixels",
                    "instance": "/v1/jobs",
                    "errors": [
                        {
                            "field": "prompts.3.width",
                            "value": 513,
                            "message": "sd15 renders multiples of 8 pixels",
                            "choices": ["512", "520"],
                        }
                    ],
                }
            ]
        },
    )

    type: str = Field(description="Identifies the kind of problem; the table is in docs/api.md.")
    title: str = Field(description="The kind of problem in words; the same for every occurrence.")
    status: int
    detail: str = Field(description="This occurrence in words.")
    instance: str = Field(description="Path of the request.")
    errors: list[FieldError] = Field(default=[], description=f"What is wrong where; at most {MAX_ERRORS}.")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: the end of its `type`, its status and its title."""

    slug: str
    status: int
    title: str


INVALID_REQUEST: Final = Kind("invalid-request", 422, "The request is not valid")
MALFORMED_JSON: Final = Kind("malformed-json", 400, "The body is not JSON")
MALFORMED_BODY: Final = Kind("malformed-body", 400, "The body is not what its type says")
BODY_TOO_LARGE: Final = Kind("body-too-large", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE: Final = Kind("unsupported-media-type", 415, "The body is not of a type that is read here")
UNAUTHENTICATED: Final = Kind("unauthenticated", 401, "An API key is needed")
FORBIDDEN: Final = Kind("forbidden", 403, "This is not for whoever asks")
CROSS_SITE: Final = Kind("cross-site", 403, "Another site's page may not use the farm")
UNKNOWN_JOB: Final = Kind("unknown-job", 404, "There is no such job")
UNKNOWN_IMAGE: Final = Kind("unknown-image", 404, "The job has no such image")
UNKNOWN_KEY: Final = Kind("unknown-key", 404, "There is no such key")
UNKNOWN_MODEL: Final = Kind("unknown-model", 422, "There is no such model")
MODEL_NOT_FOUND: Final = Kind("unknown-model", 404, "There is no such model")
NOT_FOUND: Final = Kind("not-found", 404, "There is nothing here")
METHOD_NOT_ALLOWED: Final = Kind("method-not-allowed", 405, "The method does not apply here")
JOB_EXPIRED: Final = Kind("job-expired", 410, "The job has expired")
NO_GRID: Final = Kind("no-grid", 404, "The job has no grid")
GRID_NOT_READY: Final = Kind("grid-not-ready", 409, "The grid is not made yet")
MANIFEST_NOT_READY: Final = Kind("manifest-not-ready", 409, "The manifest is not written yet")
JOB_CANCELLED: Final = Kind("job-cancelled", 409, "The job was cancelled")
IDEMPOTENCY_CONFLICT: Final = Kind("idempotency-conflict", 422, "The Idempotency-Key was used for another request")
QUEUE_FULL: Final = Kind("queue-full", 429, "The farm takes no more work for now")
TOO_MANY_REQUESTS: Final = Kind("too-many-requests", 429, "The key has sent too many requests")
LEDGER_DOWN: Final = Kind("ledger-down", 503, "The ledger does not answer")
STORAGE_DOWN: Final = Kind("storage-down", 503, "The image store does not answer")
NOT_READY: Final = Kind("not-ready", 503, "The API is not ready")
BROKEN: Final = Kind("internal-error", 500, "The API failed")

JOB_SPEC_PROBLEMS: Final = (
    MALFORMED_JSON,
    MALFORMED_BODY,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    INVALID_REQUEST,
    UNKNOWN_MODEL,
    LEDGER_DOWN,
)
"""What may be wrong with a body that asks for a job."""


class HttpProblem(Exception):
    """A problem that only the HTTP side knows of; endpoints raise it."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors or []
        self.headers = headers or {}
        self.members = members


def invalid(findings: ValidationError, *, document: object, known: list[str] | None = None) -> HttpProblem:
    """Return the problem of a body that does not fit its model; `known` are its fields if it is no job's."""
    found = findings.errors(include_url=False)
    # Half a million take seconds to explain, with the whole process waiting; nobody reads more than the first.
    errors = translate(found[:_MAX_EXPLAINED], document=document, known=known)
    return _from_field_errors(errors, is_all=len(found) <= _MAX_EXPLAINED)


def _from_field_errors(errors: list[FieldError], *, is_all: bool = True) -> HttpProblem:
    first = errors[0]
    detail = f"{first.field}: {first.message}"
    if len(errors) > 1:
        detail += f" (and {len(errors) - 1:,} {'' if is_all else 'or '}more)"
    return HttpProblem(INVALID_REQUEST, detail, errors=errors[:MAX_ERRORS])


def problem_of(error: FarmError) -> HttpProblem:
    """Return the problem that an error of the farm means. Every kind of FarmError has its line here."""
    match error:
        case UnknownJob():
            kind = UNKNOWN_IMAGE if error.field == "index" else UNKNOWN_JOB
        case UnknownModel():
            kind = UNKNOWN_MODEL
        case JobCancelled():
            kind = JOB_CANCELLED
        case IdempotencyConflict():
            kind = IDEMPOTENCY_CONFLICT
        case Refused():
            kind = INVALID_REQUEST
        case QueueFull():
            return HttpProblem(
                QUEUE_FULL, str(error), headers={"Retry-After": str(math.ceil(max(error.retry_after_s, 1)))}
            )
        case LedgerDown():
            detail = "nothing was lost, and rendering goes on; try again shortly"
            return HttpProblem(LEDGER_DOWN, detail, headers={"Retry-After": str(_RETRY_AFTER_S)})
        case StorageDown():
            return HttpProblem(STORAGE_DOWN, "try again shortly", headers={"Retry-After": str(_RETRY_AFTER_S)})
        case _:
            return HttpProblem(BROKEN, "the reason is in the API's log")
    message = cut(str(error), _MAX_TEXT_CHARS)  # the farm's messages quote what they were given
    item = FieldError(field=error.field, value=echo(error.value), message=message, choices=error.choices)
    return HttpProblem(kind, f"{error.field}: {message}" if error.field else message, errors=[item])


def answer_to(request: Request, error: HttpProblem | FarmError) -> JSONResponse:
    """Return the problem that an endpoint has raised as a response; what is our failure is logged."""
    problem = error if isinstance(error, HttpProblem) else problem_of(error)
    if isinstance(error, FarmError) and problem.kind.status >= BROKEN.status:
        log.warning("%s: %s", type(error).__name__, error, extra={"action": "request_failed"})
    return answer(request, problem)


def answer(request: Request, problem: HttpProblem) -> JSONResponse:
    """Return the problem as a response, in the words of the path's API."""
    render = dialect_of(request.url.path, request.app.state.dialects) or document_of
    return render(request, problem)


def document_of(request: Request, problem: HttpProblem) -> JSONResponse:
    """Return the problem as a problem document."""
    kind = problem.kind
    document = Problem(
        type=f"urn:diffusion-farm:problem:{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=problem.detail,
        instance=quote(request.url.path)[:_MAX_TEXT_CHARS],
        errors=problem.errors,
        **problem.members,
    )
    return JSONResponse(
        document.model_dump(mode="json"), status_code=kind.status, headers=problem.headers, media_type=MEDIA_TYPE
    )


def allowed_methods(request: Request) -> list[str]:
    """Return the methods that the request's path answers to; none for an unknown path."""
    scope = dict(request.scope)
    allowed = {
        method
        for method in _METHODS
        for route in request.app.router.routes
        if route.matches({**scope, "method": method})[0] == Match.FULL
    }
    return sorted(allowed | {"HEAD"} if "GET" in allowed else allowed)


async def _on_raised(request: Request, error: HttpProblem | FarmError) -> JSONResponse:
    return answer_to(request, error)


async def _on_request_validation(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer parameters of path, query or headers that do not fit."""
    return answer(request, _from_field_errors(translate(error.errors(), skip=1, known=_query_parameters(request))))


def _query_parameters(request: Request) -> list[str]:
    """Return the query parameters of the endpoint that serves the request."""
    path = request.app.openapi()["paths"][request.scope["route"].path_format]
    operation = path[request.method.lower()]
    return [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]


async def _on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """Answer what the router itself refuses: unknown paths and methods."""
    path = str(echo(request.url.path))
    if error.status_code == METHOD_NOT_ALLOWED.status:
        methods = allowed_methods(request)
        item = FieldError(field="method", value=request.method[:32], message="does not apply here", choices=methods)
        problem = HttpProblem(
            METHOD_NOT_ALLOWED,
            f"{path} answers to {', '.join(methods)}",
            errors=[item],
            headers={"Allow": ", ".join(methods)},
        )
    elif error.status_code == NOT_FOUND.status:
        item = FieldError(field="path", value=path, message="is no endpoint; they are listed at /openapi.json")
        problem = HttpProblem(NOT_FOUND, f"{path} {item.message}", errors=[item])
    else:
        problem = HttpProblem(
            Kind("http-error", error.status_code, "The request failed"),
            str(error.detail),
            headers=dict(error.headers or {}),
        )
    return answer(request, problem)


async def _on_disconnect(request: Request, _error: ClientDisconnect) -> JSONResponse:
    """Answer a client that left in the middle of its body: nobody reads this, but it is no failure of ours."""
    return answer(request, HttpProblem(MALFORMED_JSON, "the body ended early"))


async def _on_bug(request: Request, _error: Exception) -> JSONResponse:
    """Answer what nobody foresaw; the server logs it with its traceback."""
    response = answer(request, HttpProblem(BROKEN, "the reason is in the API's log"))
    response.headers["X-Content-Type-Options"] = "nosniff"  # this answer is made outside of all middleware
    return response


def install(app: FastAPI, *, dialects: Mapping[str, Render] | None = None) -> None:
    """Make every error of the application answer as a problem document, or in the dialect of its path.

    `dialects` are by prefix of the path (api.dialects).
    """
    app.state.dialects = dict(dialects or {})
    handlers: dict[type[Exception], Any] = {
        HttpProblem: _on_raised,
        FarmError: _on_raised,
        RequestValidationError: _on_request_validation,
        HTTPException: _on_http_exception,
        ClientDisconnect: _on_disconnect,
        Exception: _on_bug,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of these problems, for an endpoint's `responses`."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        described = by_status.setdefault(
            kind.status,
            {"description": "", "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
        )
        described["description"] += ("; " if described["description"] else "") + f"`{kind.slug}`: {kind.title}"
    return by_status
