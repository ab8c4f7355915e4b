"""The chores of API processes on the real ledger: done once or again, by whoever is there, whatever hangs."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from api import chores as module
from api.chores import Chores, NotYet, retry_after_s
from expanded_jobs import expanded_job
from farm.errors import StorageDown
from farm.ledger import Ledger
from farm.settings import Settings
from servers import valkey
from steady_clock import steady_clock
from told_clock import Clock

PATIENCE_S = 100.0


@pytest.fixture
def ledger(redis_url):
    """Return a ledger on an empty server."""
    ledger = Ledger.connect(Settings(redis_url=redis_url), clock=steady_clock, socket_timeout_s=PATIENCE_S)
    yield ledger
    ledger.close()


def settled(ledger, **fields) -> str:
    """Open a job and cancel it at once, which leaves chores; return its id."""
    job = ledger.open(expanded_job(**fields)).id
    ledger.cancel(job)
    return job


@contextmanager
def running(ledger, **handlers):
    """Run the chores of an API process that has these handlers."""
    chores = Chores(SimpleNamespace(ledger=ledger), handlers, idle_s=0.05)
    chores.start()
    try:
        yield chores
    finally:
        chores.stop()
        chores._thread.join(PATIENCE_S)  # it was given a moment only, and must take none of the next test's


def wait_for(is_so):
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def left(ledger, kind="manifest") -> int:
    """Return how many chores of a kind are on the list, taken or not."""
    return ledger._connection.redis.zcard(f"farm:chores:{kind}")


def test_chores_are_done_and_leave_the_list(ledger):
    """A settled job leaves a manifest to write: its handler gets the chore once, and then there is none."""
    jobs, done = {settled(ledger) for _ in range(10)}, []
    with running(ledger, manifest=lambda _farm, chore: done.append(chore.job)):
        wait_for(lambda: not left(ledger))
        time.sleep(0.2)
    assert sorted(done) == sorted(jobs)


def test_only_kinds_that_have_a_handler_are_taken(ledger):
    """What this release does not know stays on the list, for one that does."""
    settled(ledger)
    with running(ledger, webhook=lambda *_: None):
        time.sleep(0.3)
    assert [chore.kind for chore in ledger.take_chores(["manifest"])] == ["manifest"]


@pytest.mark.parametrize("error", [StorageDown("S3 is away"), KeyError("a bug")])
def test_what_fails_is_tried_again_with_growing_pauses(ledger, monkeypatch, caplog, error):
    """An outage and a bug alike: the chore comes again, knows how often it failed, and is done in the end."""
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.1)
    tries = []

    def handler(_farm, chore):
        tries.append((chore.tries, time.monotonic()))
        if len(tries) < 4:
            raise error

    settled(ledger)
    with caplog.at_level(logging.WARNING), running(ledger, manifest=handler):
        wait_for(lambda: not left(ledger))
    assert [number for number, _ in tries] == [0, 1, 2, 3]
    assert tries[3][1] - tries[2][1] > 0.2  # half of the third pause, at the least
    told = [record for record in caplog.records if getattr(record, "action", "") == "chore_failed"]
    assert len(told) == 3
    assert all(bool(record.exc_info) is isinstance(error, KeyError) for record in told)


def test_a_handler_that_knows_when_is_heard(ledger, monkeypatch):
    """NotYet says the pause itself: it is not that of a failure."""
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 10 * PATIENCE_S)
    times = []

    def handler(_farm, _chore):
        times.append(time.monotonic())
        if len(times) == 1:
            raise NotYet("later", again_s=0.5)

    settled(ledger)
    with running(ledger, manifest=handler):
        wait_for(lambda: not left(ledger))
    assert times[1] - times[0] >= 0.5


def test_pauses_double_up_to_five_minutes_and_are_scattered():
    """However often it fails, a chore is tried every few minutes, and not all of them at once."""
    assert all(0.5 <= retry_after_s(0) <= 1 for _ in range(50))
    assert all(4 <= retry_after_s(3) <= 8 for _ in range(50))
    assert len({retry_after_s(10_000) for _ in range(50)}) > 40
    assert all(150 <= retry_after_s(10_000) <= 300 for _ in range(50))


def test_one_that_hangs_holds_up_neither_its_own_kind_nor_others(ledger):
    """Receivers that never answer take a few threads of their kind; the rest goes on."""
    free = threading.Event()
    stuck, done = {settled(ledger) for _ in range(3)}, []

    def handler(_farm, chore):
        if chore.job in stuck:
            free.wait()
        done.append(chore.job)

    with running(ledger, manifest=handler, expire=lambda _farm, chore: done.append(chore.kind)):
        try:
            other = settled(ledger)
            wait_for(lambda: other in done)
            ledger.manifest_written(other)
            ledger._connection.redis.zadd("farm:chores:expire", {f"{other}|expire|1": 1.0})  # its time has come
            wait_for(lambda: "expire" in done)
            assert not stuck & set(done)
        finally:
            free.set()
        wait_for(lambda: stuck <= set(done))


def test_processes_share_the_list(ledger):
    """Two processes at the same list: every chore is done, and none twice."""
    done = []
    with running(ledger, manifest=lambda _farm, chore: done.append(chore.job)) as first:
        with running(ledger, manifest=lambda _farm, chore: done.append(chore.job)) as second:
            jobs = [settled(ledger) for _ in range(60)]
            wait_for(lambda: not left(ledger))
        assert first is not second
    assert sorted(done) == sorted(jobs)


def test_one_that_takes_longer_than_its_lease_keeps_it(redis_url, monkeypatch):
    """A manifest of millions takes minutes: nobody else begins it meanwhile."""
    monkeypatch.setattr(module, "_KEEP_EVERY_S", 0.05)
    begun, free, clock = [], threading.Event(), Clock()
    ledger = Ledger.connect(Settings(redis_url=redis_url), clock=clock, socket_timeout_s=PATIENCE_S)

    def handler(_farm, chore):
        begun.append(chore)
        free.wait()

    def is_ours_until():
        return ledger._connection.redis.zscore("farm:chores:manifest", begun[0].member)

    settled(ledger)
    with running(ledger, manifest=handler), running(ledger, manifest=handler):
        try:
            wait_for(lambda: begun)
            for _ in range(4):
                clock.now += module.LEASE_S - 10
                wait_for(lambda: is_ours_until() >= clock.now + module.LEASE_S)
        finally:
            free.set()
        wait_for(lambda: not left(ledger))
    assert len(begun) == 1
    ledger.close()


def test_a_process_that_stops_does_not_wait_for_what_hangs(ledger, monkeypatch):
    """Stopping takes a moment; the chore is somebody else's when its lease has run out."""
    monkeypatch.setattr(module, "LEASE_S", 1.0)
    monkeypatch.setattr(module, "_FAREWELL_S", 0.3)
    begun, free, done = threading.Event(), threading.Event(), []

    def hang(_farm, _chore):
        begun.set()
        free.wait()
        raise StorageDown("and nothing came of it")

    job = settled(ledger)
    try:
        with running(ledger, manifest=hang) as chores:
            assert begun.wait(PATIENCE_S)
            (hanging,) = chores._running.values()
        assert hanging.is_alive()
        with running(ledger, manifest=lambda _farm, chore: done.append(chore.job)):
            wait_for(lambda: done == [job])
    finally:
        free.set()
    hanging.join(PATIENCE_S)


def test_chores_outlive_an_outage_of_redis(caplog):
    """Redis is killed and comes back: one complaint, and the chores are done."""
    with valkey() as server:
        ledger = Ledger.connect(server.settings(), socket_timeout_s=PATIENCE_S)
        done = []
        with running(ledger, manifest=lambda _farm, chore: done.append(chore.job)):
            server.kill()
            wait_for(lambda: any(getattr(record, "action", "") == "ledger_down" for record in caplog.records))
            server.start()
            job = settled(ledger)
            wait_for(lambda: done == [job])
        ledger.close()
    assert sum(getattr(record, "action", "") == "ledger_down" for record in caplog.records) == 1
