"""What one try of a webhook leads to: when the next one is, who may wait, what is noted and what is logged."""

import logging
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from api.chores import NoRoom, NotYet
from api.webhooks.deliveries import SCHEDULE_S, Deliveries, Delivery, DeliveryMetrics, deliveries_of, judge
from api.webhooks.sending import Outcome
from expanded_jobs import expanded_job
from farm.errors import LedgerDown, UnknownJob
from farm.jobs import Counts
from farm.ledger import Chore, JobStatus
from farm.requests import WebhookSpec

NOW = 1_795_000_000.0
OK = Outcome(status=204)
FAILED = Outcome(status=500, error="answered 500")
RECEIVER = "https://receiver.example/hook?token=secret"


class PlayedLedger:
    """Jobs by id, each with its webhook's URL; remembers what is noted."""

    def __init__(self, **urls):
        self.urls, self.noted, self.is_down = urls, {}, False

    def job(self, job_id):
        if job_id not in self.urls:
            raise UnknownJob("there is none")
        spec = WebhookSpec(url=self.urls[job_id])
        header = expanded_job(webhook=spec).header
        counts = Counts(total=header.total, queued=0, rendering=0, stored=header.total, failed=0, cancelled=0)
        figures = {"gpu_s": 1.0, "retries": 0, "images_per_s": 1.0, "eta_s": 0.0}
        return JobStatus(
            header=header, counts=counts, cancelled=False, started_at=NOW, finished_at=NOW + 1, paused=False, **figures
        )

    def note_delivery(self, job_id, event, text):
        if self.is_down:
            raise LedgerDown("away")
        self.noted[job_id, event] = text

    def deliveries(self, job_id):
        return {event: text for (job, event), text in self.noted.items() if job == job_id}


def farm_of(ledger, send):
    """Return what the handler works with."""
    settings = SimpleNamespace(gpu_hour_price=None)
    return SimpleNamespace(ledger=ledger, settings=settings, webhooks=SimpleNamespace(send=send))


def chore(job="a", *, tries=0):
    """Return the chore to tell of a job's end."""
    return Chore(kind="webhook", job=job, event="job.done", count=1, due_at=NOW, tries=tries)


@pytest.fixture
def handler():
    """Return the handler."""
    return Deliveries(DeliveryMetrics(CollectorRegistry()))


@given(st.integers(0, len(SCHEDULE_S) - 1), st.floats(0, 1e9))
def test_the_next_try_is_never_before_its_time_nor_much_later(tries, retry_after_s):
    """Up to a tenth after the schedule's time, or when the receiver asked for, but within a day."""
    outcome = Outcome(status=503, error="answered 503", retry_after_s=retry_after_s)
    delivery = judge("msg_a", outcome, tries=tries, now_s=NOW)
    delay_s = delivery.next_try_at - NOW
    asked_s = min(retry_after_s, 86_400.0)
    assert (delivery.state, delivery.tries) == ("retrying", tries + 1)
    assert delay_s >= max(SCHEDULE_S[tries], asked_s) - 1e-3
    assert delay_s <= max(SCHEDULE_S[tries] * 1.1, asked_s) + 1e-3


@pytest.mark.parametrize(
    ("outcome", "tries", "state"),
    [
        (OK, 0, "delivered"),
        (OK, len(SCHEDULE_S), "delivered"),
        (Outcome(status=410, error="answered 410"), 0, "gone"),
        (FAILED, len(SCHEDULE_S) - 1, "retrying"),
        (FAILED, len(SCHEDULE_S), "given_up"),
        (Outcome(error="no answer in time"), len(SCHEDULE_S) + 5, "given_up"),
    ],
)
def test_an_outcome_ends_it_or_does_not(outcome, tries, state):
    """2xx and 410 at once, the tenth failure at last."""
    delivery = judge("msg_a", outcome, tries=tries, now_s=NOW)
    assert delivery.state == state
    assert (delivery.next_try_at is not None) is (state == "retrying")


def test_a_failed_try_asks_for_the_next_one(handler):
    """The chore comes again when the record says."""
    ledger = PlayedLedger(a=RECEIVER)
    with pytest.raises(NotYet) as caught:
        handler(farm_of(ledger, lambda *_: FAILED), chore(tries=1))
    noted = deliveries_of(farm_of(ledger, None), "a", ("job.done", "job.failed"))
    assert (noted["job.done"].state, noted["job.done"].tries) == ("retrying", 2)
    assert noted["job.failed"] == Delivery()
    assert SCHEDULE_S[1] <= caught.value.again_s <= SCHEDULE_S[1] * 1.1
    assert not isinstance(caught.value, NoRoom)


def test_a_job_that_is_gone_is_not_told_of(handler):
    """It has expired: nothing is sent, and nothing is left to do."""
    handler(farm_of(PlayedLedger(), pytest.fail), chore("b"))


def test_what_was_delivered_is_not_sent_again_because_it_could_not_be_noted(handler):
    """The record is for people; the chore is done."""
    ledger = PlayedLedger(a=RECEIVER)
    ledger.is_down = True
    handler(farm_of(ledger, lambda *_: OK), chore())


def test_a_record_of_another_release_is_read_as_none():
    """Whoever asks gets an answer."""
    ledger = PlayedLedger(a=RECEIVER)
    ledger.noted["a", "job.done"] = '{"state": "on its way"}'
    assert deliveries_of(farm_of(ledger, None), "a", ("job.done",)) == {"job.done": Delivery()}


def test_one_receiver_that_hangs_holds_up_no_other(handler):
    """Of its messages four are under way, further ones make room at once and no try is counted; others go through."""
    ledger = PlayedLedger(a=RECEIVER, b="https://other.example/")
    answered = threading.Event()
    under_way = threading.Semaphore(0)

    def send(url, _message):
        if url == RECEIVER:
            under_way.release()
            answered.wait(100)
        return OK

    farm = farm_of(ledger, send)
    threads = [threading.Thread(target=handler, args=(farm, chore())) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert all(under_way.acquire(timeout=100) for _ in threads)
        with pytest.raises(NoRoom) as caught:
            handler(farm, chore())
        assert caught.value.again_s >= 10
        handler(farm, chore("b"))
        assert all(thread.is_alive() for thread in threads)  # neither has waited for one of them
    finally:
        answered.set()
        for thread in threads:
            thread.join()
    handler(farm, chore())  # there is room again


@pytest.mark.parametrize("outcome", [OK, FAILED, Outcome(status=410, error="answered 410")])
def test_the_log_names_the_host_and_no_more_of_the_url(handler, caplog, outcome):
    """Paths and queries of receivers are often secrets."""
    caplog.set_level(logging.INFO)
    with suppress(NotYet):
        handler(farm_of(PlayedLedger(a=RECEIVER), lambda *_: outcome), chore())
    (record,) = caplog.records
    assert (record.action.partition("_")[0], record.host, record.job) == ("webhook", "receiver.example", "a")
    assert "secret" not in str(record.__dict__)
    assert "/hook" not in str(record.__dict__)
