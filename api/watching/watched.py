"""A job that somebody watches, and one who watches it: what is known of it, and how much of that he has been told.

Everything here is memory and belongs to the event loop; who reads the ledger and who listens is in watcher.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from farm.errors import LedgerDown, UnknownJob
from farm.ledger import ImageChange, JobStatus, Look, PreviewTold

GAP_S: Final = 0.1
"""Between two reads of a job that somebody watches, and between two things told to one who does."""

_REMEMBERED: Final = 2000  # ends of images; who is further behind reads the ledger's log for himself
_MAX_PREVIEWED: Final = 4096  # images in seats


class WatcherClosed(LedgerDown):
    """The API stops: whoever waited connects again, to the next one."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a Watch brings, each as far as it is news.

    Of a job that has ended, images come before the status that counts them.
    """

    ended: tuple[ImageChange, ...] = ()
    status: JobStatus | None = None
    previews: tuple[PreviewTold, ...] = ()
    outage: LedgerDown | None = None


@dataclass(slots=True)
class Watched:
    """A job as it was when the reader last looked."""

    job_id: str
    watchers: int = 0
    version: int = 0  # counts what is new to whoever watches
    status: JobStatus | None = None
    error: LedgerDown | UnknownJob | None = None
    num_ended: int | None = None  # None before the first look
    recent: deque[ImageChange] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))  # the last before num_ended
    previews: dict[int, PreviewTold] = field(default_factory=dict)
    looked_at_s: float = float("-inf")
    timer: asyncio.Handle | None = None  # of the next look
    due_at_s: float = 0.0  # when that is; uvloop's handles cannot always tell
    waiting: set[asyncio.Future[None]] = field(default_factory=set)
    memo: dict[str, Any] = field(default_factory=dict)

    def take(self, look: Look) -> None:
        """Take over what a look has found."""
        is_new = self.error is not None or self.status is None or not is_same(self.status, look.status)
        self.error, self.status = None, look.status
        if self.num_ended is None or self.num_ended + len(look.ended) != look.num_ended:
            # The first look, or more has happened than one brings: those who want it read it themselves.
            self.recent.clear()
            self.previews.clear()
        self.recent.extend(look.ended)
        for change in look.ended:
            self.previews.pop(change.index, None)
        is_new = is_new or look.num_ended != self.num_ended
        self.num_ended = look.num_ended
        if is_new:
            self.tell()

    def fail(self, error: LedgerDown | UnknownJob) -> None:
        """Take over that a look found nothing."""
        is_new = type(self.error) is not type(error)
        self.error = error
        if is_new:
            self.tell()

    def show(self, previews: Iterable[PreviewTold]) -> None:
        """Take over how far images in seats are."""
        if len(self.previews) > _MAX_PREVIEWED:
            self.previews.clear()
        for told in previews:
            self.previews.pop(told.index, None)
            self.previews[told.index] = told
        self.tell()

    def tell(self) -> None:
        """Wake all who wait: there is something new."""
        self.version += 1
        self.wake()

    def wake(self) -> None:
        """Wake all who wait."""
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting.clear()

    async def wait(self) -> None:
        """Wait until somebody wakes us."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.add(future)
        try:
            await future
        finally:
            self.waiting.discard(future)

    def ended_from(self, position: int, limit: int) -> tuple[ImageChange, ...] | None:
        """Return up to `limit` ends from a position on; None when that is longer ago than we remember."""
        first = (self.num_ended or 0) - len(self.recent)
        if position < first:
            return None
        return tuple(self.recent[at - first] for at in range(position, min(position + limit, self.num_ended or 0)))


class Watch:
    """One who watches a job."""

    def __init__(
        self,
        watched: Watched,
        *,
        after: int | None,
        check_open: Callable[[], None],
        read_ended: Callable[[str, int, int], Awaitable[tuple[ImageChange, ...]]],
    ) -> None:
        self.position = after
        """How many ends of images have been told, of all there are; None before the first thing is told."""
        self.memo = watched.memo
        """For those who watch the same job: what they make of it once for all of them. Gone with the last of them."""
        self._watched = watched
        self._check_open = check_open
        self._read_ended = read_ended
        self._version = -1
        self._told: JobStatus | None = None
        self._told_at_s = float("-inf")
        self._told_previews: dict[int, PreviewTold] = {}
        self._is_told_of_outage = False

    async def next(self, *, limit: int = 200) -> Seen:
        """Return what is new, with up to `limit` ends of images, when there is something; not sooner than GAP_S again.

        An outage of the ledger is told once, and that it is over by the status that comes next. Raises UnknownJob, and
        WatcherClosed. A call that is cancelled loses nothing.
        """
        now_s = asyncio.get_running_loop().time
        if (rest_s := self._told_at_s + GAP_S - now_s()) > 0 and not self._is_behind():
            await asyncio.sleep(rest_s)
        while True:
            self._check_open()
            version = self._watched.version
            if version == self._version and not self._is_behind():
                await self._watched.wait()
                continue
            seen = await self._collect(limit)
            self._version = version
            if seen is not None:
                self._told_at_s = now_s()
                return seen

    def _is_behind(self) -> bool:
        num_ended = self._watched.num_ended
        if self.position is None or num_ended is None or self._watched.error is not None:
            return False
        return self.position < num_ended

    async def _collect(self, limit: int) -> Seen | None:
        """Return what has not been told yet; None when there is nothing."""
        watched = self._watched
        if isinstance(watched.error, UnknownJob):
            raise UnknownJob(str(watched.error), field=watched.error.field, value=watched.error.value)
        if watched.error is not None:
            if self._is_told_of_outage:
                return None
            self._is_told_of_outage = True
            return Seen(outage=watched.error)
        status, num_ended = watched.status, watched.num_ended
        if status is None or num_ended is None:
            return None
        # A log that is shorter than what was told of it has been lost with all else: there is nothing to tell again.
        position = num_ended if self.position is None else min(self.position, num_ended)
        ended: tuple[ImageChange, ...] = ()
        if position < num_ended:
            recent = watched.ended_from(position, limit)
            ended = await self._read_ended(watched.job_id, position, limit) if recent is None else recent
        self.position = position + len(ended) if ended else num_ended
        previews = self._new_previews(ended)
        is_over, self._is_told_of_outage = self._is_told_of_outage, False
        is_news = is_over or self._told is None or not is_same(self._told, status)
        if not is_news or (status.state.is_final and self.position < num_ended):
            return Seen(ended, previews=previews) if ended or previews else None
        self._told = status
        return Seen(ended, status, previews)

    def _new_previews(self, ended: tuple[ImageChange, ...]) -> tuple[PreviewTold, ...]:
        for change in ended:
            self._told_previews.pop(change.index, None)
        now = self._watched.previews
        new = tuple(told for index, told in now.items() if self._told_previews.get(index) != told)
        self._told_previews = dict(now)
        return new


def is_same(one: JobStatus, other: JobStatus) -> bool:
    """Whether nothing but time lies between two statuses of a job: its pace and its end move on with that."""
    return replace(one, images_per_s=None, eta_s=None) == replace(other, images_per_s=None, eta_s=None)
