"""From the bytes of a request to a JobSpec, or another model: size, type, JSON, fields; each has its own answer."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from api.field_errors import FieldError, echo, nul_in
from api.problems import (
    BODY_TOO_LARGE,
    INVALID_REQUEST,
    MALFORMED_JSON,
    UNSUPPORTED_MEDIA_TYPE,
    HttpProblem,
    invalid,
)
from farm.errors import Refused
from farm.requests import JobSpec, PromptSpec

_JSON_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: never backtracks
JSON_TYPE: Final = "application/json"

_MAX_EXCERPT_BYTES: Final = 100
_MAX_FIELDS: Final = 64  # of one object; far more than any has, few enough to list what is wrong with them
_MAX_DEPTH: Final = 4  # a LoRA lies in a list in a list in a matrix

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, *, max_bytes: int, remedy: str = "") -> bytes:
    """Return the body of a JSON request, as `read_bytes` does."""
    check_text_type(request, [JSON_TYPE])
    return await read_bytes(request, max_bytes=max_bytes, remedy=remedy)


async def read_bytes(request: Request, *, max_bytes: int, remedy: str = "") -> bytes:
    """Return a body as it is; raises HttpProblem before more than `max_bytes` of it are held.

    `remedy` ends the sentence of what to do about a larger one.
    """
    body = bytearray()
    async for chunk in stream_bytes(request, max_bytes=max_bytes, remedy=remedy):
        body += chunk
    return bytes(body)


async def stream_bytes(request: Request, *, max_bytes: int, remedy: str = "") -> AsyncGenerator[bytes, None]:
    """Yield a body as it comes; raises HttpProblem before more than `max_bytes` of it are handed on."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes, remedy, value=int(declared[:20]))
    num_bytes = 0
    async for chunk in request.stream():  # a chunked body declares no length
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes, remedy, value=f"more than {max_bytes}")
        yield chunk


def check_media_type(request: Request, allowed: list[str]) -> None:
    """Raise HttpProblem unless the body is declared to be of one of these types, and not compressed on the way."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() not in allowed:
        raise _unsupported("Content-Type", given, allowed)
    _check_encoding(request)


def parse_job_spec(body: bytes, *, max_prompts: int) -> JobSpec:
    """Return the job that a body asks for; raises HttpProblem or Refused, naming every field that is wrong."""
    check_density(body, max_prompts=max_prompts)
    document = object_in(body)
    _check_breadth(document, max_prompts=max_prompts)
    try:
        # Strict: "512" is no number and true is no 1. From bytes, because strict enums take strings only from JSON.
        spec = JobSpec.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(error, document=document) from error
    if b"\\u0000" in body and (at := nul_in(document)) is not None:
        raise Refused("no image file can carry a NUL character", field=at)
    return spec


def parse_object(body: bytes, model: type[Model]) -> Model:
    """Return the small object that a body holds; raises HttpProblem, naming every field that is wrong."""
    document = object_in(body)
    _check_num_fields("", document)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(error, document=document, known=list(model.model_fields)) from error


def object_in(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is; raises HttpProblem."""
    try:
        document = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        message = f"is not JSON: {error}"
        found = FieldError(
            field="body", value=echo(body[:_MAX_EXCERPT_BYTES].decode("utf-8", "replace")), message=message
        )
        raise HttpProblem(MALFORMED_JSON, f"the body {message}", errors=[found]) from error
    if not isinstance(document, dict):
        not_an_object = FieldError(field="body", value=echo(document), message="must be an object")
        raise HttpProblem(INVALID_REQUEST, "the body must be an object", errors=[not_an_object])
    return document


def check_density(body: bytes, *, max_prompts: int) -> None:
    """Refuse a body of more parts than any job has, before it is parsed.

    Sixteen megabytes of `[],[],…` would take seconds to build and to drop, with the whole process waiting.
    """
    limit = max_parts(max_prompts)

    def num_parts(text: bytes) -> int:
        return sum(text.count(mark) for mark in (b",", b"[", b"{"))

    # Prompts are full of commas, so text between quotes is taken out where there seem to be too many.
    if num_parts(body) > limit and num_parts(_JSON_STRING.sub(b"", body)) > limit:
        message = f"has more parts than a job of {max_prompts:,} prompts can have; split the batch"
        found = FieldError(field="body", value=f"{len(body):,} bytes", message=message, choices=[f"{limit} or fewer"])
        raise HttpProblem(INVALID_REQUEST, f"the body {message}", errors=[found])


