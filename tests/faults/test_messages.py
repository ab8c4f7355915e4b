"""Messages are lost, doubled, out of order or unreadable: they are hints, and the ledger needs none of them."""

from __future__ import annotations

import random

import pytest

from farm.queue import RENDER_TASK, queue_for, queues

pytestmark = pytest.mark.slow

QUEUE = queue_for("tiny")


@pytest.fixture
def job(farm):
    """Return a job with messages in the queue and images stored."""
    job = farm.post_held()
    farm.wait(lambda: farm.raw.llen(QUEUE) >= 4)
    return job


def rewrite(farm, change):
    """Replace the queue's messages, all at once."""

    def rewritten(pipe):
        messages = pipe.lrange(QUEUE, 0, -1)
        pipe.multi()
        pipe.delete(QUEUE)
        for message in change(messages):
            pipe.rpush(QUEUE, message)

    farm.raw.transaction(rewritten, QUEUE)  # tried again if a worker reads in between


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("messages are lost", lambda _: []),
        ("messages are doubled", lambda messages: messages * 3),
        pytest.param(
            "messages are out of order",
            lambda messages: random.sample(messages, len(messages)),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "messages are cut short",
            lambda messages: [message[: len(message) // 2] for message in messages],
            marks=pytest.mark.long,
        ),
        ("messages are no messages", lambda messages: [b"", b"[]", b"null", b'{"body": 1}', *messages]),
    ],
    ids=["lost", "doubled", "shuffled", "cut_short", "foreign"],
)
def test_the_queue_may_say_anything(farm, undisturbed, job, what, change):
    """Each unit is rendered once all the same, by workers that go on reading."""
    pids = {report.pid for report in farm.workers()}
    with farm.disturbed(what, job):
        rewrite(farm, change)
    farm.finish(job, like=undisturbed)
    assert farm.ledger.job(job).retries == 0
    assert {report.pid for report in farm.workers()} == pids, "a worker did not outlive it"


def test_odd_tasks_do_no_harm(farm, undisturbed, job):
    """Messages that Celery can read and we cannot: wrong arguments, unknown jobs and tasks, no JSON."""
    queue = queues(["tiny"])[0]
    for arguments in ([], ["job_a"], ["job_a", "x", 1], [None, 0, 1], ["job_none", 0, 1], [job, -1, 1], [{}, [], 1]):
        farm.app.send_task(RENDER_TASK, args=arguments, queue=queue)
    farm.app.send_task(RENDER_TASK, kwargs={"job": job}, queue=queue)
    farm.app.send_task("somebody.elses", args=[1], queue=queue)
    with farm.app.producer_pool.acquire(block=True) as producer:
        producer.publish("not JSON{", routing_key=queue.name, content_type="application/json", serializer=None)
    farm.finish(job, like=undisturbed)
    assert farm.ledger.job(job).retries == 0
