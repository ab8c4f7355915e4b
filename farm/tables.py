"""How a table of prompts is laid out: separators, quotes, lines, names of columns. Pure.

The API reads tables (api/batches/tables.py), and the command line looks for pictures in them before it sends them
(cli/tables.py): both must see the same cells. What the cells mean is for the API to say.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_DELIMITERS: Final = (",", ";", "\t")
_MAX_LINE_CHARS: Final = 500_000
_QUOTED: Final = re.compile(r'"[^"]*+"')
_HINT: Final = re.compile(r"sep=([,;|\t])\r?\n", re.IGNORECASE)  # what Excel writes and reads


class BadTable(Exception):
    """A table cannot be read from some line on."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason


class Row(NamedTuple):
    """A row of a table: the line that it begins in, from 1, its cells, and which characters of the text it is."""

    number: int
    cells: list[str]
    start: int
    end: int


class Table(NamedTuple):
    """A table that is read row by row; iterating raises BadTable where it cannot be read."""

    delimiter: str
    rows: Iterator[Row]


def table_of(text: str) -> Table:
    """Return a table: cells are separated by commas, semicolons or tabs, whichever its header has most of."""
    hint = _HINT.match(text)
    start = hint.end() if hint else 0
    delimiter = hint[1] if hint else _delimiter_of(text)
    return Table(delimiter, _rows(text, delimiter, start=start, first_number=2 if hint else 1))


def plain_name(column: str) -> str:
    """Return the name of a column as our fields are written: `Mask Image` is `mask_image`."""
    return re.sub(r"[\s-]+", "_", column.strip()[:100].lower())


def _delimiter_of(text: str) -> str:
    """Return the delimiter that the first line with anything in it has most of, outside quotes."""
    header = _QUOTED.sub("", text.lstrip()[:10_000].partition("\n")[0])
    return max(_DELIMITERS, key=header.count)


def _rows(text: str, delimiter: str, *, start: int, first_number: int) -> Iterator[Row]:
    position = start

    def lines() -> Iterator[str]:
        nonlocal position
        for number, line in enumerate(io.StringIO(text[start:], newline=""), start=first_number):
            if len(line) > _MAX_LINE_CHARS:
                raise BadTable(number, f"has more than {_MAX_LINE_CHARS:,} characters")
            position += len(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        number, begins = first_number + reader.line_num, position
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadTable(number, f"cannot be read: {error}") from error
        yield Row(number, cells, begins, position)
