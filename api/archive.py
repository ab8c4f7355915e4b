"""A job's images as one zip that is made while it is sent: nothing is compressed, and nothing kept but its directory.

What could not be had is never left out in silence: the archive names it in MISSING.txt, and one that the storage or the
ledger fails in the middle of is broken off, so that no client takes it for whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Final, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from zipstream import ZipStream  # type: ignore[import-untyped]  # it has no annotations

from api.guard.callers import OWN_JOB_PROBLEMS, OwnJob
from api.parts import Farm, Parts
from api.problems import STORAGE_DOWN, documented
from api.streaming import Streamed
from farm.errors import Refused, Transient
from farm.filenames import file_name
from farm.jobs import Header, UnitState
from farm.ledger import ImageStatus, JobStatus
from farm.storage import NoSuchObject, manifest_key, object_key

router = APIRouter(prefix="/v1/jobs/{job_id}/archive", tags=["jobs"])

MAX_IMAGES: Final = 50_000
"""In one archive, for its directory is kept until its end, half a kilobyte for each."""

_PAGE: Final = 200
_AHEAD: Final = 4  # images that are read while one is sent
_TRIES: Final = 4
_PAUSE_S: Final = 1.0
_MAX_MISSING_LINES: Final = 10_000

T = TypeVar("T")


class ArchiveQuery(BaseModel):
    """Which images of a job to pack."""

    model_config = ConfigDict(extra="forbid")

    images: str | None = Field(
        None,
        pattern=r"^[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*$",
        max_length=1000,
        description=f"Only these, such as `0-99,105`; all by default. At most {MAX_IMAGES:,} at a time.",
        examples=["0-99,105"],
    )


class Archive(Streamed):
    """A zip that is sent as it is made."""

    media_type = "application/zip"

    def __init__(self, pieces: AsyncIterator[bytes], status_code: int = 200, *, name: str) -> None:
        super().__init__(pieces, status_code, headers={"Content-Disposition": f'attachment; filename="{name}.zip"'})


@router.get(
    "",
    response_class=Archive,
    responses={
        200: {
            "description": "The images that are stored, named as `farm download` names them; `manifest.jsonl`, once the"
            " job has one; and `MISSING.txt`, unless every image that was asked for is there.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **documented(STORAGE_DOWN, *OWN_JOB_PROBLEMS),
    },
)
async def get_archive(farm: Farm, job: OwnJob, query: Annotated[ArchiveQuery, Query()]) -> Archive:
    """Fetch a job's images as a zip: those that are stored by now."""
    wanted = _ranges(query.images, job.header.total)
    pieces = _pieces(farm, job, wanted)
    # The first before the answer: a storage that is away is 503 then, and not an archive that breaks off.
    first = await anext(pieces)
    return Archive(_chain(first, pieces), name=job.header.id)


def _ranges(text: str | None, total: int) -> list[range]:
    """Return the images that are asked for, in order and each once, there or not; raises Refused for too many."""
    ranges: list[range] = []
    for part in [f"0-{total - 1}"] if text is None else text.split(","):
        first, last = sorted(map(int, (part if "-" in part else f"{part}-{part}").split("-")))
        ranges.append(range(first, last + 1))
    ranges.sort(key=lambda each: each.start)
    joined: list[range] = []
    for each in ranges:
        if joined and each.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, each.stop))
        else:
            joined.append(each)
    if sum(max(0, min(each.stop, total) - each.start) for each in joined) > MAX_IMAGES:
        message = f"an archive has {MAX_IMAGES:,} images at most: ask for it in parts, such as 0-{MAX_IMAGES - 1}"
        raise Refused(message, field="images", value=text)
    return joined


