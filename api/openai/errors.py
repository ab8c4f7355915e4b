"""Errors as OpenAI tells them: `{"error": {"message", "type", "param", "code"}}`, with the statuses its SDKs know.

Which errors there are is api/problems.py's business; here is only how they look on OpenAI's paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from api.dialects import Render
from api.field_errors import FieldError
from api.problems import IDEMPOTENCY_CONFLICT, INVALID_REQUEST, UNKNOWN_MODEL, HttpProblem, Kind, document_of
from api.rendering import NO_WORKER, RENDER_FAILED, TOOK_TOO_LONG

NO_SUCH_FILE: Final = Kind("no-such-file", 404, "There is no such file")
NO_SUCH_BATCH: Final = Kind("no-such-batch", 404, "There is no such batch")

_STATUSES: Final = {INVALID_REQUEST: 400, IDEMPOTENCY_CONFLICT: 400, UNKNOWN_MODEL: 404, NO_WORKER: 429}
"""Where OpenAI's status is another than ours: its SDKs raise BadRequestError for 400, and come back after 429."""

NOT_AGAIN: Final = {"X-Should-Retry": "false"}
"""Headers by which its SDKs leave off what they do by themselves after 409, 429 and 5xx: asking again."""
_FINAL: Final = frozenset({RENDER_FAILED, TOOK_TOO_LONG})  # asking again would render again, and fare no better

_CODES: Final = {
    "unknown-model": "model_not_found",
    "unauthenticated": "invalid_api_key",
    "queue-full": "rate_limit_exceeded",
    "too-many-requests": "rate_limit_exceeded",
    "malformed-json": "invalid_json",
}
_CODES_OF_MESSAGES: Final = {"is required": "missing_required_parameter", "is not a known field": "unknown_parameter"}
"""How api.field_errors begins to say it."""

_RATE_LIMITED: Final = 429
_SERVER_ERRORS: Final = 500


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str = Field(description="For people; names the parameter, the value and what would do.")
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`.")
    param: str | None = Field(description="The parameter at fault, if it is one.")
    code: str | None = Field(description="For programs.")


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorBody


def status_of(kind: Kind) -> int:
    """Return the HTTP status that a kind of problem has on OpenAI's paths."""
    return _STATUSES.get(kind, kind.status)


def error_of(problem: HttpProblem) -> ErrorBody:
    """Return a problem in OpenAI's words."""
    status = status_of(problem.kind)
    first = problem.errors[0] if problem.errors else None
    message = problem.detail or problem.kind.title
    if first is not None and first.choices:
        message += f"; choices: {', '.join(first.choices)}"
    kind = "invalid_request_error"
    if status >= _SERVER_ERRORS:
        kind = "server_error"
    elif status == _RATE_LIMITED:
        kind = "rate_limit_error"
    return ErrorBody(message=message, type=kind, param=None if first is None else first.field, code=code_of(problem))


def code_of(problem: HttpProblem) -> str:
    """Return OpenAI's code of a problem, or its slug in that form."""
    if problem.kind is INVALID_REQUEST:
        return code_of_field(problem.errors[0]) if problem.errors else "invalid_value"
    return _CODES.get(problem.kind.slug, problem.kind.slug.replace("-", "_"))


def code_of_field(error: FieldError) -> str:
    """Return OpenAI's code of one thing wrong with a request."""
    return next((code for said, code in _CODES_OF_MESSAGES.items() if error.message.startswith(said)), "invalid_value")


def render(_request: Request, problem: HttpProblem) -> JSONResponse:
    """Answer a problem in OpenAI's shape."""
    body = OpenAIError(error=error_of(problem))
    headers = problem.headers | (NOT_AGAIN if problem.kind in _FINAL else {})
    return JSONResponse(body.model_dump(), status_code=status_of(problem.kind), headers=headers)


def render_both(request: Request, problem: HttpProblem) -> JSONResponse:
    """Answer a problem document that has OpenAI's `error` beside: for paths that both APIs share."""
    answer = document_of(request, problem)
    document = {**json.loads(bytes(answer.body)), "error": error_of(problem).model_dump()}
    headers = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}
    return JSONResponse(document, status_code=answer.status_code, headers=headers, media_type=answer.media_type)


DIALECTS: Final[Mapping[str, Render]] = MappingProxyType(
    {"/v1/images": render, "/v1/files": render, "/v1/batches": render, "/v1/models": render_both}
)
"""Which paths tell errors so, for `problems.install`."""


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of these problems in OpenAI's shape, for an endpoint's `responses`."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        described = by_status.setdefault(status_of(kind), {"description": "", "model": OpenAIError})
        described["description"] += ("; " if described["description"] else "") + kind.title
    return by_status
