"""What APIs with a notion of "current" keep for whoever calls them: options that were set, and what is being rendered.

A client is a text that its API makes of whoever calls; here it is hashed, so that it may be of any length and form. All
of it expires: none of it is worth keeping once its client has gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from farm.ledger.connection import PREFIX, Connection, translate_outage

_OPTIONS_EXPIRY_S: Final = 30 * 24 * 3600
_TASKS_EXPIRY_S: Final = 24 * 3600
_MAX_TASKS: Final = 256  # of one client; older ones are forgotten


class Clients:
    """The part of the ledger that concerns clients of APIs that have options and a current task."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.redis

    def options(self, client: str) -> dict[str, Any]:
        """Return the options that a client has set within the last thirty days."""
        with translate_outage():
            found = self._redis.hgetall(_key(client, "options"))
        return {name.decode(): json.loads(value) for name, value in found.items()}

    def set_options(self, client: str, changes: Mapping[str, Any]) -> None:
        """Change some of a client's options, which are JSON values; the others stay."""
        if not changes:
            return
        key = _key(client, "options")
        with translate_outage(), self._redis.pipeline() as pipe:
            pipe.hset(key, mapping={name: json.dumps(value) for name, value in changes.items()})
            pipe.expire(key, _OPTIONS_EXPIRY_S)
            pipe.execute()

    def begin_task(self, client: str, job_id: str, *, scope: str = "", task_id: str = "") -> None:
        """Note that a client waits for a job, and what it calls it, if anything: a name that is its `scope`'s alone.

        The job need not be there yet.
        """
        at = self._connection.now()
        key = _key(client, "tasks")
        with translate_outage(), self._redis.pipeline() as pipe:
            pipe.zadd(key, {job_id: at})
            pipe.zremrangebyrank(key, 0, -_MAX_TASKS - 1)
            pipe.expire(key, _TASKS_EXPIRY_S)
            if task_id:
                pipe.set(_key(f"{scope}\n{task_id}", "task"), job_id, ex=_TASKS_EXPIRY_S)
            pipe.execute()

    def end_task(self, client: str, job_id: str) -> None:
        """Note that a client does not wait for a job any more; its name stays known."""
        with translate_outage():
            self._redis.zrem(_key(client, "tasks"), job_id)

    def tasks(self, client: str) -> list[str]:
        """Return the jobs that a client waits for, in the order in which they were begun."""
        with translate_outage():
            return [job_id.decode() for job_id in self._redis.zrange(_key(client, "tasks"), 0, -1)]

    def job_of_task(self, scope: str, task_id: str) -> str | None:
        """Return the job that was last begun under a name within a scope, if any was within the last day."""
        with translate_outage():
            found = self._redis.get(_key(f"{scope}\n{task_id}", "task"))
        return None if found is None else str(found.decode())

    def advance(self, job_id: str, progress: float) -> float:
        """Return the most that was ever said of a job's progress, this included: a share from 0 to 1.

        An image that has to be rendered anew would take it back otherwise.
        """
        key = f"{PREFIX}client:progress:{job_id}"
        with translate_outage(), self._redis.pipeline() as pipe:
            pipe.zadd(key, {"": progress}, gt=True)
            pipe.expire(key, _TASKS_EXPIRY_S)
            pipe.zscore(key, "")
            *_, furthest = pipe.execute()
        return float(furthest)


def _key(client: str, kind: str) -> str:
    return f"{PREFIX}client:{kind}:{hashlib.sha256(client.encode()).hexdigest()[:40]}"
