"""What clients of an API with options and a current task leave in the ledger."""

from __future__ import annotations

import pytest

from farm.ledger import Ledger
from farm.settings import Settings


@pytest.fixture
def ledger(redis_url):
    """Return a ledger on an empty Redis."""
    ledger = Ledger.connect(Settings(redis_url=redis_url))
    yield ledger
    ledger.close()


def test_options_are_their_clients(ledger):
    """Any JSON value, changed one by one; another client has none of them; they expire."""
    ledger.set_options("one", {"model": "sdxl", "list": [1, {"a": None}]})
    ledger.set_options("one", {"model": "sd15"})
    ledger.set_options("two", {})
    assert ledger.options("one") == {"model": "sd15", "list": [1, {"a": None}]}
    assert ledger.options("two") == {}
    (key,) = ledger._redis.keys("farm:client:options:*")
    assert 0 < ledger._redis.ttl(key) <= 30 * 24 * 3600


def test_tasks_are_kept_in_order_until_they_end(ledger):
    """By client; the name that a client gave one is known within its scope, afterwards too."""
    ledger.begin_task("one", "job_a", scope="key:1", task_id="x")
    ledger.begin_task("one", "job_b", scope="key:1", task_id="y")
    ledger.begin_task("two", "job_c", scope="key:2", task_id="x")
    assert ledger.tasks("one") == ["job_a", "job_b"]
    ledger.end_task("one", "job_a")
    ledger.end_task("one", "job_c")  # not its own
    assert (ledger.tasks("one"), ledger.tasks("two")) == (["job_b"], ["job_c"])
    assert (ledger.job_of_task("key:1", "x"), ledger.job_of_task("key:2", "x")) == ("job_a", "job_c")
    assert ledger.job_of_task("key:1", "z") is None


def test_a_client_that_never_ends_its_tasks_has_a_bound(ledger):
    """Of more than 256 the latest are kept."""
    for number in range(300):
        ledger.begin_task("one", f"job_{number:03}")
    assert ledger.tasks("one") == [f"job_{number:03}" for number in range(44, 300)]


def test_progress_only_grows(ledger):
    """Whatever is told later."""
    assert [ledger.advance("job_a", share) for share in (0.25, 0.5, 0.1, 0.75)] == [0.25, 0.5, 0.5, 0.75]
    assert ledger.advance("job_b", 0.0) == 0.0
