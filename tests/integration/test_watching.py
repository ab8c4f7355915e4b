"""Waiting for what happens to jobs: on a real Redis, through outages of it, for many at once."""

import asyncio
import contextlib
from contextlib import asynccontextmanager
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
import uvloop

from api.watching.watched import GAP_S, WatcherClosed
from api.watching.watcher import Watcher
from expanded_jobs import expanded_job
from farm.errors import LedgerDown, UnknownJob
from farm.jobs import JobState, UnitState
from farm.ledger import Ledger, WorkerReport
from farm.settings import Settings
from lines import line_to
from servers import valkey

ME = "alice:gpu0#1"
SOON_S = 100.0


@pytest.fixture
def ledger(redis_url):
    """Return a ledger on an empty server with one worker."""
    with _ledger(redis_url) as ledger:
        yield ledger


@contextlib.contextmanager
def _ledger(url):
    ledger = Ledger.connect(Settings(redis_url=url, lease_s=1e6), socket_timeout_s=SOON_S)
    ledger.report(
        WorkerReport(name=ME, node="alice:gpu0", pid=1, device="cpu", models=("scenes",), max_batch=32, started_at=0)
    )
    yield ledger
    ledger.close()


@asynccontextmanager
async def watching(ledger):
    """Return a watcher that is closed in the end."""
    watcher = Watcher(ledger)
    try:
        yield watcher
    finally:
        watcher.close()
        watcher.join()


def run(main):
    """Run a coroutine on the event loop that the API is served on, which differs from asyncio's in what a handle is."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def open_job(ledger, count, **fields):
    """Open a job of so many images."""
    return ledger.open(expanded_job(num_images_per_prompt=count, **fields)).id


def claim(ledger, limit=64):
    """Claim what is handed out."""
    hints = ledger.feed("scenes", limit=limit)
    assert all(ledger.claim(hint, ME) for hint in hints)
    return hints


def store(ledger, hint):
    """Store an image."""
    assert ledger.stored(hint, ME, gpu_s=0.1, render_s=0.1)


async def until(is_so):
    """Wait for it."""
    async with asyncio.timeout(SOON_S):
        while not is_so():  # noqa: ASYNC110  of what happens elsewhere
            await asyncio.sleep(0.005)


def test_a_job_is_followed_from_now_to_its_end(ledger):
    """The status at once, then as it changes, not more often than every GAP_S, and the final one last."""
    job = open_job(ledger, 20)

    async def main():
        async with watching(ledger) as watcher:
            statuses, times = [], []
            now_s = asyncio.get_running_loop().time  # that of the step that the loop is at: who told it saw the same

            async def follow():
                async for status in watcher.follow(job):
                    statuses.append(status)
                    times.append(now_s())

            async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as group:
                group.create_task(follow())
                await until(lambda: statuses)
                assert statuses[0].state is JobState.QUEUED
                first, *others = claim(ledger)
                store(ledger, first)
                await until(lambda: statuses[-1].counts.stored)
                for hint in others:
                    store(ledger, hint)
                    await asyncio.sleep(0.02)
            return statuses, times

    statuses, times = run(main())
    stored = [status.counts.stored for status in statuses]
    assert stored == sorted(stored)
    assert statuses[-1].state is JobState.DONE
    assert [status.state.is_final for status in statuses].count(True) == 1
    assert len(statuses) >= 3
    assert all(later - sooner > GAP_S * 0.9 for sooner, later in pairwise(times))


def test_every_image_is_told_once_to_each_of_many(ledger):
    """Stored, failed and cancelled ones, those from before too, in the order of their ends; who is late misses none."""
    job = open_job(ledger, 30)

    async def main():
        async with watching(ledger) as watcher:
            told = [[] for _ in range(5)]

            async def watch(number, after):
                async for change in watcher.images(job, after=after):
                    told[number].append((change.index, change.state))

            async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as group:
                group.create_task(watch(0, 0))
                hints = claim(ledger)
                for hint in hints[:10]:
                    store(ledger, hint)
                await until(lambda: len(told[0]) == 10)
                group.create_task(watch(1, 0))
                group.create_task(watch(2, 10))
                group.create_task(watch(3, None))
                group.create_task(watch(4, 1000))
                await asyncio.sleep(3 * GAP_S)
                ledger.failed(hints[10], ME, "boom", final=True)
                ledger.cancel_image(job, 11)
                for hint in hints[12:]:
                    store(ledger, hint)
            return told

    everybody = run(main())
    expected = [(index, UnitState.STORED) for index in range(30)]
    expected[10], expected[11] = (10, UnitState.FAILED), (11, UnitState.CANCELLED)
    assert everybody[0] == everybody[1] == expected
    assert everybody[2] == everybody[3] == everybody[4] == expected[10:]


def test_an_image_that_is_tried_again_is_told_again(ledger):
    """Failed first, then stored: two ends, at two positions."""
    job = open_job(ledger, 2)
    for hint in claim(ledger):
        ledger.failed(hint, ME, "boom", final=True)
    ledger.retry_failed(job)
    for hint in claim(ledger):
        store(ledger, hint)

    async def main():
        async with watching(ledger) as watcher:
            return [change async for change in watcher.images(job)]

    ends = run(main())
    assert [end.position for end in ends] == [0, 1, 2, 3]
    assert {(end.index, end.state) for end in ends[:2]} == {(0, UnitState.FAILED), (1, UnitState.FAILED)}
    assert {(end.index, end.state) for end in ends[2:]} == {(0, UnitState.STORED), (1, UnitState.STORED)}


def test_the_cancel_of_a_job_ends_the_wait(ledger):
    """Whoever waits for the job, or for its images, is told soon, though no image has ended."""
    job = open_job(ledger, 3)

    async def main():
        async with watching(ledger) as watcher, asyncio.timeout(SOON_S):
            settled = asyncio.create_task(watcher.settled(job))
            images = asyncio.create_task(_all(watcher.images(job)))
            await asyncio.sleep(GAP_S)
            assert not settled.done()
            ledger.cancel(job)
            return (await settled).state, await images

    assert run(main()) == (JobState.CANCELLED, [])


async def _all(things):
    return [thing async for thing in things]


def test_waiting_for_a_job_that_does_not_end_has_a_limit(ledger):
    """TimeoutError, when a limit was given and is over."""
    job = open_job(ledger, 1)

    async def main():
        async with watching(ledger) as watcher:
            await watcher.settled(job, timeout_s=0.2)

    with pytest.raises(TimeoutError):
        run(main())


def test_a_job_that_is_not_there_is_unknown_to_all(ledger):
    """At once, by every way of asking."""

    async def main():
        async with watching(ledger) as watcher, asyncio.timeout(SOON_S):
            for ask in (watcher.job, watcher.settled, lambda job: _all(watcher.images(job))):
                with pytest.raises(UnknownJob, match="job_none"):
                    await ask("job_none")

    run(main())


def test_a_job_is_read_afresh_and_by_all_who_ask_at_one_time_together(ledger):
    """What was committed before the question is in the answer; a hundred questions are a few reads."""
    job = open_job(ledger, 5)
    reads = []
    look = ledger.look
    ledger.look = lambda positions: reads.append(positions) or look(positions)

    async def main():
        async with watching(ledger) as watcher:
            for number, hint in enumerate(claim(ledger), start=1):
                store(ledger, hint)
                assert (await watcher.job(job)).counts.stored == number
            reads.clear()
            answers = await asyncio.gather(*(watcher.job(job) for _ in range(100)))
            assert {answer.counts.stored for answer in answers} == {5}
            assert len(reads) <= 2

    run(main())


@pytest.fixture
def line(redis_url):
    """Return a line to an empty Redis; when it hangs, nobody is answered, as when the server's disk stalls."""
    with line_to(urlsplit(redis_url).port) as line:
        yield line


