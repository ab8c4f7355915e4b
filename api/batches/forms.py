"""From a request to the job that it asks for, whatever the form: its type decides which reader, one check ends all.

Each form becomes the JSON document that it stands for. What a body has no place for comes in the query: `?model=sd15`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request

from api.batches.cells import JOB_CELLS, put
from api.batches.lines import read_json_lines, read_text
from api.batches.places import NOWHERE, Places, told_by
from api.batches.tables import read_table
from api.batches.yaml_documents import read_yaml
from api.bodies import JSON_TYPE, check_density, check_text_type, max_parts, object_in, parse_job_spec, read_bytes
from api.field_errors import FieldError, cut, echo
from api.problems import INVALID_REQUEST, MALFORMED_BODY, HttpProblem
from farm.requests import JobSpec

_LABELS: Final = "labels."


@dataclass(frozen=True, slots=True)
class Document:
    """A job as some form has it: fields of the job, prompts unless they are among these, and where each stands."""

    fields: dict[str, Any]
    prompts: list[Any] | None
    places: Places


@dataclass(frozen=True, slots=True)
class Sent:
    """A body and what was said about it."""

    body: bytes
    media_type: str
    query: tuple[tuple[str, str], ...]


async def read_sent(request: Request, *, max_bytes: int) -> Sent:
    """Return the body of a request with its type and query; raises HttpProblem for a type that nobody reads here."""
    media_type = check_text_type(request, list(_READERS))
    body = await read_bytes(request, max_bytes=max_bytes, remedy="; split the batch into several jobs")
    return Sent(body, media_type, tuple(request.query_params.multi_items()))


def job_asked(sent: Sent, *, max_prompts: int) -> tuple[JobSpec, Places]:
    """Return the job that a request asks for, and where in its body the parts stand.

    Raises HttpProblem or Refused, naming every field that is wrong, with its row and column where the form has them.
    """
    asked = _from_query(sent.query)
    if sent.media_type == JSON_TYPE and not asked:
        return parse_job_spec(sent.body, max_prompts=max_prompts), NOWHERE
    document = _READERS[sent.media_type](sent.body, max_prompts)
    fields = document.fields
    for name, value in asked.items():
        put(fields, name, value)
    if document.prompts is not None:
        if "prompts" in fields:
            raise _wrong("prompts", None, "stands among the settings, but prompts have lines of their own")
        fields["prompts"] = document.prompts
    rows = {path: row for path, row in document.places.rows.items() if path.partition(".")[0] not in asked}
    places = Places(rows, document.places.columns)
    with told_by(places):
        return parse_job_spec(json.dumps(fields).encode(), max_prompts=max_prompts), places


def _from_query(query: tuple[tuple[str, str], ...]) -> dict[str, object]:
    """Return the job's fields that a query names, typed by the field; raises HttpProblem for any other name."""
    values: dict[str, object] = {}
    for name, text in query:
        if name in values:
            raise _wrong(name, text, "stands more than once")
        if name.startswith(_LABELS):
            values[name] = text
        elif name in JOB_CELLS:
            values[name] = JOB_CELLS[name].read(text)
        else:
            raise _wrong(name, text, "is no field of a job", choices=[*JOB_CELLS, "labels.<name>"])
    return values


def _json(body: bytes, max_prompts: int) -> Document:
    check_density(body, max_prompts=max_prompts)
    return Document(object_in(body), None, NOWHERE)


def _json_lines(body: bytes, max_prompts: int) -> Document:
    check_density(body, max_prompts=max_prompts)
    return Document(*read_json_lines(body, max_prompts=max_prompts))


def _table(body: bytes, max_prompts: int) -> Document:
    return Document({}, *read_table(_text(body), max_prompts=max_prompts))


def _plain_text(body: bytes, max_prompts: int) -> Document:
    return Document({}, *read_text(_text(body), max_prompts=max_prompts))


def _yaml(body: bytes, max_prompts: int) -> Document:
    document, places = read_yaml(body, max_nodes=max_parts(max_prompts))
    if isinstance(document, list):  # of prompts; what holds for all comes in the query
        return Document({}, document, Places({f"prompts.{path}": row for path, row in places.rows.items()}))
    if not isinstance(document, dict):
        raise _wrong("body", document, "must be a job, or a list of prompts")
    return Document(document, None, places)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = body.count(b"\n", 0, error.start) + 1
        message = "is not UTF-8; save it as such (in Excel: CSV UTF-8)"
        found = FieldError(field="body", message=message, row=row)
        raise HttpProblem(MALFORMED_BODY, f"row {row}: {message}", errors=[found]) from error


def _wrong(field: str, value: object, message: str, *, choices: list[str] | None = None) -> HttpProblem:
    error = FieldError(field=cut(field), value=echo(value), message=message, choices=choices)
    return HttpProblem(INVALID_REQUEST, f"{error.field}: {message}", errors=[error])


_READERS: Final[dict[str, Callable[[bytes, int], Document]]] = {
    JSON_TYPE: _json,
    "application/jsonl": _json_lines,
    "application/x-ndjson": _json_lines,
    "application/x-jsonlines": _json_lines,
    "text/csv": _table,
    "text/tab-separated-values": _table,
    "application/yaml": _yaml,
    "application/x-yaml": _yaml,
    "text/yaml": _yaml,
    "text/plain": _plain_text,
}
