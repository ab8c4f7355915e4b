"""Prompts line by line: JSON Lines, and plain text. From bytes to prompts. Pure."""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import from_json

from api.batches.places import Places
from api.field_errors import FieldError, echo
from api.problems import INVALID_REQUEST, MALFORMED_BODY, HttpProblem, Kind

_MAX_EXCERPT_BYTES: Final = 100


def read_json_lines(body: bytes, *, max_prompts: int) -> tuple[dict[str, Any], list[Any], Places]:
    """Return the job's settings, the prompts, and where each stands.

    A line is a string, or an object with a `prompt`; the first may be an object without one: the job's settings. Empty
    lines and those that begin with `#` are skipped. Raises HttpProblem with the row.
    """
    settings: dict[str, Any] = {}
    prompts: list[Any] = []
    rows: dict[str, int] = {}
    is_first = True
    for row, line in enumerate(body.split(b"\n"), start=1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        document = _parsed(text, row)
        if is_first and isinstance(document, dict) and "prompt" not in document:
            settings = document
            rows |= dict.fromkeys(document, row)
        else:
            _check_room(prompts, max_prompts, row)
            rows[f"prompts.{len(prompts)}"] = row
            prompts.append(document)
        is_first = False
    return settings, prompts, Places(rows)


def read_text(text: str, *, max_prompts: int) -> tuple[list[str], Places]:
    """Return the prompts of a text, one a line, and where each stands; `#` begins a comment line."""
    prompts: list[str] = []
    rows: dict[str, int] = {}
    for row, line in enumerate(text.split("\n"), start=1):
        if (prompt := line.strip()) and not prompt.startswith("#"):
            _check_room(prompts, max_prompts, row)
            rows[f"prompts.{len(prompts)}"] = row
            prompts.append(prompt)
    return prompts, Places(rows)


def _parsed(line: bytes, row: int) -> object:
    try:
        return from_json(line, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        reason = str(error).replace(" at line 1 column", " at character")
        raise _refused(row, f"is not JSON: {reason}", line, kind=MALFORMED_BODY) from error


def _check_room(prompts: list[Any], max_prompts: int, row: int) -> None:
    if len(prompts) == max_prompts:
        raise _refused(row, f"is one more than a job takes ({max_prompts:,} prompts); split the batch")


def _refused(row: int, message: str, line: bytes | None = None, *, kind: Kind = INVALID_REQUEST) -> HttpProblem:
    shown = None if line is None else echo(line[:_MAX_EXCERPT_BYTES].decode("utf-8", "replace"))
    error = FieldError(field="body", value=shown, message=message, row=row)
    return HttpProblem(kind, f"row {row}: {message}", errors=[error])
