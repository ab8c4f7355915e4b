"""Pictures that a table names: the same table with other names, all else of it left as it stands. Pure.

A table goes to the API, which names rows and columns of what is wrong: so its lines stay where they are. One that
cannot be read comes back unchanged; the API says why.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

from cli.named import PICTURE_FIELDS, Rename, rename_in_cells
from farm.tables import BadTable, plain_name, table_of

_FIELDS: Final = frozenset({*PICTURE_FIELDS, "controlnets"})


def rename_in_table(text: str, rename: Rename, *, name: str, folder: Path) -> str:
    """Return a table with the files that its cells name renamed; `name` and `folder` are those of its file."""
    if "image" not in text.lower():
        return text
    table = table_of(text)
    try:
        rows = list(table.rows)
    except BadTable:
        return text
    header = next((place for place, row in enumerate(rows) if any(map(str.strip, row.cells))), None)
    if header is None or not (columns := _columns_of(rows[header].cells)):
        return text
    pieces = []
    copied = 0
    for row in rows[header + 1 :]:
        cells = {field: row.cells[place] for field, (place, _) in columns.items() if place < len(row.cells)}
        told = {field: f'{name}: row {row.number}, column "{column}"' for field, (_, column) in columns.items()}
        renamed = rename_in_cells(cells, rename, told.__getitem__, folder)
        if renamed != cells:
            changed = list(row.cells)
            for field, cell in renamed.items():
                changed[columns[field][0]] = cell
            line = _line(changed, table.delimiter) + _line_end(text[row.start : row.end])
            pieces += [text[copied : row.start], line]
            copied = row.end
    return "".join([*pieces, text[copied:]])


def _columns_of(header: list[str]) -> dict[str, tuple[int, str]]:
    """Return the columns that name pictures: by our name the place, and what the table calls it."""
    columns = {plain_name(cell): (place, cell.strip()) for place, cell in enumerate(header)}
    return {field: column for field, column in columns.items() if field in _FIELDS}


def _line(cells: list[str], delimiter: str) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n")


def _line_end(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :]
