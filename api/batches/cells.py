"""From text to a value, typed by the field it is for: cells of tables, and parameters of a query. Pure.

What cannot be read as its field's type stays text: the one check of all jobs then says what is wrong with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import from_json

from farm.requests import JobSpec, PromptSpec

_INTEGER: Final = re.compile(r"[+-]?\d{1,30}(?:\.0{1,30})?")  # spreadsheets and data frames write 20.0
_NUMBER: Final = re.compile(r"[+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][+-]?\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Cell:
    """What may stand in a cell: the JSON types of its field, and of a list's items."""

    types: frozenset[str]
    items: frozenset[str] = frozenset()

    def read(self, text: str, *, has_decimal_comma: bool = False) -> object:
        """Return the value that a text stands for, or the text."""
        if self.types & {"array", "object"}:
            return self._read_json(text)
        return _scalar(text, self.types, has_decimal_comma=has_decimal_comma)

    def _read_json(self, text: str) -> object:
        if text.lstrip()[:1] in {"[", "{"}:
            try:
                return from_json(text, allow_inf_nan=False)
            except ValueError:
                return text
        if self.items & {"integer", "number", "string"}:
            return [_scalar(part.strip(), self.items) for part in text.split(",")]
        return text


def _scalar(text: str, types: frozenset[str], *, has_decimal_comma: bool = False) -> object:
    plain = text.strip()
    if "string" in types:
        return text
    if "boolean" in types:
        return {"true": True, "false": False}.get(plain.lower(), text)
    if "integer" in types and _INTEGER.fullmatch(plain):
        return int(plain.partition(".")[0])
    if "number" in types:
        number = plain.replace(",", ".") if has_decimal_comma else plain
        if _NUMBER.fullmatch(number) and math.isfinite(float(number)):
            return float(number)
    return text


def _cells_of(model: type[BaseModel]) -> dict[str, tuple[Cell, dict[str, Any]]]:
    """Return the fields of a model, and those of objects within it by dotted names, each with its JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return {name: (_cell(field), field) for name, field in _fields("", schema, definitions)}


def _fields(prefix: str, schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema["properties"].items():
        branches = [_resolved(branch, definitions) for branch in field.get("anyOf", [field])]
        described = {key: field[key] for key in ("description",) if key in field}
        branches = [branch for branch in branches if branch.get("type") != "null"]
        for branch in branches:
            if "properties" in branch and not prefix:
                yield from _fields(f"{name}.", branch, definitions)
        yield f"{prefix}{name}", {**(branches[0] if len(branches) == 1 else {"anyOf": branches}), **described}


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    resolved: dict[str, Any] = definitions[schema["$ref"].rpartition("/")[2]]
    return resolved


def _cell(field: dict[str, Any]) -> Cell:
    branches = field.get("anyOf", [field])
    types = frozenset(branch.get("type", "string") for branch in branches)
    items = frozenset(branch["items"].get("type", "object") for branch in branches if "items" in branch)
    return Cell(types, items)


_JOB: Final = _cells_of(JobSpec)
_PROMPT: Final = _cells_of(PromptSpec)

PROMPT_CELLS: Final = {name: cell for name, (cell, _) in _PROMPT.items()}
"""What a column of a table may be called, by our names; parts of objects have dots: `hires.scale`."""

JOB_CELLS: Final = {name: cell for name, (cell, _) in _JOB.items() if name != "prompts"}
"""What a parameter of the query may be called, beside `labels.<name>`."""

JOB_PARAMETERS: Final = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": {key: value for key, value in field.items() if key not in ("description", "default", "title")},
        "description": field.get("description", f"The job's `{name}`."),
    }
    for name, (cell, field) in _JOB.items()
    if "." not in name and not cell.types & {"array", "object"}
]
"""The query's parameters as OpenAPI has them: the job's own values. Parts of objects and lists are told in words."""


def put(document: dict[str, Any], name: str, value: object) -> None:
    """Set a field of a job or a prompt; what stands before a dot is the object it lies in."""
    holder, dot, part = name.partition(".")
    if not dot:
        document[name] = value
    elif isinstance(inner := document.setdefault(holder, {}), dict):
        inner[part] = value
    else:
        document[holder] = {part: value}
