"""Errors as A1111 tells them: `{"error", "detail", "body", "errors"}`, the sentence in `detail`.

Which errors there are is api/problems.py's business; here is only how they look on A1111's paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from api.dialects import Render
from api.problems import (
    BODY_TOO_LARGE,
    FORBIDDEN,
    INVALID_REQUEST,
    LEDGER_DOWN,
    MALFORMED_JSON,
    QUEUE_FULL,
    STORAGE_DOWN,
    UNKNOWN_MODEL,
    UNSUPPORTED_MEDIA_TYPE,
    HttpProblem,
    Kind,
)
from api.rendering import NO_WORKER, RENDER_FAILED, TOOK_TOO_LONG

READING: Final = (INVALID_REQUEST, LEDGER_DOWN)
"""What an endpoint may answer that asks the ledger."""

WITH_BODY: Final = (MALFORMED_JSON, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
"""What an endpoint may answer that reads a body."""

CHANGING: Final = (FORBIDDEN, *READING)
"""What an endpoint may answer that changes something."""

RENDERING: Final = (
    *WITH_BODY,
    *CHANGING,
    UNKNOWN_MODEL,
    QUEUE_FULL,
    NO_WORKER,
    TOOK_TOO_LONG,
    RENDER_FAILED,
    STORAGE_DOWN,
)
"""What an endpoint may answer that renders."""


class A1111Error(BaseModel):
    """What went wrong, in A1111's shape."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "invalid-request",
                    "detail": "width: scenes renders 64 to 256 pixels a side",
                    "body": "",
                    "errors": "width: scenes renders 64 to 256 pixels a side (given: 512)",
                }
            ]
        }
    )

    error: str = Field(description="The kind of error; the same as the end of `type` on the farm's own paths.")
    detail: str = Field(description="This occurrence in words.")
    body: str = Field("", description="Always empty; A1111 has it.")
    errors: str = Field(description="All that is wrong, one per line: field, what about it, value, what would do.")


def render(_request: Request, problem: HttpProblem) -> JSONResponse:
    """Answer a problem in A1111's shape."""
    told = A1111Error(error=problem.kind.slug, detail=problem.detail, errors=_told(problem))
    return JSONResponse(told.model_dump(), status_code=problem.kind.status, headers=problem.headers)


def _told(problem: HttpProblem) -> str:
    lines = []
    for error in problem.errors:
        line = f"{error.field}: {error.message}" if error.field else error.message
        if error.value is not None:
            line += f" (given: {error.value})"
        if error.choices:
            line += f"; choices: {', '.join(error.choices)}"
        lines.append(line)
    return "\n".join(lines) or problem.detail


DIALECTS: Final[Mapping[str, Render]] = MappingProxyType({"/sdapi": render, "/internal": render, "/controlnet": render})
"""Which paths tell errors so, for `problems.install`."""


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of these problems in A1111's shape, for an endpoint's `responses`."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        described = by_status.setdefault(kind.status, {"description": "", "model": A1111Error})
        described["description"] += ("; " if described["description"] else "") + f"`{kind.slug}`: {kind.title}"
    return by_status