async def _chain(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _pieces(farm: Parts, job: JobStatus, wanted: Sequence[range]) -> AsyncGenerator[bytes]:
    """Yield the archive. Raises StorageDown and LedgerDown when one of these stays away."""
    header = job.header
    archive, missing = ZipStream(), _Missing()
    there = [range(each.start, min(each.stop, header.total)) for each in wanted]
    async with contextlib.aclosing(_read_ahead(farm, header, there)) as files:
        async for status, data in files:
            if data is None:
                missing.add(status)
                continue
            archive.add(data, _name(header, status))
            yield b"".join(archive.all_files())
    for each in wanted:
        if each.stop > header.total:
            missing.add_range(max(each.start, header.total), each.stop - 1, "the job has no such image")
    if job.manifest_at is not None:
        with contextlib.suppress(NoSuchObject):  # deleted since, by whoever may
            archive.add(await _patiently(farm, lambda: farm.store.get(manifest_key(header.id))), "manifest.jsonl")
    if missing:
        archive.add(missing.text(), "MISSING.txt")
    yield b"".join(archive.finalize())


async def _read_ahead(
    farm: Parts, header: Header, wanted: Sequence[range]
) -> AsyncGenerator[tuple[ImageStatus, bytes | None]]:
    """Yield each image with its file, None when there is none; a few are read at once."""
    reading: deque[tuple[ImageStatus, asyncio.Task[bytes | None]]] = deque()
    try:
        for page in (range(start, min(start + _PAGE, each.stop)) for each in wanted for start in each[::_PAGE]):
            for status in await _patiently(farm, _page_of(farm, header, page)):
                reading.append((status, asyncio.create_task(_read(farm, header, status))))
                if len(reading) > _AHEAD:
                    first, task = reading.popleft()
                    yield first, await task
        while reading:
            first, task = reading.popleft()
            yield first, await task
    finally:
        for _, task in reading:
            task.cancel()
        await asyncio.gather(*(task for _, task in reading), return_exceptions=True)


def _page_of(farm: Parts, header: Header, page: range) -> Callable[[], list[ImageStatus]]:
    return lambda: farm.ledger.images(header.id, offset=page.start, limit=len(page))


async def _read(farm: Parts, header: Header, status: ImageStatus) -> bytes | None:
    if status.state is not UnitState.STORED:
        return None
    key = object_key(header.id, status.index, header.output.format)
    try:
        return await _patiently(farm, lambda: farm.store.get(key))
    except NoSuchObject:
        return None


async def _patiently(farm: Parts, call: Callable[[], T]) -> T:
    """Call something in one of the threads that archives have; a short outage is waited out."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return await to_thread.run_sync(call, abandon_on_cancel=True, limiter=farm.packers)
        except Transient:
            if not tries_left:
                raise
            await asyncio.sleep(_PAUSE_S)
    raise AssertionError("the last try returns or raises")


def _name(header: Header, status: ImageStatus) -> str:
    suffix = PurePosixPath(object_key(header.id, status.index, header.output.format)).suffix
    return file_name(index=status.index, prompt=status.prompt, seed=status.seed, suffix=suffix)


class _Missing:
    """Which images are not in the archive, and why; neighbours with one reason share a line."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, str]] = []
        self._num_images = 0

    def __bool__(self) -> bool:
        return bool(self._num_images)

    def add(self, status: ImageStatus) -> None:
        """Note an image that has no file."""
        match status.state:
            case UnitState.STORED:
                reason = "its file has vanished from the storage"
            case UnitState.FAILED:
                reason = f"failed: {' '.join((status.error or 'no reason given').split())}"
            case _:
                reason = f"not stored: {status.state}"
        self.add_range(status.index, status.index, reason)

    def add_range(self, first: int, last: int, reason: str) -> None:
        """Note images `first` to `last`, which follow on those noted before."""
        self._num_images += last - first + 1
        if self._lines and self._lines[-1][1:] == (first - 1, reason):
            self._lines[-1] = (self._lines[-1][0], last, reason)
        elif len(self._lines) < _MAX_MISSING_LINES:
            self._lines.append((first, last, reason))

    def text(self) -> bytes:
        """Return the file that tells of them."""
        return "".join(f"{line}\n" for line in self._told()).encode()

    def _told(self) -> Iterator[str]:
        yield f"{self._num_images} of the images that were asked for are not in this archive:"
        for first, last, reason in self._lines:
            yield f"{first if first == last else f'{first}-{last}'}\t{reason}"
        if len(self._lines) == _MAX_MISSING_LINES:
            yield "... and maybe more"
