"""The Celery app and all its settings; how units become messages. It decides nothing: a message is a hint.

The ledger is the truth, so a message that is lost, doubled or late costs time and never work. That is why
nothing here tries to make Celery's delivery exact: no result backend, no retries by Celery, and no messages put
back when a connection closes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from queue import Empty
from typing import Any, Final

import kombu
from celery import Celery
from celery.app.amqp import AMQP
from kombu import Exchange, Queue
from kombu.asynchronous import get_event_loop
from kombu.exceptions import KombuError, OperationalError
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from farm.errors import LedgerDown
from farm.jobs import Hint, UrgentHint
from farm.settings import Settings

log: Final = logging.getLogger(__name__)

RENDER_TASK: Final = "farm.render"
"""Name of the one task. Its arguments are a Hint's fields: job, index, attempt."""

_LONGEST_PAUSE_S: Final = 2.0
"""Between two tries of a worker to reach Redis."""
_QUEUE_PREFIX: Final = "render."
_URGENT: Final = ":urgent"
_MAX_HELD: Final = "max_held"
"""Our own among the transport's options."""
_NOBODYS_QUEUE: Final = f"{_QUEUE_PREFIX}:none"
"""Read by who has nothing to read: kombu asks again what to read after each read, and only then."""


class _QoS(virtual.QoS):  # type: ignore[misc]  # kombu ships no types
    """Bookkeeping of unacknowledged messages in this process alone, for the prefetch limit.

    kombu also keeps it in Redis, to bring back after hours what a dead reader had not acknowledged. Here the ledger
    brings work back, in seconds, so that this would only leave messages behind, cost two round trips each, and stop a
    reader for good: by an ack that Redis did not hear, or by a message that a full Redis could not note.
    """

    def can_consume(self) -> bool:
        """Return whether to read on: below the prefetch limit, and below that of `hold_at_most`."""
        limit = self.channel.connection.client.transport_options.get(_MAX_HELD)
        return super().can_consume() and (limit is None or len(self._delivered) - len(self._dirty) < limit())

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's signature
        """Take a message off the books; put back one that came when its reader had just stopped, if Redis is there."""
        message = self._delivered.get(delivery_tag)
        self.ack(delivery_tag)
        if requeue and message is not None:
            where = message.delivery_info["exchange"], message.delivery_info["routing_key"]
            # What is lost here the ledger hints again.
            with suppress(*self.channel.connection_errors), self.channel.conn_or_acquire() as client:
                self.channel._do_restore_message(message.serializable(), *where, client)  # noqa: SLF001


class _Channel(kombu_redis.Channel):  # type: ignore[misc]
    """A Redis channel that puts back nothing that was begun, and outlives what is no message.

    Putting messages back when a connection closes runs every unit in progress a second time, and in kombu 5.7.0 it can
    end the worker: by then the connection has forgotten its address ("'NoneType' object has no attribute 'hostname'").
    Keys are all kombu's own doing, so prefixes and priorities stay as it writes them.
    """

    do_restore = False
    QoS = _QoS

    def _brpop_read(self, **options: Any) -> Any:
        """Read a message and pass it on; drop what is no JSON, which would end the worker and its successors."""
        try:
            return super()._brpop_read(**options)
        except ValueError as error:
            _tell_unreadable(error)
            raise Empty from error


