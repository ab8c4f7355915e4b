"""What an operator asks of the ledger that no client does: how long work waits, what went wrong, what is left to do.

Read without changing anything, and not in one step: good enough for a dashboard, and no script that Redis stands still
for. Read at every scrape, so what it costs is bounded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from farm.ledger.connection import PREFIX, Connection, translate_outage
from farm.ledger.records import ChoreBacklog, ModelBacklog, RedisMemory
from farm.requests import Priority

_JOBS_LOOKED_AT: Final = 200
"""Jobs of a lane's tenant whose images are counted: beyond them the count is low, but never nothing."""


class Overview:
    """The part of the ledger that a dashboard reads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.redis

    def backlog(self, models: Iterable[str]) -> list[ModelBacklog]:
        """Return what waits to be handed out for each of `models`, by priority; nothing where nothing waits."""
        lanes = [(model, priority) for model in models for priority in Priority]
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for model, priority in lanes:
                pipe.smembers(f"{PREFIX}lane:{model}:{priority}")
            crowds = dict(zip(lanes, pipe.execute(), strict=True))
            of_tenants = [(lane, tenant.decode()) for lane, tenants in crowds.items() for tenant in tenants]
            for (model, priority), tenant in of_tenants:
                pipe.lrange(f"{PREFIX}lane:{model}:{priority}:{tenant}", 0, _JOBS_LOOKED_AT - 1)
            jobs = [
                (lane, job.decode())
                for (lane, _), found in zip(of_tenants, pipe.execute(), strict=True)
                for job in found
            ]
            for _, job in jobs:
                pipe.hmget(f"{PREFIX}job:{job}", "queued", "created_at")
            facts = pipe.execute()
        now = self._connection.now()
        images: dict[tuple[str, Priority], int] = {}
        since: dict[tuple[str, Priority], float] = {}
        for (lane, _), (queued, created_at) in zip(jobs, facts, strict=True):
            if queued is not None:  # settled between two of the questions
                images[lane] = images.get(lane, 0) + int(queued)
                since[lane] = min(since.get(lane, now), float(created_at))
        return [
            ModelBacklog(*lane, images=count, oldest_s=max(0.0, now - since[lane])) for lane, count in images.items()
        ]

    def events(self) -> dict[tuple[str, str], int]:
        """Return how often, since the ledger began, something happened to a unit, by (model, what).

        `failed`: it was given up for good. `back:expired`, `back:died`, `back:error`, `back:released`: it was taken
        back from a worker: its lease ran out, a successor found the worker dead, it failed, or the worker had to go.
        """
        with translate_outage():
            counts = self._redis.hgetall(f"{PREFIX}events")
        found = {}
        for name, count in counts.items():
            model, _, what = name.decode().rpartition("|")
            found[model, what] = int(count)
        return found

    def gpu_s_by_model(self) -> dict[str, float]:
        """Return the device time of each model's stored images since the ledger began."""
        with translate_outage():
            told = self._redis.hgetall(f"{PREFIX}gpu_ms")
        return {model.decode(): int(gpu_ms) / 1000 for model, gpu_ms in told.items()}

    def chores(self, kinds: Collection[str]) -> list[ChoreBacklog]:
        """Return what is left to do of each kind."""
        now = self._connection.now()
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for kind in kinds:
                pipe.zcard(f"{PREFIX}chores:{kind}")
                pipe.zcount(f"{PREFIX}chores:{kind}", "-inf", now)
                pipe.zrange(f"{PREFIX}chores:{kind}", 0, 0, withscores=True)
            answers = pipe.execute()
        return [
            ChoreBacklog(kind, planned=planned, due=due, overdue_s=max(0.0, now - first[0][1]) if first else 0.0)
            for kind, planned, due, first in zip(kinds, answers[::3], answers[1::3], answers[2::3], strict=True)
        ]

    def redis_memory(self) -> RedisMemory:
        """Return how full the server is. It evicts nothing, so a full one refuses jobs."""
        with translate_outage():
            told = self._redis.info("memory")
        return RedisMemory(used_bytes=int(told["used_memory"]), max_bytes=int(told.get("maxmemory", 0)))
