"""Workers in the ledger: who lives, what they serve, what waits for them, and news of it as it happens."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final

from farm.jobs import Watch
from farm.ledger.connection import PREFIX, Connection, translate_outage
from farm.ledger.records import Demand, ModelDemand, News, WorkerReport
from farm.requests import Priority

_FORGET_WORKER_S: Final = 600


class Servers:
    """The part of the ledger that concerns workers. `alive_s`: a worker silent for longer is taken for dead."""

    def __init__(self, connection: Connection, *, alive_s: float) -> None:
        self._connection = connection
        self._redis = connection.redis
        self._alive_s = alive_s
        self._listener: Any = None

    @property
    def alive_s(self) -> float:
        """Seconds after its last heartbeat that a worker is still taken for alive."""
        return self._alive_s

    def report(self, report: WorkerReport) -> float:
        """Note a heartbeat; return when it was sent, by the ledger's clock.

        Units are handed out for the models that live workers serve.
        """
        sent_at = self._connection.now()
        stamped = report.model_copy(update={"seen_at": sent_at})
        self._connection.run(
            "report",
            report.name,
            report.node,
            stamped.model_dump_json(),
            report.useful_seats,
            ",".join(report.models),
            ",".join(report.models if report.serving is None else report.serving),
            _FORGET_WORKER_S,
        )
        return sent_at

    def forget(self, worker: str) -> None:
        """Remove a worker that stops in good order."""
        self._connection.run("forget", worker)

    def workers(self) -> list[WorkerReport]:
        """Return the last reports of the workers that are alive, by name."""
        with translate_outage():
            reports = [WorkerReport.model_validate_json(text) for text in self._redis.hvals(f"{PREFIX}workers")]
        alive_since = self._connection.now() - self._alive_s
        return sorted((report for report in reports if report.seen_at >= alive_since), key=lambda r: r.name)

    def demand(self) -> Demand:
        """Return what waits, for whom, and who serves it."""
        answer = json.loads(self._connection.run("demand", self._alive_s))
        models = {}
        for found in answer.pop("models", ()):
            priority = found.pop("top_priority")
            model = found.pop("model")
            models[model] = ModelDemand(top_priority=None if priority is None else Priority(priority), **found)
        return Demand(models=models, **answer)

    def serve(self, worker: str, serving: Sequence[str], *, models: Sequence[str], seats: int, version: int) -> bool:
        """Serve these of one's `models` from now on; False when another worker chose since `version` was looked at.

        What was handed out for a model that nobody serves any more goes back to the backlog, unless it is claimed.
        """
        answer = self._connection.run("serve", worker, version, seats, ",".join(models), ",".join(serving))
        return bool(answer)

    def unserved(self, models: Sequence[str]) -> list[str]:
        """Return those of `models` that no worker serves."""
        if not models:
            return []
        with translate_outage():
            seats = self._redis.hmget(f"{PREFIX}seats", list(models))
        return [model for model, count in zip(models, seats, strict=True) if int(count or 0) <= 0]

    def news(self, timeout_s: float) -> list[News]:
        """Wait up to `timeout_s` for something to happen; return what did, nothing on a quiet wait.

        What is told while nobody waits is lost: `renew` and `demand` tell the same a little later.
        """
        told: list[News] = []
        with translate_outage():
            if self._listener is None:
                listener = self._redis.pubsub()
                # Two channels: workers of older farms do not know what is told on the second.
                channels = [f"{PREFIX}news", f"{PREFIX}watched"]
                listener.subscribe(*channels)
                for _ in channels:
                    listener.get_message(timeout=1.0)  # the server's word that we listen, from here on
                self._listener = listener
            deadline_s = time.monotonic() + timeout_s
            while message := self._listener.get_message(timeout=0 if told else max(0.0, deadline_s - time.monotonic())):
                if message["type"] == "message":  # or the echo of a subscription renewed after an outage
                    told.append(_news(message["channel"].decode().removeprefix(PREFIX), message["data"].decode()))
        return told


def _news(channel: str, text: str) -> News:
    match [channel, *text.split(" ")]:
        case ["news", "work", model]:
            return News(model=model)
        case ["news", "cancelled", job]:
            return News(job=job)
        case ["news", "cancelled", job, index]:
            return News(job=job, index=int(index))
        case ["watched", job, every_steps, for_ms]:
            return News(job=job, watch=Watch(int(every_steps), int(for_ms) / 1000))
    raise ValueError(f"no news that we know: {text!r}")
