"""Redis dies, freezes, fills up or cannot be reached: workers render on, and settle when it is back."""

from __future__ import annotations

import resource
import time
from contextlib import contextmanager

import pytest

from faulty import LEASE_S, is_running, stopped

pytestmark = pytest.mark.slow

OUTAGE_S = LEASE_S + 1
"""Longer than a lease: all leases have run out when it ends."""


@contextmanager
def killed(farm):
    """Kill the server and start it again."""
    farm.redis.kill()
    yield
    farm.redis.start()


@contextmanager
def frozen(farm):
    """Freeze the server."""
    with stopped(farm.redis.pid):
        yield


@contextmanager
def cut(farm):
    """Cut the line from the workers."""
    farm.redis_line.cut()
    yield
    farm.redis_line.mend()


@contextmanager
def hung(farm):
    """Let nothing through between workers and server."""
    farm.redis_line.hang()
    yield
    farm.redis_line.mend()


@contextmanager
def out_of_memory(farm):
    """Leave it no memory for any write."""
    farm.raw.config_set("maxmemory", 1)
    yield
    farm.raw.config_set("maxmemory", 0)


@contextmanager
def disk_full(farm):
    """Let its files grow no more: with everysec it refuses writes until there is room."""
    resource.prlimit(farm.redis.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    farm.wait(lambda: farm.raw.info("persistence")["aof_last_write_status"] == "err")
    yield
    resource.prlimit(farm.redis.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@contextmanager
def disk_full_and_gone(farm):
    """Likewise with always: it ends itself rather than acknowledge what it cannot keep."""
    pid = farm.redis.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    farm.wait(lambda: not is_running(pid))
    farm.redis.kill()
    yield
    farm.redis.start()


@pytest.mark.parametrize(
    ("what", "fsync", "fault"),
    [
        ("Redis is killed, AOF everysec", "everysec", killed),
        pytest.param("Redis is killed, AOF always", "always", killed, marks=pytest.mark.long),
        ("Redis is frozen", "always", frozen),
        pytest.param("the network to Redis is cut", "always", cut, marks=pytest.mark.long),
        pytest.param("the network to Redis hangs", "always", hung, marks=pytest.mark.long),
        ("Redis is out of memory", "always", out_of_memory),
        pytest.param("the disk of Redis is full, AOF everysec", "everysec", disk_full, marks=pytest.mark.long),
        pytest.param("the disk of Redis is full, AOF always", "always", disk_full_and_gone, marks=pytest.mark.long),
    ],
    ids=["killed_everysec", "killed_always", "frozen", "cut", "hung", "memory", "disk_everysec", "disk_always"],
)
def test_work_outlives_an_outage_of_redis(farm, undisturbed, what, fsync, fault):
    """For longer than a lease nothing can be claimed, renewed or counted; nobody is blamed for it afterwards."""
    farm.raw.config_set("appendfsync", fsync)
    job = farm.post_held()
    pids = {report.pid for report in farm.workers()}
    with farm.disturbed(what, job), fault(farm):
        farm.open_gate()
        time.sleep(OUTAGE_S)
    farm.finish(job, like=undisturbed)
    assert [image.history for image in farm.ledger.images(job) if image.history] == []
    assert farm.ledger.job(job).retries == 0
    assert {report.pid for report in farm.workers()} == pids, "a worker did not outlive it"
    farm.raw.config_set("appendfsync", "always")


def test_dropped_connections_cost_nothing(farm, undisturbed):
    """Every client's connection is closed by the server, several times while units run."""
    job = farm.post_held()
    with farm.disturbed("connections to Redis are dropped", job):
        for _ in range(3):
            farm.raw.client_kill_filter(_type="normal", skipme=True)
            farm.raw.client_kill_filter(_type="pubsub", skipme=True)
            time.sleep(0.2)
    farm.finish(job, like=undisturbed)
    assert farm.ledger.job(job).retries == 0
