"""The input file of a batch, line by line: what is wrong in which line, or the one job that all lines are. Pure.

    {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "…", "model": "…"}}

A line holds in memory what its prompt has of its own. All lines share a model and a file format, as one job does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from api.field_errors import FieldError, nul_in, translate
from api.openai.errors import code_of_field, error_of
from api.openai.requests import GenerationRequest, in_openai_words, prompt_of
from api.problems import HttpProblem, problem_of
from farm.catalog import ModelRow
from farm.errors import FarmError, Refused
from farm.requests import JobSpec, Output, Priority, PromptSpec

ENDPOINT: Final = "/v1/images/generations"
MAX_LINE_BYTES: Final = 256 * 1024
MAX_ERRORS: Final = 100
"""Errors that a batch tells of; the rest of its lines is not looked at."""

_BOM: Final = b"\xef\xbb\xbf"


class BatchLine(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="Yours; different in each line, and told with its result."
    )
    method: Literal["POST"]
    url: Literal["/v1/images/generations"]
    body: GenerationRequest


class BatchError(BaseModel):
    """Something that keeps a batch from being begun."""

    code: str
    message: str
    param: str | None = None
    line: int | None = Field(None, description="From 1; null for what no line alone is to blame for.")


class Noted(NamedTuple):
    """What has to be known of a line when its images are there."""

    custom_id: str
    is_url: bool


class ParsedBatch(NamedTuple):
    """A whole input file: either its errors, or the job and what is noted of its lines."""

    errors: list[BatchError]
    spec: JobSpec | None
    notes: list[Noted]


def parse_batch(
    pieces: Iterable[bytes],
    *,
    row_of: Callable[[str | None], ModelRow],
    check: Callable[[JobSpec], None],
    max_lines: int,
) -> ParsedBatch:
    """Read a file; `row_of` finds a model by its name and `check` looks at a job of one line, both raise FarmError.

    Stops at the hundredth error, and after `max_lines`.
    """
    parser = _Parser(row_of, check)
    lines = numbered_lines(pieces)
    for number, line in lines:
        if len(parser.prompts) == max_lines:
            parser.note(None, "too_many_requests", f"a batch has at most {max_lines:,} lines; make several files of it")
            break
        parser.take(number, line)
        if len(parser.errors) >= MAX_ERRORS:
            break
    if not parser.errors and not parser.prompts:
        parser.note(None, "empty_file", "the file has no line with a request")
    if parser.errors or parser.row is None or parser.output is None:
        return ParsedBatch(parser.errors, None, [])
    spec = JobSpec(model=parser.row.name, prompts=list(parser.prompts), output=parser.output, priority=Priority.BULK)
    return ParsedBatch([], spec, parser.notes)


class _Parser:
    """What the lines so far have in common, and what is wrong with them."""

    def __init__(self, row_of: Callable[[str | None], ModelRow], check: Callable[[JobSpec], None]) -> None:
        self._row_of = row_of
        self._check = check
        self._model: str | None = None
        self._lines_by_id: dict[str, int] = {}
        self._is_broken = False  # the first line's model cannot be had: every line would say the same
        self.row: ModelRow | None = None
        self.output: Output | None = None
        self.prompts: list[PromptSpec] = []
        self.notes: list[Noted] = []
        self.errors: list[BatchError] = []

    def note(self, line: int | None, code: str, message: str, param: str | None = None) -> None:
        """Keep an error."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(BatchError(code=code, message=message, param=param, line=line))

    def take(self, number: int, line: bytes | None) -> None:
        """Take a line; None is one that is too long."""
        if line is None:
            self.note(number, "line_too_long", f"a line has at most {MAX_LINE_BYTES:,} bytes")
            return
        parsed = self._parsed(number, line)
        if parsed is None:
            return
        first = self._lines_by_id.setdefault(parsed.custom_id, number)
        if first != number:
            message = f"custom_id {parsed.custom_id[:64]!r} stands in line {first} already"
            self.note(number, "duplicate_custom_id", message, "custom_id")
            return
        try:
            self._add(number, parsed.body)
        except FarmError as error:
            if isinstance(error, Refused):
                error = in_openai_words(error)
            self._note_problem(number, problem_of(error))
        except HttpProblem as problem:
            self._note_problem(number, problem)
        else:
            self.notes.append(Noted(parsed.custom_id, parsed.body.answers_urls))

    def _parsed(self, number: int, line: bytes) -> BatchLine | None:
        try:
            document = from_json(line, allow_inf_nan=False)
        except ValueError as error:
            self.note(number, "invalid_json_line", f"this line is not JSON: {error}"[:300])
            return None
        if not isinstance(document, dict):
            self.note(number, "invalid_json_line", "this line is no JSON object")
            return None
        try:
            parsed = BatchLine.model_validate_json(line, strict=True)
        except ValidationError as error:
            for found in translate(error.errors(include_url=False)[:MAX_ERRORS], document={}, known=_KNOWN):
                self.note(number, _code_of(found), _told(found), found.field)
            return None
        if b"\\u0000" in line and (at := nul_in(document)) is not None:
            self.note(number, "invalid_value", "no image file can carry a NUL character", at)
            return None
        return parsed

    def _add(self, number: int, asked: GenerationRequest) -> None:
        if asked.stream:
            raise Refused("a batch cannot stream", field="stream", value=True, choices=["false"])
        if self._is_broken:
            return
        if self.row is None:
            self._is_broken = True
            self._model, self.row = asked.model, self._row_of(asked.model)
            self._is_broken = False
        elif asked.model != self._model:
            message = f"all lines of a file ask for one model, and the first one asks for {self._model!r}"
            self.note(number, "mismatched_model", message, "body.model")
            return
        if self.output is None:
            self.output = asked.output
        elif asked.output != self.output:
            message = "all lines of a file have the output_format and output_compression of the first"
            self.note(number, "mismatched_output_format", message, "body.output_format")
            return
        prompt = prompt_of(asked, self.row)
        self._check(JobSpec(model=self.row.name, prompts=[prompt]))
        self.prompts.append(prompt)

    def _note_problem(self, number: int, problem: HttpProblem) -> None:
        told = error_of(problem)
        param = None if told.param is None else f"body.{told.param}"
        self.note(number, told.code or "invalid_value", told.message, param)


