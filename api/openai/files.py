"""`/v1/files`: the files of batches, kept in S3 under keys of their tenant. Nobody else sees them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from api.guard.callers import Asker
from api.openai.errors import NO_SUCH_FILE, documented
from api.openai.forms import MEDIA_TYPE, OVERHEAD_BYTES, read_form
from api.openai.shelves import Shelf
from api.parts import Farm
from api.problems import BODY_TOO_LARGE, INVALID_REQUEST, STORAGE_DOWN, UNSUPPORTED_MEDIA_TYPE, HttpProblem
from farm.errors import Refused
from farm.filing import content_key, new_stamp, stamp_in
from farm.storage import NoSuchObject, Store

router = APIRouter(prefix="/v1/files", tags=["openai"])

JSON_LINES: Final = "application/jsonl"
PREFIX: Final = "file-"

_BATCH_EXPIRY_S: Final = 30 * 24 * 3600  # OpenAI's too
_PIECE_BYTES: Final = 256 * 1024
_MAX_PAGE: Final = 100  # each is read by itself; a client that wants more follows `has_more`
_MAX_SCANNED: Final = 1000
_MAX_NAME_CHARS: Final = 255

FileId = Annotated[str, Path(description="The `id` of a file.", examples=["file-01m823mngen94670qtep"])]


class FileObject(BaseModel):
    """A file, without its bytes."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix time.")
    expires_at: int | None = Field(None, description="Unix time from which on it cannot be had any more.")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FileDeleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileRequest(BaseModel):
    """What is said of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    purpose: Literal["batch"]
    expires_anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    expires_after_s: int | None = Field(
        None, alias="expires_after[seconds]", ge=3600, le=2_592_000, description="30 days, unless said otherwise."
    )


class FilesQuery(BaseModel):
    """Which files to list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=64, description="Only files that come later in the list than this id.")
    limit: int = Field(10_000, ge=1, le=10_000, description=f"Files on a page; it has {_MAX_PAGE} at most.")
    order: Literal["asc", "desc"] = Field("desc", description="`desc`: the newest first.")
    purpose: str | None = Field(None, max_length=64, description="Only files of this purpose.")


class Files:
    """The files of one tenant. Methods raise StorageDown, and HttpProblem for a file that is not there."""

    def __init__(self, store: Store, tenant: str) -> None:
        self._store = store
        self._tenant = tenant
        self._shelf = Shelf(store, tenant, "files", FileObject)

    def put(
        self,
        pieces: Iterable[bytes],
        *,
        filename: str,
        purpose: Literal["batch", "batch_output"],
        stamp: str | None = None,
        created_at: float | None = None,
        expires_after_s: int | None = None,
    ) -> FileObject:
        """Keep a file, piece by piece in bounded memory; with a `stamp` in place of the one that has it."""
        created = int(time.time() if created_at is None else created_at)
        stamp = stamp or new_stamp()
        num_bytes = 0

        def counted() -> Iterator[bytes]:
            nonlocal num_bytes
            for piece in pieces:
                num_bytes += len(piece)
                yield piece

        self._store.put_stream(content_key(self._tenant, stamp), counted(), JSON_LINES)
        record = FileObject(
            id=PREFIX + stamp,
            bytes=num_bytes,
            created_at=created,
            expires_at=None if expires_after_s is None else created + expires_after_s,
            filename=filename,
            purpose=purpose,
        )
        self._shelf.put(stamp, record)
        return record

    def get(self, file_id: str) -> FileObject:
        """Return what is known of a file."""
        try:
            record = self._shelf.get(_stamp_of(file_id))
        except NoSuchObject as error:
            raise _unknown(file_id) from error
        if _is_over(record):
            raise _unknown(file_id)
        return record

    def pieces(self, file_id: str) -> Iterator[bytes]:
        """Yield the bytes of a file that `get` has found."""
        try:
            yield from self._store.pieces(content_key(self._tenant, _stamp_of(file_id)))
        except NoSuchObject as error:
            raise _unknown(file_id) from error

    def delete(self, file_id: str) -> None:
        """Delete a file."""
        self.get(file_id)
        self.forget(file_id)

    def forget(self, file_id: str) -> None:
        """Delete a file, if there is one."""
        stamp = _stamp_of(file_id)
        self._shelf.delete(stamp)
        self._store.delete_many([content_key(self._tenant, stamp)])

    def page(self, query: FilesQuery) -> FileList:
        """Return a page of the list."""
        after = None if query.after is None else _stamp_of(query.after)
        found = self._shelf.newest(after=after) if query.order == "desc" else self._shelf.oldest(after=after)
        limit = min(query.limit, _MAX_PAGE)
        wanted = (
            record
            for record in islice(found, _MAX_SCANNED)
            if query.purpose in (None, record.purpose) and not _is_over(record)
        )
        data = list(islice(wanted, limit + 1))
        shown = data[:limit]
        return FileList(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(data) > limit,
        )


