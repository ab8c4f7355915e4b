"""Faults, each a `with` block: broken on entry, mended at the end. All randomness is drawn from the soak's own.

A fault must bear others beside it: it breaks what is there, and mending finds things as another one left them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from redis import RedisError

from fake_http import answering
from farm.queue import queue_for
from faulty import Farm, is_running
from soak.world import Api, Crew

_GARBAGE = (b"", b"[]", b"null", b"{", b'{"body": 1}', b'{"body": "W10=", "headers": {}, "properties": {}}')


@dataclass
class World:
    """What faults break."""

    farm: Farm
    crews: list[Crew]
    api: Api
    rng: random.Random
    models: tuple[str, ...] = ("tiny", "other")
    seen: list[tuple[str, bytes]] = field(default_factory=list)  # messages, and the queues they were in

    def any_worker(self) -> int | None:
        """Draw a worker that runs."""
        pids = [pid for crew in self.crews for pid in crew.pids]
        return self.rng.choice(pids) if pids else None


@dataclass(frozen=True)
class Fault:
    """How a fault is made, and the part of the farm that it breaks: two faults at once break different parts."""

    part: str
    make: Callable[[World], AbstractContextManager[None]]


FAULTS: dict[str, Fault] = {}


def _fault(part: str, what: str):
    def note(make):
        FAULTS[what] = Fault(part, contextmanager(make))
        return make

    return note


# -- processes


@_fault("processes", "a worker is killed")
def _(world):
    _send(world.any_worker(), signal.SIGKILL)
    yield


@_fault("processes", "all workers are killed")
def _(world):
    for crew in world.crews:
        for pid in crew.pids:
            _send(pid, signal.SIGKILL)
    yield


@_fault("processes", "a worker is told to go")
def _(world):
    _send(world.any_worker(), signal.SIGTERM)
    yield


@_fault("processes", "a worker is frozen for longer than a lease")
def _(world):
    pid = world.any_worker()
    _send(pid, signal.SIGSTOP)
    time.sleep(world.farm.settings.lease_s * world.rng.uniform(1.0, 1.5))
    yield
    _send(pid, signal.SIGCONT)


@_fault("processes", "a launcher is killed")
def _(world):
    crew = world.rng.choice(world.crews)
    crew.kill()
    yield
    crew.start()


@_fault("processes", "the API is killed")
def _(world):
    world.api.kill()
    yield
    world.api.start()


def _send(pid, number):
    if pid is not None and is_running(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


# -- Redis


@_fault("Redis", "Redis is killed")
def _(world):
    world.farm.redis.kill()
    yield
    world.farm.redis.start(60)


@_fault("Redis", "Redis is frozen")
def _(world):
    pid = world.farm.redis.pid
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@_fault("Redis", "connections to Redis are dropped")
def _(world):
    with suppress(RedisError):
        for kind in ("normal", "pubsub"):
            world.farm.raw.client_kill_filter(_type=kind, skipme=True)
    yield


@_fault("Redis", "Redis forgets the scripts")
def _(world):
    with suppress(RedisError):
        world.farm.raw.script_flush()
    yield


@_fault("Redis", "Redis is out of memory")
def _(world):
    with suppress(RedisError):
        world.farm.raw.config_set("maxmemory", 1)
    yield
    _until_done(lambda: world.farm.raw.config_set("maxmemory", 0))


@_fault("Redis", "some workers are cut off from Redis")
def _(world):
    line = world.rng.choice(world.crews).redis_line
    line.cut()
    yield
    line.mend()


@_fault("Redis", "the network between some workers and Redis hangs")
def _(world):
    line = world.rng.choice(world.crews).redis_line
    line.hang()
    yield
    line.mend()


@_fault("Redis", "the network between some workers and Redis is slow")
def _(world):
    line = world.rng.choice(world.crews).redis_line
    line.slow(world.rng.uniform(0.02, 0.2))
    yield
    line.mend()


@_fault("Redis", "the API is cut off from Redis")
def _(world):
    world.farm.api_line.cut()
    yield
    world.farm.api_line.mend()


# -- S3


@_fault("S3", "S3 is killed")
def _(world):
    world.farm.s3.kill()
    yield
    world.farm.s3.start(60)


@_fault("S3", "some workers are cut off from S3")
def _(world):
    line = world.rng.choice(world.crews).s3_line
    line.cut()
    yield
    line.mend()


@_fault("S3", "the network between some workers and S3 hangs")
def _(world):
    line = world.rng.choice(world.crews).s3_line
    line.hang()
    yield
    line.mend()


@_fault("S3", "S3 is slow")
def _(world):
    for crew in world.crews:
        crew.s3_line.slow(world.rng.uniform(0.02, 0.3))
    yield
    for crew in world.crews:
        crew.s3_line.mend()


def _answers(status, code):
    @_fault("S3", f"S3 answers {status}")
    def _(world):
        body = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        with answering(lambda _: (status, body, {"Content-Type": "application/xml"})) as (url, _):
            for crew in world.crews:
                crew.s3_line.divert(urlsplit(url).port)
            yield
            for crew in world.crews:
                crew.s3_line.mend()


_answers(500, "InternalError")
_answers(403, "AccessDenied")
_answers(507, "InsufficientStorage")


# -- messages


def _messages_are(how, change):
    @_fault("messages", f"messages are {how}")
    def _(world):
        for model in world.models:
            with suppress(RedisError):  # somebody read meanwhile, or Redis is away: another time
                _rewrite(world, queue_for(model), change)
        yield


def _rewrite(world, queue, change):
    with world.farm.raw.pipeline() as pipe:
        pipe.watch(queue)
        messages = pipe.lrange(queue, 0, -1)
        world.seen += [(queue, message) for message in messages]
        pipe.multi()
        pipe.delete(queue)
        for message in change(world.rng, messages):
            pipe.rpush(queue, message)
        pipe.execute()


_messages_are("lost", lambda _rng, _messages: [])
_messages_are("doubled", lambda _rng, messages: messages * 2)
_messages_are("shuffled", lambda rng, messages: rng.sample(messages, len(messages)))
_messages_are("cut short", lambda rng, messages: [m[: rng.randrange(len(m) + 1)] for m in messages])
_messages_are("among garbage", lambda rng, messages: [*rng.sample(_GARBAGE, 3), *messages, *rng.sample(_GARBAGE, 3)])


@_fault("messages", "messages of long ago come back")
def _(world):
    for queue, message in world.rng.sample(world.seen, min(20, len(world.seen))):
        with suppress(RedisError):
            world.farm.raw.rpush(queue, message)
    yield


def _until_done(act):
    """Mend what only Redis itself can mend, when it is there again."""
    while True:
        try:
            return act()
        except RedisError:
            time.sleep(0.2)