@pytest.fixture
def far_ledger(line):
    """Return a ledger at the other end of that line."""
    with _ledger(f"redis://127.0.0.1:{line.port}/0") as ledger:
        yield ledger


async def is_silent(task):
    """Tell whether a task waits on, after some time in which it could have been answered."""
    await asyncio.wait([task], timeout=0.2)
    return not task.done()


def test_while_redis_stalls_a_job_is_told_as_it_was_a_moment_ago(far_ledger, line, monkeypatch):
    """Those who had asked before it was noticed, and who ask then; who wants it afresh waits, or knows nothing."""
    monkeypatch.setattr("api.watching.memory.OLDEST_S", 1e6)
    job, other = open_job(far_ledger, 3), open_job(far_ledger, 3)

    async def main():
        async with watching(far_ledger) as watcher, asyncio.timeout(SOON_S):
            before = await watcher.job(job, may_be_old=True)
            line.hang()
            afresh = asyncio.create_task(watcher.job(job))
            unread = asyncio.create_task(watcher.job(other, may_be_old=True))
            for _ in range(5):
                assert await watcher.job(job, may_be_old=True) is before
            assert await is_silent(afresh)
            assert await is_silent(unread)
            line.mend()
            assert (await unread).header.id == other
            assert await afresh is not before

    run(main())