def max_parts(max_prompts: int) -> int:
    """Return how many commas and opening brackets the body of a job may have, less those in its texts."""
    return max_prompts * _PARTS_OF_PROMPT + _PARTS_OF_JOB + 4 * _MAX_FIELDS  # the last, to explain small excess


def _max_parts(schema: dict[str, Any], definitions: dict[str, Any]) -> int:
    """Return how many commas and opening brackets the longest document of a JSON schema has, its own comma included."""
    if "$ref" in schema:
        return _max_parts(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    branches = [_max_parts(branch, definitions) for branch in schema.get("anyOf", ())]
    if schema.get("type") == "array" and "maxItems" in schema:
        branches.append(2 + schema["maxItems"] * _max_parts(schema["items"], definitions))
    elif "properties" in schema:
        branches.append(2 + sum(_max_parts(field, definitions) for field in schema["properties"].values()))
    elif schema.get("type") == "object":
        branches.append(2 + schema.get("maxProperties", 0))
    return max(branches, default=1)


def _max_parts_of(model: type[BaseModel]) -> int:
    schema = model.model_json_schema()
    return _max_parts(schema, schema.get("$defs", {}))


_PARTS_OF_PROMPT: Final = _max_parts_of(PromptSpec)
_PARTS_OF_JOB: Final = _max_parts_of(JobSpec)  # with a single prompt


def check_text_type(request: Request, allowed: Sequence[str]) -> str:
    """Return the type of a body of text, in lower case; raises HttpProblem unless it is allowed, and plain UTF-8.

    A request without Content-Type is taken for JSON, and so is `application/…+json`.
    """
    given = request.headers.get("content-type", JSON_TYPE)
    media_type, _, parameters = given.partition(";")
    media_type = media_type.strip().lower()
    if media_type.startswith("application/") and media_type.endswith("+json"):
        media_type = JSON_TYPE
    if media_type not in allowed or _parameter(parameters, "charset") not in ("", "utf-8", "utf8", "us-ascii"):
        raise _unsupported("Content-Type", given, list(allowed))
    _check_encoding(request)
    return media_type


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise _unsupported("Content-Encoding", encoding, ["identity"])


def _parameter(parameters: str, name: str) -> str:
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"').lower()
    return ""


def _unsupported(field: str, value: str, choices: list[str]) -> HttpProblem:
    message = f"must be {' or '.join(choices)}"
    return HttpProblem(
        UNSUPPORTED_MEDIA_TYPE,
        f"{field} {message}",
        errors=[FieldError(field=field, value=value[:100], message=message, choices=choices)],
        headers={"Accept": ", ".join(choices)} if field == "Content-Type" else {},
    )


def _too_large(max_bytes: int, remedy: str, *, value: object) -> HttpProblem:
    message = f"must have at most {max_bytes:,} bytes{remedy}"
    return HttpProblem(
        BODY_TOO_LARGE,
        f"the body {message}",
        errors=[FieldError(field="body", value=value, message=message, choices=[f"0 to {max_bytes}"])],
        headers={"Connection": "close"},  # the rest of the body is not going to be read
    )


def _check_breadth(document: dict[str, Any], *, max_prompts: int) -> None:
    """Refuse what is so broad that a list of what is wrong with it would be a burden in itself."""
    prompts = document.get("prompts")
    items = prompts if isinstance(prompts, list) else []
    if len(items) > max_prompts:
        raise Refused(
            f"{len(items):,} prompts are more than one job takes ({max_prompts:,}); split the batch",
            field="prompts",
            value=len(items),
            choices=[f"1 to {max_prompts}"],
        )
    for path, value in _containers("", {name: part for name, part in document.items() if name != "prompts"}):
        _check_num_fields(path, value)
    for position, item in enumerate(items):
        for path, value in _containers(f"prompts.{position}", item):
            _check_num_fields(path, value)


def _containers(path: str, value: object) -> Iterator[tuple[str, dict[str, Any] | list[Any]]]:
    """Yield `value` and what it holds, as far as these are objects and lists that a job may have: five levels."""
    waiting = [(path, value, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        if not isinstance(value, dict | list):
            continue
        yield path, value
        if depth < _MAX_DEPTH:
            below = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{path}.{name}".lstrip("."), part, depth + 1) for name, part in below]


def _check_num_fields(path: str, value: dict[str, Any] | list[Any]) -> None:
    if len(value) <= _MAX_FIELDS:
        return
    kind, holder = ("fields", "object") if isinstance(value, dict) else ("items", "list")
    message = f"has {len(value):,} {kind}, more than any {holder} here takes"
    error = FieldError(field=path or None, value=len(value), message=message)
    raise HttpProblem(INVALID_REQUEST, f"{path or 'the body'} {message}", errors=[error])
