"""Where in a file the parts of a job stand, so that an error names its row and column. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from api.field_errors import FieldError
from api.problems import HttpProblem, problem_of
from farm.errors import Refused


@dataclass(frozen=True, slots=True)
class Places:
    """The row, counted from 1, of each part that has one, by its path; and what a table calls our fields."""

    rows: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    def of(self, path: str | None) -> tuple[int | None, str | None]:
        """Return (row, column) of the part at `path`, or of the nearest around it that has one."""
        names = (path or "").split(".")
        row = next((self.rows[part] for part in _shortened(names) if part in self.rows), None)
        column = next((self.columns[part] for part in _shortened(names[2:]) if part in self.columns), None)
        return row, column if names[0] == "prompts" else None


NOWHERE = Places()
"""Of a body that has no rows worth naming."""


def _shortened(names: list[str]) -> Iterator[str]:
    return (".".join(names[:end]) for end in range(len(names), 0, -1))


def located(error: FieldError, places: Places) -> FieldError:
    """Return the error with its row and column, as far as it has any."""
    row, column = places.of(error.field)
    return error if row is None else error.model_copy(update={"row": row, "column": column})


def _in_words(error: FieldError) -> str:
    column = f', column "{error.column}"' if error.column else ""
    return f"row {error.row}{column}"


@contextmanager
def told_by(places: Places) -> Iterator[None]:
    """Let what is refused within say where in the body it stands."""
    try:
        yield
    except HttpProblem as problem:
        if (told := _told(problem, places)) is None:
            raise
        raise told from problem
    except Refused as error:
        if (told := _told(problem_of(error), places)) is None:
            raise
        raise told from error


def _told(problem: HttpProblem, places: Places) -> HttpProblem | None:
    """Return the problem with the rows of its errors; None where none has one."""
    errors = [located(error, places) for error in problem.errors]
    if not errors or all(error.row is None for error in errors):
        return None
    first = errors[0]
    detail = problem.detail
    if first.row is not None and first.field and detail.startswith(first.field):
        detail = f"{first.field} ({_in_words(first)}){detail.removeprefix(first.field)}"
    return HttpProblem(problem.kind, detail, errors=errors, headers=problem.headers, **problem.members)