_KNOWN: Final = [*GenerationRequest.model_fields, *BatchLine.model_fields]
_CODES: Final = {"method": "invalid_method", "url": "invalid_url", "custom_id": "invalid_custom_id"}


def _code_of(found: FieldError) -> str:
    code = code_of_field(found)
    return _CODES.get(found.field or "", code) if code == "invalid_value" else code


def _told(found: FieldError) -> str:
    choices = f"; choices: {', '.join(found.choices)}" if found.choices else ""
    return f"{found.field}: {found.message}{choices}"


def numbered_lines(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines that are not blank, numbered from 1; None in place of one that is too long to be held."""
    held = bytearray()
    number, is_too_long, is_first = 1, False, True
    for piece in pieces:
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            if not is_too_long and len(held) + end - start <= MAX_LINE_BYTES:
                held += piece[start:end]
            else:
                is_too_long = True
            yield from _line(number, held, is_too_long=is_too_long, is_first=is_first)
            held.clear()
            number, start, is_too_long, is_first = number + 1, end + 1, False, False
        is_too_long = is_too_long or len(held) + len(piece) - start > MAX_LINE_BYTES
        if is_too_long:
            held.clear()
        else:
            held += piece[start:]
    yield from _line(number, held, is_too_long=is_too_long, is_first=is_first)


def _line(number: int, held: bytearray, *, is_too_long: bool, is_first: bool) -> Iterator[tuple[int, bytes | None]]:
    if is_too_long:
        yield number, None
        return
    line = bytes(held)
    line = (line.removeprefix(_BOM) if is_first else line).strip()
    if line:
        yield number, line
