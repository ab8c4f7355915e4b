"""Messages and queues against a real Valkey."""

from __future__ import annotations

import json

import pytest

from farm.errors import LedgerDown
from farm.jobs import Hint
from farm.queue import RENDER_TASK, make_celery, publish, queue_for, queue_length, queues
from farm.settings import Settings
from servers import valkey


@pytest.fixture
def app(redis_url):
    """Return a Celery app whose broker is empty."""
    app = make_celery(Settings(redis_url=redis_url))
    yield app
    app.close()


def test_a_models_hints_go_to_its_queue_in_order(app):
    """Consumers get hints in the order in which the ledger gave them."""
    hints = [Hint("job_a", index, 1) for index in range(5)]
    publish(app, [("scenes", hint) for hint in hints] + [("sd15", Hint("job_b", 0, 2))])
    assert queue_length(app, "scenes") == 5
    assert queue_length(app, "sd15") == 1
    with app.connection_for_read() as connection:
        got = [connection.default_channel.basic_get(queue_for("scenes")) for _ in hints]
    assert [Hint(*message.decode()[0]) for message in got] == hints
    assert {message.headers["task"] for message in got} == {RENDER_TASK}


def test_a_queue_nobody_wrote_to_is_empty(app):
    """Asking does not need the queue to exist."""
    assert queue_length(app, "scenes") == 0


def test_an_empty_publish_asks_nobody():
    """A feed without hints costs no round trip."""
    publish(make_celery(Settings(redis_url="redis://127.0.0.1:1/0")), [])


def test_broker_that_is_away_is_said_at_once():
    """Without Redis both directions raise LedgerDown, and work again once it is back."""
    with valkey() as server:
        app = make_celery(server.settings())
        hint = ("scenes", Hint("job_a", 0, 1))
        publish(app, [hint])
        server.kill()
        for _ in range(2):
            with pytest.raises(LedgerDown):
                publish(app, [hint])
            with pytest.raises(LedgerDown):
                queue_length(app, "scenes")
        server.start()
        publish(app, [hint])
        assert queue_length(app, "scenes") == 2  # the first one survived the kill
        app.close()


def test_one_redis_list_per_model(app):
    """Priorities are the ledger's: a message of any priority lands in the one list that workers read."""
    publish(app, [("scenes", Hint("job_a", 0, 1))])
    app.send_task(RENDER_TASK, args=["job_a", 1, 1], queue=queues(["scenes"])[0], priority=9)
    with app.connection_for_read() as connection:
        raw = connection.default_channel.client.lrange("render.scenes", 0, -1)
    assert len(raw) == 2
    assert all(json.loads(message)["headers"]["task"] == RENDER_TASK for message in raw)


def test_a_channel_that_closes_puts_nothing_back(app):
    """A unit in progress is not started again because a connection dropped; a late ack harms nobody."""
    publish(app, [("scenes", Hint("job_a", 0, 1))])
    connection = app.connection_for_read()
    (message,) = consume(connection.channel(), 1)
    connection.close()
    message.ack()
    assert queue_length(app, "scenes") == 0


def test_redis_keeps_no_books_of_what_is_being_worked_on(app):
    """A message that was read is gone from Redis: a reader that dies leaves nothing to come back in an hour."""
    publish(app, [("scenes", Hint("job_a", index, 1)) for index in range(2)])
    connection = app.connection_for_read()
    consume(connection.channel(), 2)
    with app.connection_for_read() as other:
        assert all(key.startswith(b"_kombu.") for key in other.default_channel.client.scan_iter())
    connection.close()


def test_a_message_that_nobody_could_take_goes_back_to_the_front(app):
    """It came when its reader had just stopped reading; the next reader gets it before all others."""
    publish(app, [("scenes", Hint("job_a", index, 1)) for index in range(2)])
    connection = app.connection_for_read()
    (first,) = consume(connection.channel(), 1)
    first.reject(requeue=True)
    connection.close()
    with app.connection_for_read() as other:
        again = consume(other.default_channel, 2)
    assert [Hint(*message.decode()[0]).index for message in again] == [0, 1]


@pytest.mark.parametrize("settle", ["ack", "reject"])
def test_an_ack_that_redis_does_not_hear_frees_the_thread_all_the_same(settle):
    """Else as many lost acks as there are threads would end all reading, in silence."""
    with valkey() as server:
        app = make_celery(server.settings())
        publish(app, [("scenes", Hint("job_a", index, 1)) for index in range(2)])
        connection = app.connection_for_read()
        channel = connection.channel()
        channel.basic_qos(0, 2)
        messages = consume(channel, 2)
        assert not channel.qos.can_consume()
        server.kill()
        for message in messages:
            getattr(message, settle)()
        assert channel.qos.can_consume()
        server.start()
        connection.close()
        app.close()


def consume(channel, count):
    """Take messages from the queue of scenes as a consumer does: unacknowledged."""
    messages = [channel.basic_get(queue_for("scenes")) for _ in range(count)]
    for message in messages:
        channel.qos.append(message, message.delivery_tag)
    return messages


def test_settings_that_keep_units_from_being_lost_or_doubled(app):
    """Guards the settings whose defaults were measured to harm."""
    conf = app.conf
    assert conf.task_acks_late
    assert conf.task_ignore_result
    assert conf.worker_prefetch_multiplier == 1
    assert not conf.worker_cancel_long_running_tasks_on_connection_loss
    assert conf.broker_connection_max_retries is None
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
