"""What of the store is old enough to go, and its going: files of ended jobs, and what clients brought along.

A job is as old as the newest of its objects, and goes as a whole; a picture is as old as its last upload, a file of an
OpenAI client as its writing. Whatever the
ledger may still need stays: the objects of a job that has not ended, and the pictures and jobs that one names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final

from farm.errors import UnknownJob
from farm.filing import FILED, job_of_key

if TYPE_CHECKING:
    from farm.jobs import Entry
    from farm.ledger import JobStatus, Ledger
    from farm.storage import Store, StoredObject

OnProgress = Callable[[int, int], None]
"""Hears of objects and bytes, as they are seen or deleted."""

_JOBS: Final = "jobs/"
_UPLOADS: Final = "uploads/"
_CONTENT: Final = "content/"
_PAGE: Final = 500  # jobs, or prompts of one
_DELETED_AT_ONCE: Final = 1000


@dataclass(slots=True)
class Amount:
    """How many objects, and how large."""

    objects: int = 0
    num_bytes: int = 0

    def add(self, found: StoredObject) -> None:
        """Count one more."""
        self.objects += 1
        self.num_bytes += found.num_bytes


@dataclass(frozen=True, slots=True)
class Survey:
    """What would be deleted."""

    jobs: dict[str, Amount]  # by id
    entries: Amount  # of the index of images by their content (worker/reuse.py): it goes with the jobs
    uploads: Amount
    files: Amount  # and batches, of OpenAI clients
    spared: int  # jobs, uploads and files that are old enough and still needed

    @property
    def total(self) -> Amount:
        """All of it."""
        parts = [*self.jobs.values(), self.entries, self.uploads, self.files]
        return Amount(sum(part.objects for part in parts), sum(part.num_bytes for part in parts))


@dataclass(frozen=True, slots=True)
class Needed:
    """What jobs that have not ended need: themselves, and what they start from."""

    jobs: set[str] = field(default_factory=set)
    uploads: set[str] = field(default_factory=set)


class Pruning:
    """Finds and deletes what was last written before `before` (Unix time).

    Without a ledger nobody knows what is still needed, and nothing is spared. Methods raise StorageDown and LedgerDown;
    what had been deleted by then stays deleted, and doing all again is safe.
    """

    def __init__(self, store: Store, ledger: Ledger | None, *, before: float) -> None:
        self._store = store
        self._ledger = ledger
        self._before = before

    def survey(
        self, *, jobs: bool, uploads: bool, files: bool = False, on_progress: OnProgress = lambda *_: None
    ) -> Survey:
        """Look for what is old; deletes nothing."""
        old_jobs = dict(self._old_jobs(on_progress)) if jobs else {}
        entries, pictures = Amount(), []
        filed = list(self._old(FILED, on_progress)) if files else []
        if jobs:
            for found in self._old(_CONTENT, on_progress):
                entries.add(found)
        if uploads:
            pictures = list(self._old(_UPLOADS, on_progress))
        # Asked last: whatever was opened meanwhile has objects that are not old.
        needed = self._needed()
        going = {job: amount for job, amount in old_jobs.items() if job not in needed.jobs}
        amount = Amount()
        for found in pictures:
            if found.key not in needed.uploads:
                amount.add(found)
        leaving = Amount()
        for found in filed:
            if job_of_key(found.key) not in needed.jobs:
                leaving.add(found)
        spared = len(old_jobs) - len(going) + len(pictures) - amount.objects + len(filed) - leaving.objects
        return Survey(going, entries, amount, leaving, spared)

    def delete(self, survey: Survey, on_progress: OnProgress = lambda *_: None) -> Amount:
        """Delete what a survey found, as far as it is still old and not needed; return how much that was."""
        deleted, needed = Amount(), self._needed()
        for job in survey.jobs:
            if job not in needed.jobs and not self._is_open(job):
                self._delete(self._store.objects(f"{_JOBS}{job}/"), deleted, on_progress)
        if survey.entries.objects:
            self._delete(self._old(_CONTENT), deleted, on_progress)
        if survey.uploads.objects:
            going = (found for found in self._old(_UPLOADS) if found.key not in needed.uploads)
            self._delete(going, deleted, on_progress)
        if survey.files.objects:
            leaving = (found for found in self._old(FILED) if job_of_key(found.key) not in needed.jobs)
            self._delete(leaving, deleted, on_progress)
        return deleted

    def _old_jobs(self, on_progress: OnProgress) -> Iterator[tuple[str, Amount]]:
        for job, objects in groupby(self._store.objects(_JOBS), key=lambda found: found.key.split("/")[1]):
            amount, newest_at = Amount(), 0.0
            for found in objects:
                amount.add(found)
                newest_at = max(newest_at, found.modified_at)
                on_progress(1, found.num_bytes)
            if newest_at < self._before:
                yield job, amount

    def _old(self, prefix: str, on_progress: OnProgress = lambda *_: None) -> Iterator[StoredObject]:
        for found in self._store.objects(prefix):
            on_progress(1, found.num_bytes)
            if found.modified_at < self._before:
                yield found

    def _needed(self) -> Needed:
        return Needed() if self._ledger is None else needed_of(self._ledger)

    def _is_open(self, job: str) -> bool:
        """Whether the job has not ended: failed images of one that had may be asked for again at any moment."""
        if self._ledger is None:
            return False
        try:
            return not self._ledger.job(job).state.is_final
        except UnknownJob:
            return False

    def _delete(self, objects: Iterator[StoredObject], deleted: Amount, on_progress: OnProgress) -> None:
        while batch := list(islice(objects, _DELETED_AT_ONCE)):
            self._store.delete_many([found.key for found in batch])
            for found in batch:
                deleted.add(found)
            on_progress(len(batch), sum(found.num_bytes for found in batch))


def needed_of(ledger: Ledger) -> Needed:
    """Return what all jobs need that have not ended."""
    needed = Needed()
    for status in _all_jobs(ledger):
        if status.state.is_final:
            continue
        job = status.header.id
        needed.jobs.add(job)
        for source in _sources(_all_entries(ledger, job, status.header.num_entries)):
            if source.startswith(_JOBS):
                needed.jobs.add(source.split("/")[1])
            else:
                needed.uploads.add(source)
    return needed


def _all_jobs(ledger: Ledger) -> Iterator[JobStatus]:
    before: str | None = None
    while page := ledger.jobs(_PAGE, before=before):
        yield from page
        before = page[-1].header.id


def _all_entries(ledger: Ledger, job: str, num_entries: int) -> Iterator[Entry]:
    for first in range(0, num_entries, _PAGE):
        yield from ledger.entries(job, first, min(first + _PAGE, num_entries) - 1)


def _sources(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield the pictures that prompts name."""
    for entry in entries:
        yield from filter(None, (entry.image, entry.mask_image))
        yield from (net.image for net in entry.controlnets)
