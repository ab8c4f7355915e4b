"""Whoever waits for what happens to a job waits here: any number of clients, one listener, one reader.

A thread hears the ledger's hints and wakes those who watch the jobs that they name. One task reads for all of them, so
that a job costs one read per 100 ms however many watch it; a read that no hint asked for comes every few seconds, for
hints may be lost. What has ended is told by the ledger's log, never by the hints: nothing is missed or told twice.
While a read takes long, those who only ask how a job stands are told how it stood a moment ago (memory.py).

Nothing runs before somebody asks. All methods belong to the event loop; `close` ends whatever waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NamedTuple, TypeVar

from api.watching.memory import Memory
from api.watching.watched import GAP_S, Seen, Watch, Watched, WatcherClosed
from farm.errors import LedgerDown, UnknownJob
from farm.ledger import Heard, ImageChange, JobStatus, Ledger, Look

log = logging.getLogger(__name__)

PATIENCE_S: Final = 30.0
"""How long those wait out an outage of the ledger who do not say how long."""

_POLL_S: Final = 3.0
_SHORTEST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.015
_REST: Final = 4  # times as long as a read took
_GATHERING_S: Final = 0.02  # hints that come within it are handed on together
_LONG_S: Final = 0.02  # for a read
_HEARING_S: Final = 0.25
_OUTAGE_PAUSE_S: Final = 1.0
_FAREWELL_S: Final = 1.0

T = TypeVar("T")


class Question(NamedTuple):
    """One who waits to be told how a job stands."""

    answer: asyncio.Future[JobStatus]
    may_be_old: bool


Asked = dict[str, list[Question]]


class Watcher:
    """Turns what happens in the ledger into something to wait for, for all clients of one API process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._watched: dict[str, Watched] = {}
        self._due: set[str] = set()
        self._asked: Asked = defaultdict(list)
        self._memory = Memory(ledger)
        self._takes_long = False
        self._kicked = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._listener: threading.Thread | None = None
        self._hearers: list[Callable[[Heard], None]] = []
        self._threads = ThreadPoolExecutor(1, "watcher")  # our own: reads do not queue behind endpoints that block
        self._closed = threading.Event()

    # -- what endpoints wait for

    async def job(self, job_id: str, *, may_be_old: bool = False) -> JobStatus:
        """Return a job as it stands, from a read that began after this call; calls at one time share it.

        One that `may_be_old` is told as it was up to three seconds ago while Redis takes long to answer, though never
        as it was before a change by this process. Raises UnknownJob and LedgerDown.
        """
        self._begin()
        if may_be_old and self._takes_long and (known := self._memory.recall(job_id)) is not None:
            return known
        question = Question(asyncio.get_running_loop().create_future(), may_be_old)
        self._asked[job_id].append(question)
        self._kicked.set()
        return await question.answer

    async def follow(self, job_id: str, *, patience_s: float = PATIENCE_S) -> AsyncGenerator[JobStatus]:
        """Yield a job as it stands, then whenever it has changed, and end with its final state.

        Changes within GAP_S are told as one. Raises UnknownJob, and LedgerDown when the ledger is away for longer than
        `patience_s`, or the API stops.
        """
        async with self.watch(job_id) as watch:
            async for seen in _patiently(watch, patience_s):
                if seen.status is not None:
                    yield seen.status
                    if seen.status.state.is_final:
                        return

    async def images(
        self, job_id: str, *, after: int | None = 0, patience_s: float = PATIENCE_S
    ) -> AsyncGenerator[ImageChange]:
        """Yield every image as it is stored, fails, or is cancelled by itself; end when the job has.

        Those that ended before come first, in their order: all, or those from position `after` on, or with None none.
        What goes with the cancel of a whole job is not told image by image. Raises as `follow` does.
        """
        async with self.watch(job_id, after=after) as watch:
            async for seen in _patiently(watch, patience_s):
                for change in seen.ended:
                    yield change
                if seen.status is not None and seen.status.state.is_final:
                    return

    async def settled(self, job_id: str, timeout_s: float | None = None) -> JobStatus:
        """Return a job when it has ended. Raises TimeoutError, and as `follow` does."""
        async with asyncio.timeout(timeout_s), contextlib.aclosing(self.follow(job_id)) as statuses:
            async for status in statuses:
                last = status
        return last

    @asynccontextmanager
    async def watch(self, job_id: str, *, after: int | None = None) -> AsyncIterator[Watch]:
        """Watch a job for the length of a `with` block.

        Ends of images are told from position `after` on, with None from now on.
        """
        self._begin_to_listen()
        watched = self._watched.setdefault(job_id, Watched(job_id))
        watched.watchers += 1
        self._look_soon([watched])
        try:
            yield Watch(watched, after=after, check_open=self.check_open, read_ended=self._read_ended)
        finally:
            watched.watchers -= 1
            if watched.watchers == 0:
                del self._watched[job_id]
                if watched.timer is not None:
                    watched.timer.cancel()

    @contextmanager
    def overhearing(self, on_heard: Callable[[Heard], None]) -> Iterator[None]:
        """Have every hint told to a function, too, for the length of a `with` block."""
        self._begin_to_listen()
        self._hearers.append(on_heard)
        try:
            yield
        finally:
            self._hearers.remove(on_heard)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._closed.is_set()

    def check_open(self) -> None:
        """Raise WatcherClosed once it is closed."""
        if self.is_closed:
            raise WatcherClosed("the API stops")

    def close(self) -> None:
        """End all that waits with WatcherClosed; nothing can be asked any more."""
        self._closed.set()
        if self._reader is not None:
            self._reader.cancel()
        self._answer(self._asked, WatcherClosed("the API stops"))
        for watched in self._watched.values():
            watched.wake()

    def join(self) -> None:
        """Wait for the threads, which use the ledger; after `close`, and not for long."""
        if self._listener is not None:
            self._listener.join(_FAREWELL_S)
        self._threads.shutdown(wait=False)

    # -- reading

    def _begin(self) -> None:
        self.check_open()
        if self._reader is None or self._reader.done():  # a fault of ours must not silence it for good
            self._reader = asyncio.create_task(self._keep_reading())

    async def _read_ended(self, job_id: str, position: int, limit: int) -> tuple[ImageChange, ...]:
        """Read a part of a job's log that nobody remembers."""
        return await self._in_thread(lambda: self._ledger.ended(job_id, position, limit))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _keep_reading(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._kicked.wait()
            self._kicked.clear()
            due, self._due = self._due, set()
            asked, self._asked = self._asked, defaultdict(list)
            began_s = loop.time()
            try:
                await self._read(due, asked)
            except LedgerDown as error:
                self._fail(due, asked, error)
            except Exception:
                log.exception("Reading the ledger failed; going on", extra={"action": "watching_failed"})
                self._fail(due, asked, LedgerDown("the ledger cannot be read"))
            # Reads get a fifth of the time: what is asked meanwhile shares the next, the more of it the busier we are.
            await asyncio.sleep(min(max(_SHORTEST_PAUSE_S, _REST * (loop.time() - began_s)), _LONGEST_PAUSE_S))

    async def _read(self, due: set[str], asked: Asked) -> None:
        """Look at jobs, and tell whoever asked for them or watches them."""
        now_s = asyncio.get_running_loop().time
        positions: dict[str, int | None] = dict.fromkeys(asked)
        for job_id in (*due, *asked):
            if (watched := self._watched.get(job_id)) is not None:
                watched.looked_at_s = now_s()
                positions[job_id] = watched.num_ended
        if not positions:
            return
        looks = await self._look(positions, asked)
        for job_id, position in positions.items():
            unknown = UnknownJob(f"there is no job {job_id!r}", field="id", value=job_id)
            look = looks.get(job_id)
            if (watched := self._watched.get(job_id)) is not None:
                # One who came meanwhile made it a new one, whose first look is still to come.
                if watched.num_ended == position:
                    watched.fail(unknown) if look is None else watched.take(look)
                self._schedule(watched, now_s() + _POLL_S)
            self._answer({job_id: asked.get(job_id, [])}, unknown if look is None else look.status)

    async def _look(self, positions: Mapping[str, int | None], asked: Asked) -> dict[str, Look]:
        """Look at jobs; when that takes long, tell whoever asked what we remember of them."""
        reading = self._memory.begin()
        looking = asyncio.ensure_future(self._in_thread(lambda: self._ledger.look(positions)))
        self._takes_long = not (await asyncio.wait([looking], timeout=_LONG_S))[0]
        try:
            if self._takes_long:
                for job_id, questions in asked.items():
                    if (known := self._memory.recall(job_id)) is not None:
                        self._answer({job_id: [one for one in questions if one.may_be_old]}, known)
            looks = await looking
        finally:
            self._takes_long = False
        self._memory.keep(reading, {job_id: look.status for job_id, look in looks.items()})
        return looks

    def _fail(self, due: set[str], asked: Asked, error: LedgerDown) -> None:
        """Tell everybody that the ledger is away: those, too, who asked while we waited for it."""
        again_s = asyncio.get_running_loop().time() + _OUTAGE_PAUSE_S
        for job_id in (*due, *asked):
            if (watched := self._watched.get(job_id)) is not None:
                watched.fail(error)
                self._schedule(watched, again_s)
        self._answer(asked, error)
        self._answer(self._asked, error)
        self._asked.clear()

    @staticmethod
    def _answer(asked: Asked, outcome: JobStatus | LedgerDown | UnknownJob) -> None:
        for answer in (question.answer for questions in asked.values() for question in questions):
            if answer.done():  # its client hung up, or was told what we remembered
                continue
            if isinstance(outcome, JobStatus):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)

    def _look_soon(self, them: Iterable[Watched]) -> None:
        now_s = asyncio.get_running_loop().time()
        for watched in them:
            self._schedule(watched, max(now_s, watched.looked_at_s + GAP_S))

    def _schedule(self, watched: Watched, at_s: float) -> None:
        """Have a job looked at, unless it will be sooner."""
        if watched.timer is not None:
            if watched.due_at_s <= at_s:
                return
            watched.timer.cancel()
        watched.due_at_s = at_s
        watched.timer = asyncio.get_running_loop().call_at(at_s, self._want, watched)

    def _want(self, watched: Watched) -> None:
        watched.timer = None
        self._due.add(watched.job_id)
        self._kicked.set()

    # -- listening

    def _begin_to_listen(self) -> None:
        self._begin()
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = threading.Thread(target=self._listen, args=(loop,), name="watcher-ear", daemon=True)
            self._listener.start()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear hints and hand them to the event loop, in a thread of its own."""
        while not self._closed.is_set():
            try:
                with self._ledger.listening() as listener:
                    while not self._closed.is_set():
                        heard = listener.hear(_HEARING_S)
                        if heard is not None:
                            loop.call_soon_threadsafe(self._on_heard, heard)
                            self._closed.wait(_GATHERING_S)
            except LedgerDown:
                self._closed.wait(_OUTAGE_PAUSE_S)  # the reader finds it, too, and says so
            except RuntimeError:  # the event loop is closed
                return
            except Exception:
                log.exception("Listening to the ledger failed; going on", extra={"action": "watching_failed"})
                self._closed.wait(_OUTAGE_PAUSE_S)

    def _on_heard(self, heard: Heard) -> None:
        jobs = self._watched if heard.is_gap else heard.jobs
        self._look_soon(watched for job_id in jobs if (watched := self._watched.get(job_id)) is not None)
        for job_id, previews in heard.previews.items():
            if (watched := self._watched.get(job_id)) is not None:
                watched.show(previews)
        for hear in self._hearers:
            hear(heard)


async def _patiently(watch: Watch, patience_s: float) -> AsyncIterator[Seen]:
    """Yield what a watch brings; raise an outage that is longer than `patience_s`."""
    outage: LedgerDown | None = None
    while True:
        try:
            async with asyncio.timeout(None if outage is None else patience_s):
                seen = await watch.next()
        except TimeoutError:
            if outage is None:
                raise
            raise outage from None
        outage = seen.outage
        if outage is None:
            yield seen
