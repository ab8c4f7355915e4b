"""What happens on the whole farm, for any number of clients that want to see all of it: jobs and throughput.

Each job that has changed is read once a moment, each rate once in a few seconds, for all who listen. A client that is
slow gets the latest of each job; one that cannot keep up at all is told to look for himself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from fastapi.concurrency import run_in_threadpool

from api.report_schemas import Throughput
from api.schemas import Job
from api.watching import sse
from api.watching.watched import WatcherClosed
from api.watching.watcher import Watcher
from farm.errors import LedgerDown
from farm.jobs import Header
from farm.ledger import Heard, JobStatus, Ledger

log = logging.getLogger(__name__)

_ROUND_S: Final = 1.0
_THROUGHPUT_EVERY_S: Final = 5.0
_JOBS_A_ROUND: Final = 200
_MAX_PENDING: Final = 1000  # jobs that one client is behind with

SYNC: Final = sse.event("sync", '{"object":"sync"}')
_OUTAGE: Final = sse.event("outage", '{"object":"outage","detail":"the ledger does not answer; rendering goes on"}')


class Reader:
    """One who listens: what he has not been told yet."""

    def __init__(self, sees: Callable[[Header], bool]) -> None:
        self.sees = sees
        # Each event by what it is about: the latest replaces earlier ones.
        self._pending: dict[str, bytes] = {"sync": SYNC}
        self._is_closed = False
        self._is_new = asyncio.Event()
        self._is_new.set()

    def put(self, about: str, text: bytes) -> None:
        """Have something told."""
        self._pending.pop(about, None)
        if len(self._pending) >= _MAX_PENDING:
            self._pending = {"sync": SYNC}
        self._pending[about] = text
        self._is_new.set()

    def close(self) -> None:
        """Have the next call of `next` raise WatcherClosed."""
        self._is_closed = True
        self._is_new.set()

    async def next(self) -> bytes:
        """Return the events that have not been told yet, when there are some. Raises WatcherClosed."""
        await self._is_new.wait()
        if self._is_closed:
            raise WatcherClosed("the API stops")
        self._is_new.clear()
        told, self._pending = self._pending, {}
        return b"".join(told.values())


class Bulletin:
    """Reads what happens on the farm, as long as somebody listens."""

    def __init__(self, ledger: Ledger, watcher: Watcher, *, gpu_hour_price: float | None) -> None:
        self._ledger = ledger
        self._watcher = watcher
        self._gpu_hour_price = gpu_hour_price
        self._readers: set[Reader] = set()
        self._changed: dict[str, None] = {}  # jobs, the one that waits longest first
        self._editor: asyncio.Task[None] | None = None
        self._rates: bytes | None = None  # as they were told last, for who comes in between

    @asynccontextmanager
    async def reading(self, sees: Callable[[Header], bool]) -> AsyncIterator[Reader]:
        """Listen for the length of a `with` block; `sees` says whose jobs are told."""
        reader = Reader(sees)
        self._readers.add(reader)
        if self._editor is None or self._editor.done():
            self._rates = None
            self._editor = asyncio.create_task(self._edit())
        elif self._rates is not None:
            reader.put("throughput", self._rates)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    async def _edit(self) -> None:
        """Read and tell, round after round, until nobody listens."""
        now_s = asyncio.get_running_loop().time
        self._changed.clear()
        throughput_at_s = float("-inf")
        is_away = False
        with self._watcher.overhearing(self._hear):
            while self._readers and not self._watcher.is_closed:
                try:
                    await self._tell_jobs()
                    if now_s() >= throughput_at_s:
                        throughput_at_s = now_s() + _THROUGHPUT_EVERY_S
                        self._rates = await run_in_threadpool(self._throughput)
                        self._tell("throughput", self._rates)
                    is_away = False
                except LedgerDown:
                    if not is_away:
                        self._tell("outage", _OUTAGE)
                    is_away = True
                except Exception:
                    log.exception("Telling of the farm failed; going on", extra={"action": "bulletin_failed"})
                await asyncio.sleep(_ROUND_S)
        for reader in self._readers:
            reader.close()

    def _hear(self, heard: Heard) -> None:
        if heard.is_gap:
            self._tell("sync", SYNC)
        self._changed.update(dict.fromkeys(heard.jobs))

    async def _tell_jobs(self) -> None:
        ids = list(self._changed)[:_JOBS_A_ROUND]
        statuses = await asyncio.gather(*(self._watcher.job(job_id) for job_id in ids), return_exceptions=True)
        for job_id, status in zip(ids, statuses, strict=True):
            if isinstance(status, LedgerDown):
                raise status
            del self._changed[job_id]
            if isinstance(status, JobStatus):  # or it is gone already
                text = sse.event("job", Job.of(status, self._gpu_hour_price).model_dump_json())
                for reader in self._readers:
                    if reader.sees(status.header):
                        reader.put(job_id, text)

    def _tell(self, about: str, text: bytes) -> None:
        for reader in self._readers:
            reader.put(about, text)

    def _throughput(self) -> bytes:
        stored = self._ledger.images_by_model()
        report = Throughput.of(self._ledger.throughput(), images_stored=stored, gpu_hour_price=self._gpu_hour_price)
        return sse.event("throughput", report.model_dump_json())
