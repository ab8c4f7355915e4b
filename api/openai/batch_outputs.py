"""The chore at a batch's end: its output and error files, written from the ledger and the store in bounded memory.

Done again it writes the same files under the same ids, so that any process may begin anew where another died.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, Final

from api.links import Links
from api.openai.answers import ImageData, as_url, encoded, images_answer
from api.openai.batch_lines import Noted, numbered_lines
from api.openai.batch_records import PREFIX, BatchRecord, Outcome, batch_of_job
from api.openai.errors import ErrorBody
from api.openai.files import PREFIX as FILE_PREFIX
from api.openai.files import Files
from api.openai.shelves import Shelf
from api.parts import Parts
from farm.errors import UnknownJob
from farm.filing import lines_key, stamp_of
from farm.jobs import JobState, UnitState
from farm.storage import NoSuchObject, object_key

if TYPE_CHECKING:
    from farm.jobs import Entry
    from farm.ledger import Chore, ImageStatus, JobStatus

log = logging.getLogger(__name__)

CHORE: Final = "openai_batch"
"""The kind of the chore."""

URL_EXPIRY_S: Final = 604_800
"""Of URLs in output files: as long as S3 signs for, a week."""

_PAGE: Final = 200  # images that the ledger is asked for at once


def keep_outputs(farm: Parts, chore: Chore) -> None:
    """Write the files of a batch that has ended, and note them with it; raises StorageDown and LedgerDown."""
    while True:
        try:
            job = farm.ledger.job(chore.job)
        except UnknownJob:
            return
        if not job.state.is_final:
            return  # failed images are tried again: there will be another chore when it ends again
        if _is_kept(farm, job):
            return


def _is_kept(farm: Parts, job: JobStatus) -> bool:
    """Write the files of this end of a job; return False when it went on meanwhile, and ended once more."""
    batch_id, tenant = batch_of_job(job.header.id), job.header.tenant
    stamp = batch_id.removeprefix(PREFIX)
    shelf = Shelf(farm.store, tenant, "batches", BatchRecord)
    try:
        record = shelf.get(stamp)
    except NoSuchObject:
        log.warning("%s has no record", batch_id, extra={"action": "batch_lost", "job": job.header.id})
        return True
    earlier = record.outcome
    if earlier is not None and earlier.job_finished_at == job.finished_at:
        return True
    links = Links(farm.store, record.base if farm.settings.links_through_api else None)
    lines = _Lines(farm, job, tenant, stamp, links)
    output = lines.keep(is_error=False, expires_after_s=record.output_expires_after_s)
    error = lines.keep(is_error=True, expires_after_s=record.output_expires_after_s)
    if farm.ledger.job(job.header.id).finished_at != job.finished_at:
        return False
    outcome = Outcome(
        job_finished_at=job.finished_at or 0.0,
        is_cancelled=job.state is JobState.CANCELLED,
        completed=output.num_lines,
        failed=error.num_lines,
        output_stamp=output.stamp,
        error_stamp=error.stamp,
        written_at=time.time(),
    )
    shelf.put(stamp, record.model_copy(update={"outcome": outcome}))
    extra = {"action": "batch_ended", "job": job.header.id, "completed": outcome.completed, "failed": outcome.failed}
    log.info("Wrote the files of %s", batch_id, extra=extra)
    if earlier is not None:
        _delete(farm, tenant, {earlier.output_stamp, earlier.error_stamp} - {output.stamp, error.stamp})
    return True


def _delete(farm: Parts, tenant: str, stamps: set[str | None]) -> None:
    """Delete the files of an earlier end."""
    for stamp in filter(None, stamps):
        Files(farm.store, tenant).forget(FILE_PREFIX + stamp)


@dataclass(slots=True)
class _Kept:
    """A file of lines."""

    stamp: str | None  # None: it has no lines, and does not exist
    num_lines: int


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the input with all that became of it."""

    position: int
    note: Noted
    entry: Entry
    images: list[ImageStatus] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every image is there."""
        return all(image.state is UnitState.STORED for image in self.images)


class _Lines:
    """The lines of a batch whose job has ended."""

    def __init__(self, farm: Parts, job: JobStatus, tenant: str, stamp: str, links: Links) -> None:
        self._links = links
        self._farm = farm
        self._job = job
        self._tenant = tenant
        self._stamp = stamp
        self._files = Files(farm.store, tenant)

    def keep(self, *, is_error: bool, expires_after_s: int | None) -> _Kept:
        """Write the file of the lines that failed, or of the others, under an id that follows from batch and end."""
        num_lines = 0

        def counted() -> Iterator[bytes]:
            nonlocal num_lines
            for line in self._all():
                if line.is_whole != is_error:
                    num_lines += 1
                    yield json.dumps(self._told(line), separators=(",", ":")).encode() + b"\n"

        pieces = counted()
        first = next(pieces, None)
        if first is None:
            return _Kept(None, 0)
        name = "error" if is_error else "output"
        finished_at = self._job.finished_at or 0.0
        digest = hashlib.sha256(f"{self._job.header.id} {finished_at} {name}".encode()).digest()
        stamp = stamp_of(digest, finished_at)
        self._files.put(
            chain([first], pieces),
            filename=f"{PREFIX}{self._stamp}_{name}.jsonl",
            purpose="batch_output",
            stamp=stamp,
            created_at=finished_at,
            expires_after_s=expires_after_s,
        )
        return _Kept(stamp, num_lines)

    def _all(self) -> Iterator[_Line]:
        """Yield the lines in order, from what was noted of them and the ledger's images."""
        notes = self._notes()
        for position, (entry, images) in enumerate(self._by_entry()):
            yield _Line(position, next(notes), entry, images)

    def _notes(self) -> Iterator[Noted]:
        pieces = self._farm.store.pieces(lines_key(self._tenant, self._stamp))
        return (Noted(*json.loads(line or b"")) for _, line in numbered_lines(pieces))

    def _by_entry(self) -> Iterator[tuple[Entry, list[ImageStatus]]]:
        header, ledger = self._job.header, self._farm.ledger
        entries: dict[int, Entry] = {}

        def images() -> Iterator[ImageStatus]:
            for offset in range(0, header.total, _PAGE):
                page = ledger.images(header.id, offset=offset, limit=_PAGE)
                first, last = page[0].prompt_index, page[-1].prompt_index
                entries.update(zip(range(first, last + 1), ledger.entries(header.id, first, last), strict=True))
                yield from page

        for index, group in groupby(images(), key=lambda image: image.prompt_index):
            found = list(group)  # may read on to the next page
            yield entries.pop(index), found

    def _told(self, line: _Line) -> dict[str, Any]:
        """Return a line of the output or error file."""
        told: dict[str, Any] = {
            "id": f"batch_req_{self._stamp}_{line.position}",
            "custom_id": line.note.custom_id,
            "response": None,
            "error": None,
        }
        stored = [image for image in line.images if image.state is UnitState.STORED]
        failed = next((image for image in line.images if image.state is UnitState.FAILED), None)
        if failed is None and len(stored) < len(line.images):
            told["error"] = {"code": "batch_cancelled", "message": "cancelled before all images were rendered"}
            return told
        status = 200
        body = images_answer(
            self._job.header,
            stored,
            [self._shown(image, line.note) for image in stored],
            size=(line.entry.width, line.entry.height),
        ).model_dump(mode="json")
        if failed is not None:
            status = 500
            message = f"{failed.error or 'an image failed'} (image {failed.index} of {self._job.header.id})"
            error = ErrorBody(message=message, type="server_error", param=None, code="render_failed")
            # What is stored of it is told beside.
            body = {"error": error.model_dump(), "data": body["data"]}
        told["response"] = {"status_code": status, "request_id": self._job.header.id, "body": body}
        return told

    def _shown(self, image: ImageStatus, note: Noted) -> ImageData:
        header, store = self._job.header, self._farm.store
        if note.is_url:
            return as_url(self._links, header, image, expiry_s=URL_EXPIRY_S)
        try:
            return encoded(image, store.get(object_key(header.id, image.index, header.output.format)))
        except NoSuchObject:
            return ImageData(seed=image.seed)  # somebody has deleted it; the others are not to wait for that
