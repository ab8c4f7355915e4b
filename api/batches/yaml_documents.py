"""A job as YAML, without YAML's traps: no tags, no aliases, and `no` is a word. From bytes to a document. Pure.

Built from the parser's events: values are those of YAML 1.2's core schema, which is JSON's, so that a prompt such as
`yes` or `12:30` is text. Nothing is constructed but mappings, lists, strings, numbers, true, false and null.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from api.batches.places import Places
from api.field_errors import FieldError, cut, echo
from api.problems import BODY_TOO_LARGE, INVALID_REQUEST, MALFORMED_BODY, HttpProblem, Kind

MAX_YAML_BYTES: Final = 1024 * 1024
"""YAML is slow to read, a hundred times slower than JSON: who has more sends JSON Lines."""

_MAX_DEPTH: Final = 8
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,30}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]{1,30}|[0-9]{1,30}(?:\.[0-9]{0,30})?)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: Final[dict[str, object]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(body: bytes, *, max_nodes: int) -> tuple[object, Places]:
    """Return the document, and where its parts stand. Raises HttpProblem with the row."""
    if len(body) > MAX_YAML_BYTES:
        message = f"must have at most {MAX_YAML_BYTES:,} bytes as YAML; send JSON Lines or CSV, or split the batch"
        error = FieldError(field="body", value=len(body), message=message, choices=[f"0 to {MAX_YAML_BYTES}"])
        raise HttpProblem(BODY_TOO_LARGE, f"the body {message}", errors=[error])
    builder = _Builder(max_nodes)
    try:
        for event in yaml.parse(body, Loader=_Loader):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        row = 1 if mark is None else mark.line + 1
        raise _refused(row, f"is not YAML: {reason}", kind=MALFORMED_BODY) from error
    except UnicodeDecodeError as error:
        raise _refused(1, "is not UTF-8", kind=MALFORMED_BODY) from error
    return builder.document, Places(builder.rows)


@dataclass(slots=True)
class _Open:
    """A mapping or a list that has begun, and has not ended."""

    value: dict[str, Any] | list[Any]
    path: str
    key: str | None = field(default=None)

    def path_of_next(self) -> str:
        name = str(len(self.value)) if isinstance(self.value, list) else str(self.key)
        return f"{self.path}.{name}" if self.path else name


class _Builder:
    """Puts a document together, event by event."""

    def __init__(self, max_nodes: int) -> None:
        self.document: object = None
        self.rows: dict[str, int] = {}
        self._nodes_left = max_nodes
        self._num_documents = 0
        self._open: list[_Open] = []

    def take(self, event: yaml.Event) -> None:
        row = event.start_mark.line + 1 if event.start_mark is not None else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refused(row, "has an anchor or an alias (& or *), which are not taken here; quote text with them")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused(row, "has a tag (!), which is not taken here; quote text that begins with it")
        match event:
            case yaml.DocumentStartEvent():
                self._num_documents += 1
                if self._num_documents > 1:
                    raise _refused(row, "begins a second document; a body is one")
            case yaml.ScalarEvent():
                self._take_scalar(event, row)
            case yaml.MappingStartEvent():
                self._begin({}, row)
            case yaml.SequenceStartEvent():
                self._begin([], row)
            case yaml.CollectionEndEvent():
                self._open.pop()

    def _take_scalar(self, event: yaml.ScalarEvent, row: int) -> None:
        holder = self._open[-1] if self._open else None
        if holder is not None and isinstance(holder.value, dict) and holder.key is None:
            if event.value in holder.value:
                raise _refused(row, f"names {cut(event.value)!r} a second time")
            holder.key = event.value
            return
        self._place(event.value if event.style else _plain(event.value), row)

    def _begin(self, value: dict[str, Any] | list[Any], row: int) -> None:
        if len(self._open) == _MAX_DEPTH:
            raise _refused(row, f"lies more than {_MAX_DEPTH} levels deep, where no part of a job is")
        holder = self._open[-1] if self._open else None
        if holder is not None and isinstance(holder.value, dict) and holder.key is None:
            raise _refused(row, "has a list or a mapping for a name")
        self._open.append(_Open(value, self._place(value, row)))

    def _place(self, value: object, row: int) -> str:
        """Put a value where it belongs; return its path."""
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise _refused(row, "is where the document has more parts than any job; split the batch")
        if not self._open:
            self.document = value
            return ""
        holder = self._open[-1]
        path = holder.path_of_next()
        self.rows[path] = row
        if isinstance(holder.value, list):
            holder.value.append(value)
        else:
            holder.value[str(holder.key)] = value
            holder.key = None
        return path


def _plain(text: str) -> object:
    """Return what a scalar without quotes stands for."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def _refused(row: int, message: str, *, kind: Kind = INVALID_REQUEST) -> HttpProblem:
    error = FieldError(field="body", value=echo(None), message=message, row=row)
    return HttpProblem(kind, f"row {row}: {message}", errors=[error])
