"""Prompts as a table: CSV with a header row, as spreadsheets and data frames write it. From text to prompts. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from api.batches.cells import JOB_CELLS, PROMPT_CELLS, Cell, put
from api.batches.places import Places
from api.field_errors import FieldError, cut, our_name
from api.problems import INVALID_REQUEST, MALFORMED_BODY, HttpProblem
from farm.tables import BadTable, Row, Table, plain_name, table_of

_MAX_COLUMNS: Final = 64


@dataclass(frozen=True, slots=True)
class _Column:
    """A column that is read: our field, what the table calls it, and what stands in it."""

    place: int
    field: str
    name: str
    cell: Cell


def read_table(text: str, *, max_prompts: int) -> tuple[list[dict[str, Any]], Places]:
    """Return the prompts of a table, and where each stands.

    Columns are separated by commas, semicolons or tabs, whatever the header has most of; with semicolons numbers may
    have decimal commas. Empty cells are absent, empty rows are skipped, columns whose name begins with `#` are the
    client's own. Raises HttpProblem with row and column; whether a value will do is for the check of all jobs to say.
    """
    table = table_of(text)
    rows = _rows(table)
    header_row, header = next(((row, cells) for row, cells, *_ in rows if any(map(str.strip, cells))), (1, []))
    columns = _columns(header, header_row)
    prompts: list[dict[str, Any]] = []
    lines: dict[str, int] = {}
    for row, cells, *_ in rows:
        if not any(map(str.strip, cells)):
            continue
        if len(cells) > len(header) and any(map(str.strip, cells[len(header) :])):
            message = (
                f"has {len(cells)} cells, and the header has {len(header)}; put quotes around text with separators"
            )
            raise _refused(row, None, message, value=cells[len(header)])
        if len(prompts) == max_prompts:
            raise _refused(row, None, f"is one more than a job takes ({max_prompts:,} prompts); split the batch")
        lines[f"prompts.{len(prompts)}"] = row
        prompt: dict[str, Any] = {}
        for column in columns:
            if column.place < len(cells) and cells[column.place].strip():
                value = column.cell.read(cells[column.place], has_decimal_comma=table.delimiter == ";")
                put(prompt, column.field, value)
        prompts.append(prompt)
    return prompts, Places(lines, {column.field: column.name for column in columns})


def _rows(table: Table) -> Iterator[Row]:
    """Yield the rows; raises HttpProblem where they cannot be read, as for quotes that do not match."""
    try:
        yield from table.rows
    except BadTable as error:
        raise _refused(error.row, None, error.reason, kind=MALFORMED_BODY) from error


def _columns(header: list[str], row: int) -> list[_Column]:
    if len(header) > _MAX_COLUMNS:
        raise _refused(row, None, f"has {len(header):,} columns, and {_MAX_COLUMNS} are the most")
    columns: dict[str, _Column] = {}
    for place, given in enumerate(header):
        name = given.strip()
        if not name or name.startswith("#"):
            continue
        field = _field_of(name)
        if field not in PROMPT_CELLS:
            raise _unknown_column(name, field, row)
        if field in columns:
            raise _refused(row, name, f"is `{field}`, and so is the column {cut(columns[field].name)!r}", value=name)
        columns[field] = _Column(place, field, cut(name), PROMPT_CELLS[field])
    if "prompt" not in columns:
        message = "the first row names the columns, and none of them is `prompt`"
        raise _refused(row, None, message, value=", ".join(header), choices=list(PROMPT_CELLS))
    return list(columns.values())


def _field_of(name: str) -> str:
    """Return our name of a column: `CFG Scale` and `cfg_scale` are `guidance_scale`."""
    plain = plain_name(name)
    return our_name(plain) or plain


def _unknown_column(name: str, field: str, row: int) -> HttpProblem:
    choices = list(PROMPT_CELLS)
    if field in JOB_CELLS or field == "labels":
        message = f"holds for the whole job: give it in the query, as in ?{field}=…"
        return _refused(row, name, message, value=name, choices=choices)
    near = difflib.get_close_matches(field, choices, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else "; a column of your own begins with #"
    return _refused(row, name, f"is not a known column{hint}", value=name, choices=choices)


def _refused(
    row: int,
    column: str | None,
    message: str,
    *,
    value: object = None,
    choices: list[str] | None = None,
    kind: Any = INVALID_REQUEST,
) -> HttpProblem:
    column = None if column is None else cut(column)
    shown = None if value is None else cut(str(value))
    error = FieldError(field="body", value=shown, message=message, choices=choices, row=row, column=column)
    place = f"row {row}" + (f', column "{column}"' if column else "")
    return HttpProblem(kind, f"{place}: {message}", errors=[error])
