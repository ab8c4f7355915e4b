"""The chore "webhook": one try to tell a receiver of a job's event, what became of it, and when to try again.

Also the record of the last try, kept with the job in the ledger for whoever asks why nothing arrives.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import prometheus_client
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, ValidationError

from api.chores import NoRoom, NotYet
from api.parts import Parts
from api.webhooks.payload import message_of
from api.webhooks.sending import Outcome
from farm.errors import LedgerDown, UnknownJob

if TYPE_CHECKING:
    from farm.ledger.records import Chore

log = logging.getLogger(__name__)

State = Literal["waiting", "retrying", "delivered", "gone", "given_up"]

SCHEDULE_S: Final = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds from each failed try to the next one, as Standard Webhooks recommends; after the last nobody tries again."""

AT_ONCE: Final = 16
"""Tries that one process makes at the same time: they mostly wait."""

_AT_ONCE_TO_ONE: Final = 4  # receiver: one that hangs holds up its own messages, and nobody else's
_NO_ROOM_S: Final = 20.0
_JITTER: Final = 0.1
_MOST_RETRY_AFTER_S: Final = 86_400.0
_MAX_ERROR_CHARS: Final = 300


class Delivery(BaseModel):
    """How far one event of a job has got: the record that lies in the ledger."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str | None = None  # the `webhook-id`; None before the first try
    state: State = "waiting"
    tries: int = 0
    status: int | None = None  # of the last answer, if there was one
    error: str | None = None  # of the last try
    tried_at: float | None = None  # Unix time
    next_try_at: float | None = None


class DeliveryMetrics:
    """Counts the tries of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tries = prometheus_client.Counter(
            "farm_webhook_tries",
            "Tries to deliver a webhook, by what became of it; given_up and gone are not tried again.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("delivered", "failed", "gone", "given_up"):
            self._tries.labels(outcome)  # from the start, so that rates begin at 0 and not at a gap

    def count(self, state: State) -> None:
        """Note one try that ended so."""
        self._tries.labels("failed" if state == "retrying" else state).inc()


class Deliveries:
    """The handler of the chore."""

    def __init__(self, metrics: DeliveryMetrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._busy: Counter[str] = Counter()  # tries under way, by host and port

    def __call__(self, farm: Parts, chore: Chore) -> None:
        """Make one try; raises NotYet with the time of the next one, if there is to be one, and NoRoom."""
        try:
            status = farm.ledger.job(chore.job)
        except UnknownJob:
            return  # expired, or pruned: there is nothing left to tell
        webhook = status.header.webhook
        if webhook is None:
            return
        price = farm.settings.gpu_hour_price
        message = message_of(status, chore.event, chore.count, now_s=time.time(), gpu_hour_price=price)
        with self._room_at(urlsplit(webhook.url).netloc.lower()):
            outcome = farm.webhooks.send(webhook.url, message)
        delivery = judge(message.id, outcome, tries=chore.tries, now_s=time.time())
        self._metrics.count(delivery.state)
        _tell(chore, webhook.url, delivery)
        try:
            farm.ledger.note_delivery(chore.job, chore.event, delivery.model_dump_json())
        except LedgerDown as error:  # the record is a courtesy: no reason to send again
            log.warning("A webhook's fate was not noted: %s", error, extra={"action": "webhook_unnoted"})
        if delivery.next_try_at is not None and delivery.tried_at is not None:
            raise NotYet(f"webhook: {delivery.error}", again_s=delivery.next_try_at - delivery.tried_at)

    @contextmanager
    def _room_at(self, receiver: str) -> Iterator[None]:
        """Hold one of the tries that a receiver may have at a time; raises NoRoom."""
        with self._lock:
            if self._busy[receiver] >= _AT_ONCE_TO_ONE:
                raise NoRoom(f"{receiver} is busy", again_s=_NO_ROOM_S * random.uniform(0.5, 1.5))  # noqa: S311
            self._busy[receiver] += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[receiver] -= 1
                if not self._busy[receiver]:
                    del self._busy[receiver]  # their number has no bound


def judge(message_id: str, outcome: Outcome, *, tries: int, now_s: float) -> Delivery:
    """Return what one try means, `tries` failed ones having gone before it."""
    state: State = "retrying"
    next_try_at = None
    if outcome.is_delivered:
        state = "delivered"
    elif outcome.is_gone:
        state = "gone"
    elif tries >= len(SCHEDULE_S):
        state = "given_up"
    else:
        # Never before the schedule's time: what is scattered is scattered to later.
        delay_s = SCHEDULE_S[tries] * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311  not a secret
        next_try_at = now_s + max(delay_s, min(outcome.retry_after_s, _MOST_RETRY_AFTER_S))
    return Delivery(
        id=message_id,
        state=state,
        tries=tries + 1,
        status=outcome.status,
        error=None if outcome.error is None else outcome.error[:_MAX_ERROR_CHARS],
        tried_at=now_s,
        next_try_at=next_try_at,
    )


def deliveries_of(farm: Parts, job_id: str, events: tuple[str, ...]) -> dict[str, Delivery]:
    """Return how far each of these events of a job has got; raises LedgerDown."""
    noted = farm.ledger.deliveries(job_id)
    return {event: _read(noted.get(event)) for event in events}


def _read(text: str | None) -> Delivery:
    try:
        return Delivery() if text is None else Delivery.model_validate_json(text)
    except ValidationError:  # written by another release
        return Delivery()


def _tell(chore: Chore, url: str, delivery: Delivery) -> None:
    """Log one try. Of the URL only the host: the rest may be a secret."""
    host = urlsplit(url).hostname
    extra = {
        "action": f"webhook_{delivery.state}",
        "job": chore.job,
        "event": chore.event,
        "webhook_id": delivery.id,
        "host": host,
        "status": delivery.status,
        "tries": delivery.tries,
    }
    match delivery.state:
        case "delivered":
            log.info("%s of %s delivered", chore.event, chore.job, extra=extra)
        case "retrying":
            log.info("%s of %s is not delivered yet: %s", chore.event, chore.job, delivery.error, extra=extra)
        case _:
            log.warning("%s of %s is given up: %s", chore.event, chore.job, delivery.error, extra=extra)
