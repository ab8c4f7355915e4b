"""S3 fails in every way that it knows: finished images wait in memory, nothing is rendered twice, nothing is lost."""

from __future__ import annotations

import resource
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from fake_http import answering
from farm.errors import StorageDown
from faulty import LEASE_S, MAX_BATCH

pytestmark = pytest.mark.slow


@contextmanager
def killed(farm):
    """Kill the server; start it again at the end, which is when it stores again: its parts have to find each other."""
    farm.s3.kill()
    yield
    farm.s3.start()
    farm.wait(lambda: can_store(farm.store))


def can_store(store):
    """Tell whether the server takes an object that is not empty: for an empty one it needs no room."""
    try:
        store.put("probe", bytes(100_000), "application/octet-stream")
    except StorageDown:
        return False
    store.delete_many(["probe"])
    return True


@contextmanager
def cut(farm):
    """Cut the line."""
    farm.s3_line.cut()
    yield
    farm.s3_line.mend()


@contextmanager
def hung(farm):
    """Let nothing through."""
    farm.s3_line.hang()
    yield
    farm.s3_line.mend()


@contextmanager
def full(farm):
    """Let its files grow no more, as on a disk that is full."""
    resource.prlimit(farm.s3.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    yield
    resource.prlimit(farm.s3.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def answers(status, code):
    """Return a fault: every request is answered with this error."""

    @contextmanager
    def answered(farm):
        body = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        with answering(lambda _: (status, body, {"Content-Type": "application/xml"})) as (url, seen):
            farm.s3_line.divert(urlsplit(url).port)
            yield
            farm.s3_line.mend()
            assert seen

    return answered


@pytest.mark.parametrize(
    ("what", "lasts_s", "fault"),
    [
        ("S3 is killed", LEASE_S + 1, killed),
        pytest.param("the network to S3 is cut", 0, cut, marks=pytest.mark.long),
        ("the network to S3 hangs", 0, hung),
        pytest.param("S3 answers 500", 0, answers(500, "InternalError"), marks=pytest.mark.long),
        ("S3 answers 403", 0, answers(403, "AccessDenied")),
        pytest.param("the disk of S3 is full", 0, full, marks=pytest.mark.long),
    ],
    ids=["killed", "cut", "hung", "500", "403", "full"],
)
def test_images_wait_while_the_storage_fails(farm, undisturbed, what, lasts_s, fault):
    """Nothing can be stored until seats are all taken by what waits; then all is, each unit by its first worker."""
    job = farm.post_held()
    with farm.disturbed(what, job), fault(farm):
        farm.open_gate()
        farm.wait(lambda: [report.undelivered >= MAX_BATCH for report in farm.workers()] == [True, True])
        stored = farm.stored(job)
        time.sleep(lasts_s)  # for longer than a lease: leases of what waits are renewed
        assert farm.stored(job) == stored
    farm.finish(job, like=undisturbed)
    assert farm.ledger.job(job).retries == 0


def test_a_slow_storage_slows_and_loses_nothing(farm, undisturbed):
    """Each piece of each answer comes late."""
    farm.s3_line.slow(0.3)
    job = farm.post_held()
    with farm.disturbed("S3 is slow", job):
        farm.s3_line.mend()
    farm.finish(job, like=undisturbed)
    assert farm.ledger.job(job).retries == 0


def test_a_bucket_that_is_deleted_is_made_again(farm, undisturbed):
    """Somebody deletes the bucket while a job renders: what is stored from then on lies in a new one."""
    farm.s3_line.hang()  # so that nothing of this job goes with the bucket
    farm.shut_gate()
    job = farm.post()
    farm.wait(lambda: farm.ledger.job(job).counts.rendering > 0)
    with farm.disturbed("the bucket is deleted", job):
        client, bucket = farm.store._client, farm.settings.s3_bucket
        for key in farm.store.list():
            client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)
        farm.s3_line.mend()
    farm.finish(job, like=undisturbed)