def _stamp_of(file_id: str) -> str:
    stamp = stamp_in(file_id, PREFIX)
    if stamp is None:
        raise _unknown(file_id)
    return stamp


def _is_over(record: FileObject) -> bool:
    return record.expires_at is not None and record.expires_at <= time.time()


def _unknown(file_id: str) -> HttpProblem:
    return HttpProblem(NO_SUCH_FILE, f"there is no file {file_id[:64]!r}")


def _form_schema() -> dict[str, Any]:
    schema = FileRequest.model_json_schema()
    schema["properties"]["file"] = {"type": "string", "format": "binary", "description": "JSON Lines."}
    schema["required"] = ["purpose", "file"]
    return schema


@router.post(
    "",
    response_model=FileObject,
    response_description="Kept.",
    responses=documented(BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, STORAGE_DOWN),
    openapi_extra={"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": _form_schema()}}}},
)
async def create_file(request: Request, farm: Farm, caller: Asker) -> FileObject:
    """Keep a file that a batch is to be made of. What is in it is looked at when the batch is created."""
    max_bytes = farm.settings.max_file_bytes + OVERHEAD_BYTES
    async with read_form(request, max_bytes=max_bytes, max_files=1) as form:
        form.check_files("file")
        file = form.one_file("file")
        asked = form.parse(FileRequest)
        if (file.size or 0) > farm.settings.max_file_bytes:
            choices = [f"0 to {farm.settings.max_file_bytes}"]
            raise Refused(
                "has too many bytes; make several batches of it", field="file", value=file.size, choices=choices
            )
        keep = partial(
            Files(farm.store, caller.tenant).put,
            iter(partial(file.file.read, _PIECE_BYTES), b""),
            filename=plain_name(file.filename or "file"),
            purpose=asked.purpose,
            expires_after_s=asked.expires_after_s or _BATCH_EXPIRY_S,
        )
        return await run_in_threadpool(keep)


def plain_name(name: str) -> str:
    """Return a name without folders, and without what nobody could print."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(each if each.isprintable() else "_" for each in last)[:_MAX_NAME_CHARS] or "file"


@router.get("", response_model=FileList, responses=documented(NO_SUCH_FILE, INVALID_REQUEST, STORAGE_DOWN))
def list_files(farm: Farm, caller: Asker, query: Annotated[FilesQuery, Query()]) -> FileList:
    """List files, newest first. While `has_more`, ask again with `after` the last one's id."""
    return Files(farm.store, caller.tenant).page(query)


@router.get("/{file_id}", response_model=FileObject, responses=documented(NO_SUCH_FILE, INVALID_REQUEST, STORAGE_DOWN))
def get_file(farm: Farm, caller: Asker, file_id: FileId) -> FileObject:
    """Describe a file."""
    return Files(farm.store, caller.tenant).get(file_id)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    response_description="Its bytes.",
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **documented(NO_SUCH_FILE, INVALID_REQUEST, STORAGE_DOWN),
    },
)
def get_file_content(farm: Farm, caller: Asker, file_id: FileId) -> StreamingResponse:
    """Return the bytes of a file."""
    files = Files(farm.store, caller.tenant)
    record = files.get(file_id)
    pieces = files.pieces(file_id)
    first = next(pieces, b"")  # what cannot be read has a status of its own
    headers = {"Content-Length": str(record.bytes)}
    return StreamingResponse(chain([first], pieces), media_type="application/octet-stream", headers=headers)


@router.delete(
    "/{file_id}", response_model=FileDeleted, responses=documented(NO_SUCH_FILE, INVALID_REQUEST, STORAGE_DOWN)
)
def delete_file(farm: Farm, caller: Asker, file_id: FileId) -> FileDeleted:
    """Delete a file. A batch that was made of it goes on."""
    Files(farm.store, caller.tenant).delete(file_id)
    return FileDeleted(id=file_id)
