"""Multipart bodies, read within bounds: so many bytes, files and fields, and nothing of it larger than it says.

Files lie on disk while the request lasts, beyond a megabyte each; what they mean is for others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api.bodies import check_media_type, stream_bytes
from api.field_errors import FieldError, nul_in
from api.problems import INVALID_REQUEST, HttpProblem, invalid
from farm.errors import Refused

MEDIA_TYPE: Final = "multipart/form-data"
OVERHEAD_BYTES: Final = 1024 * 1024
"""What a body may have beyond its files: fields and headers."""

_MAX_FIELDS: Final = 64
_MAX_FIELD_BYTES: Final = 64 * 1024

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Form:
    """Fields and files by name, in their order; `image[]` counts as `image`."""

    fields: dict[str, str]
    files: dict[str, list[UploadFile]]

    def one_file(self, name: str) -> UploadFile:
        """Return the file of this name; raises Refused when there is none, or more than one."""
        found = self.files.get(name, [])
        if not found:
            raise Refused("is required, as a file", field=name)
        if len(found) > 1:
            raise Refused("may be one file only", field=name, value=f"{len(found)} files", choices=["1 file"])
        return found[0]

    def check_files(self, *names: str) -> None:
        """Raise Refused for a file that nothing is done with."""
        for name in self.files:
            if name not in names:
                raise Refused("is not a known field", field=name[:64], choices=list(names))

    def parse(self, model: type[Model]) -> Model:
        """Return the fields as a model: texts are numbers and truths where the model wants them."""
        try:
            parsed = model.model_validate(self.fields)
        except ValidationError as error:
            raise invalid(error, document=self.fields, known=list(model.model_fields)) from error
        if (at := nul_in(self.fields)) is not None:
            raise Refused("no image file can carry a NUL character", field=at)
        return parsed


class _Parser(MultiPartParser):
    """Starlette's, which would take a body that ends in the middle for a whole one."""

    is_whole = False

    def on_end(self) -> None:
        """Note the last boundary."""
        self.is_whole = True

    def close(self) -> None:
        """Let go of all files, the unfinished too."""
        for file in self._files_to_close_on_error:
            file.close()


@asynccontextmanager
async def read_form(request: Request, *, max_bytes: int, max_files: int) -> AsyncIterator[Form]:
    """Read a body of at most `max_bytes`; its files are gone when the context ends.

    Raises HttpProblem for another type, for what is too large or too much, and for what is no multipart body.
    """
    check_media_type(request, [MEDIA_TYPE])
    body = stream_bytes(request, max_bytes=max_bytes)
    parser = _Parser(request.headers, body, max_files=max_files, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    try:
        data = await parser.parse()
    except MultiPartException as error:
        raise _no_form(error.message) from error
    try:
        if not parser.is_whole:
            raise _no_form("its last boundary is missing")
        form = Form({}, {})
        for name, value in data.multi_items():
            plain = name.removesuffix("[]")
            if isinstance(value, UploadFile):
                form.files.setdefault(plain, []).append(value)
            elif plain in form.fields:
                raise Refused("stands more than once", field=plain[:64])
            else:
                form.fields[plain] = value
        yield form
    finally:
        parser.close()


def _no_form(reason: str) -> HttpProblem:
    found = FieldError(field="body", value=None, message=f"is no form that is read here: {reason}")
    return HttpProblem(INVALID_REQUEST, f"the body {found.message}", errors=[found])