class FarmTransport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport with our channel."""

    Channel = _Channel

    def _deliver(self, message: object, queue: str) -> None:
        """Pass on what has the shape of a message; what else is wrong with one, Celery tells."""
        match message:
            case {"properties": {"delivery_tag": str()}}:
                super()._deliver(message, queue)
            case _:
                _tell_unreadable(message)


class _Connection(kombu.Connection):  # type: ignore[misc]
    """A connection that does not sleep for half a minute when Redis has been away for long.

    kombu's pauses grow to 30 s, without a setting; work is to resume within two leases of an outage's end.
    """

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """Connect, as often and as long as it takes."""
        pauses = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": _LONGEST_PAUSE_S}
        return super().ensure_connection(*args, **{**pauses, **options})


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = _Connection


def _tell_unreadable(what: object) -> None:
    log.error("dropped an unreadable message: %.200r", what, extra={"action": "message_unreadable"})


def queue_for(model: str, *, urgent: bool = False) -> str:
    """Return the name of the queue that carries the units of `model`, or those of them that are read first."""
    return f"{_QUEUE_PREFIX}{model}{_URGENT if urgent else ''}"


def make_celery(settings: Settings) -> Celery:
    """Build the Celery app. Connects to nothing.

    Most settings stand here because their defaults were measured to lose, double or delay units.
    """
    app = Celery("farm", broker=settings.redis_url, amqp=_Amqp, set_as_current=False)
    app.conf.update(
        broker_transport=f"{__name__}:{FarmTransport.__name__}",
        broker_transport_options={
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,  # a connection that died silently is noticed within this
            "priority_steps": [0],  # the ledger orders by priority; one Redis list per model
            "max_retries": 1,  # of publishers: who publishes has a better plan than to wait
            "interval_start": 0,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any outage of Redis
        broker_channel_error_retry=True,  # and one that answers, but refuses to write
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_publish_retry=False,  # the ledger hints again
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the engine goes on; the ledger settles
        worker_enable_prefetch_count_reduction=False,
        worker_soft_shutdown_timeout=0,
        worker_enable_remote_control=False,  # workers report to the ledger; one connection fewer
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def queues(models: Iterable[str]) -> list[Queue]:
    """Return the queues of `models`, for a worker to read."""
    return [_queue(queue_for(model, urgent=urgent)) for model in models for urgent in (False, True)]


def read_only(app: Celery, models: Callable[[], Collection[str]]) -> None:
    """Have a worker of `app` read, of its queues, those of `models()` only; asked before each read, which takes 1 s.

    Urgent messages come first. Of several queues with messages the one that was read last comes last.
    """

    class Order:
        """A `queue_order_strategy` of kombu, which makes one for each channel."""

        def __init__(self) -> None:
            self._queues: list[str] = []

        def update(self, queues: Iterable[str]) -> None:
            self._queues = list(queues)

        def consume(self, _count: int) -> list[str]:
            wanted = {queue_for(model, urgent=urgent) for model in models() for urgent in (False, True)}
            names = [name for name in self._queues if name in wanted]
            return sorted(names, key=lambda name: not name.endswith(_URGENT)) or [_NOBODYS_QUEUE]

        def rotate(self, last_used: str) -> str:
            if last_used in self._queues:
                self._queues.remove(last_used)
                self._queues.append(last_used)
            return last_used

    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "queue_order_strategy": Order}


def hold_at_most(app: Celery, limit: Callable[[], int]) -> None:
    """Have a worker of `app` read no further while `limit()` messages are not done; asked before each read.

    What is not read is there for others. `read_on` says that the limit has risen; a message that is done says so too.
    """
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, _MAX_HELD: limit}


def read_on() -> None:
    """Have this process' worker look whether it may read; any thread. Without one nothing happens."""
    hub = get_event_loop()
    if hub is not None:
        hub.call_soon(lambda: None)


def publish(app: Celery, hints: Sequence[tuple[str, Hint]]) -> None:
    """Send one message per (model, hint), in order, in as few round trips as the transport allows.

    Raises LedgerDown when Redis does not answer; which of the messages were sent is then unknown, and the ledger
    hints again those that were not.
    """
    if not hints:
        return
    try:
        with app.producer_pool.acquire(block=True) as producer, producer.batch():
            for model, hint in hints:
                app.send_task(
                    RENDER_TASK,
                    args=list(hint),
                    queue=_queue(queue_for(model, urgent=isinstance(hint, UrgentHint))),
                    producer=producer,
                    ignore_result=True,
                )
    except _broker_errors(app) as error:
        raise LedgerDown(f"hints could not be sent: {error}") from error


def queue_length(app: Celery, model: str) -> int:
    """Return how many messages of `model` no worker has read yet.

    Raises LedgerDown when Redis does not answer.
    """
    try:
        with app.pool.acquire(block=True) as connection:
            # Not queue_declare(passive=True): that raises for a queue that is merely empty.
            size = connection.default_channel._size  # noqa: SLF001
            return sum(int(size(queue_for(model, urgent=urgent))) for urgent in (False, True))
    except _broker_errors(app) as error:
        raise LedgerDown(f"the length of {queue_for(model)} could not be read: {error}") from error


def purge(app: Celery, model: str) -> int:
    """Drop the messages of `model` that no worker has read, and return how many there were.

    Raises LedgerDown when Redis does not answer.
    """
    try:
        with app.pool.acquire(block=True) as connection:
            drop = connection.default_channel._purge  # noqa: SLF001  as above: queue_purge wants it declared
            return sum(int(drop(queue_for(model, urgent=urgent))) for urgent in (False, True))
    except _broker_errors(app) as error:
        raise LedgerDown(f"{queue_for(model)} could not be purged: {error}") from error


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


def _broker_errors(app: Celery) -> tuple[type[BaseException], ...]:
    """Return what kombu raises when the broker is away: redis-py's errors as they are, and its own."""
    connection: Any = app.connection_for_write()
    return (
        OperationalError,
        KombuError,
        *connection.connection_errors,
        *connection.channel_errors,
    )
