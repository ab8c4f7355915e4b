"""Tenants in the ledger: who shares the farm, in what parts, and what each has had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from farm.ledger.connection import PREFIX, Connection, translate_outage
from farm.ledger.records import TenantLimits, TenantStatus

_FIELDS: Final = ("weight", "max_queued", "max_running", "queued", "held", "in_flight", "gpu_ms", "images")


class Tenants:
    """The part of the ledger that concerns tenants."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.redis

    def set_tenant(self, name: str, limits: TenantLimits) -> None:
        """Say what part of the farm a tenant gets; it need not have sent anything yet."""
        key = f"{PREFIX}tenant:{name}"
        given = {"weight": limits.weight, "max_queued": limits.max_queued_images, "max_running": limits.max_running}
        with translate_outage(), self._redis.pipeline() as pipe:
            pipe.sadd(f"{PREFIX}tenants", name)
            for field, value in given.items():
                pipe.hdel(key, field) if value is None else pipe.hset(key, field, value)
            pipe.execute()

    def tenant(self, name: str) -> TenantStatus:
        """Return a tenant's limits and use; of one that was never heard of, the defaults and nothing."""
        return self._tenants([name])[0]

    def tenants(self) -> list[TenantStatus]:
        """Return every tenant that has sent a job or was given limits, by name."""
        with translate_outage():
            names = self._redis.smembers(f"{PREFIX}tenants")
        return self._tenants(sorted(name.decode() for name in names))

    def _tenants(self, names: Sequence[str]) -> list[TenantStatus]:
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(f"{PREFIX}tenant:{name}", *_FIELDS)
                pipe.scard(f"{PREFIX}tenant:{name}:jobs")
            answers = pipe.execute()
        found = []
        for name, fields, num_jobs in zip(names, answers[::2], answers[1::2], strict=True):
            weight, max_queued, max_running, *counts = fields
            queued, held, in_flight, gpu_ms, images = (int(count or 0) for count in counts)
            limits = TenantLimits(
                weight=float(weight or 1),
                max_queued_images=None if max_queued is None else int(max_queued),
                max_running=None if max_running is None else int(max_running),
            )
            found.append(
                TenantStatus(
                    name=name,
                    limits=limits,
                    queued=queued + held,
                    running=in_flight,
                    images=images,
                    gpu_s=gpu_ms / 1000,
                    open_jobs=num_jobs,
                )
            )
        return found

    def tenants_of(self, job_ids: Sequence[str]) -> dict[str, str | None]:
        """Return whose each of these jobs is; None for one that has expired, or never was."""
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(f"{PREFIX}job:{job_id}", "tenant")
            names = pipe.execute()
        return {job: None if name is None else name.decode() for job, name in zip(job_ids, names, strict=True)}

    def open_jobs(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's jobs that are not settled."""
        with translate_outage():
            return sorted(job.decode() for job in self._redis.smembers(f"{PREFIX}tenant:{tenant}:jobs"))