def test_while_redis_stalls_nobody_is_told_what_was_before_his_own_change(far_ledger, line):
    """Who cancels a job, and asks, is told that it is cancelled, whatever was read before."""
    job = open_job(far_ledger, 3)

    async def main():
        async with watching(far_ledger) as watcher, asyncio.timeout(SOON_S):
            assert not (await watcher.job(job, may_be_old=True)).cancelled
            far_ledger.cancel(job)
            line.hang()
            told = asyncio.create_task(watcher.job(job, may_be_old=True))
            assert await is_silent(told)
            line.mend()
            assert (await told).cancelled

    run(main())


def test_what_was_read_too_long_ago_is_not_told(far_ledger, line, monkeypatch):
    """While Redis stalls, a client waits rather than hear of what was seconds ago."""
    monkeypatch.setattr("api.watching.memory.OLDEST_S", 0.1)
    job = open_job(far_ledger, 3)

    async def main():
        async with watching(far_ledger) as watcher, asyncio.timeout(SOON_S):
            before = await watcher.job(job, may_be_old=True)
            line.hang()
            await asyncio.sleep(0.2)
            told = asyncio.create_task(watcher.job(job, may_be_old=True))
            assert await is_silent(told)
            line.mend()
            assert await told is not before

    run(main())


def test_hints_that_are_lost_delay_and_lose_nothing(ledger, monkeypatch):
    """Without a single hint all is told, by the look that comes every few seconds."""
    monkeypatch.setattr("api.watching.watcher._POLL_S", 0.2)
    monkeypatch.setattr(Watcher, "_listen", lambda _self, _loop: None)
    job = open_job(ledger, 4)

    async def main():
        async with watching(ledger) as watcher, asyncio.timeout(SOON_S):
            images = asyncio.create_task(_all(watcher.images(job)))
            for hint in claim(ledger):
                await asyncio.sleep(0.1)
                store(ledger, hint)
            return await images

    assert [end.index for end in run(main())] == [0, 1, 2, 3]


def test_who_is_far_behind_reads_the_log(ledger, monkeypatch):
    """More ends than are remembered, and than one look brings, reach a slow client all the same."""
    monkeypatch.setattr("farm.ledger.changes.MAX_ENDED", 7)
    monkeypatch.setattr("api.watching.watched._REMEMBERED", 7)
    job = open_job(ledger, 60)

    async def main():
        async with watching(ledger) as watcher, asyncio.timeout(SOON_S):
            told = []
            images = watcher.images(job)
            hints = claim(ledger)
            store(ledger, hints[0])
            told.append(await anext(images))
            for hint in hints[1:]:
                store(ledger, hint)
            await until(lambda: watcher._watched[job].num_ended == len(hints))
            return told + await _all(images)

    assert [end.index for end in run(main())] == list(range(60))


def test_an_outage_is_waited_out_and_its_gap_filled():
    """Redis is killed and comes back: whoever waits goes on with all that happened, the listener too."""

    async def main(server, ledger):
        job = open_job(ledger, 6)
        hints = claim(ledger)
        async with watching(ledger) as watcher, asyncio.timeout(3 * SOON_S):
            told = []

            async def watch():
                async for change in watcher.images(job, patience_s=SOON_S):
                    told.append(change.index)  # noqa: PERF401  looked at meanwhile

            task = asyncio.create_task(watch())
            store(ledger, hints[0])
            await until(lambda: told == [0])
            server.kill()
            with pytest.raises(LedgerDown):
                await watcher.job(job)
            await asyncio.sleep(0.5)
            assert not task.done()
            await asyncio.to_thread(server.start)
            store(ledger, hints[1])
            await until(lambda: told == [0, 1])
            for hint in hints[2:]:
                store(ledger, hint)
            await task
            return told

    with valkey() as server, _ledger(server.url) as ledger:
        assert run(main(server, ledger)) == [0, 1, 2, 3, 4, 5]


def test_an_outage_that_lasts_is_told():
    """Patience ends: LedgerDown, not an endless wait."""

    async def main(server, ledger):
        job = open_job(ledger, 1)
        async with watching(ledger) as watcher, asyncio.timeout(SOON_S):
            statuses = watcher.follow(job, patience_s=0.5)
            await anext(statuses)
            server.kill()
            with pytest.raises(LedgerDown):
                await anext(statuses)

    with valkey() as server, _ledger(server.url) as ledger:
        run(main(server, ledger))


def test_closing_ends_all_that_waits(ledger):
    """Whoever waits is told that the API stops; nobody can begin to."""
    job = open_job(ledger, 1)

    async def main():
        async with watching(ledger) as watcher, asyncio.timeout(SOON_S):
            waits = [asyncio.create_task(watcher.settled(job)) for _ in range(3)]
            await asyncio.sleep(2 * GAP_S)
            watcher.close()
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {WatcherClosed}
            with pytest.raises(WatcherClosed):
                await watcher.job(job)

    run(main())
