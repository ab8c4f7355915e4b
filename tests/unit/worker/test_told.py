"""What a worker tells of a unit's life: each part of it, in order, with its times; nothing of messages too many."""

from __future__ import annotations

import pytest

from farm.jobs import Hint
from farm.tracing import OFF, Traces
from worker.seat import Timings
from worker.told import UNTOLD, story_of

HINT = Hint("job_1", 3, 2)
TIMINGS = Timings(
    queued_s=1.0, encode_s=0.5, denoise_s=2.0, decode_s=0.25, gpu_s=1.5, steps=20, mean_batch=3.456, batch_shape=None
)
SECOND = 1_000_000_000


class Told(Traces):
    """Keeps what it is told."""

    is_on = True

    def __init__(self):
        self.spans = []

    def tell_part(self, job_id, span):
        self.spans.append((job_id, span))


class Clock:
    """Nanoseconds that pass when a test says so."""

    def __init__(self):
        self.now = 100 * SECOND

    def __call__(self):
        return self.now


@pytest.fixture
def told():
    """Return traces that are kept."""
    return Told()


@pytest.fixture
def clock():
    """Return a clock for stories."""
    return Clock()


def times_of(span):
    """Return when a span began and ended, in seconds since the test did."""
    return span.started_ns / SECOND - 100, span.ended_ns / SECOND - 100


def test_a_story_has_its_parts_in_order(told, clock):
    """Claim, seat, encoding and put stand under the image, each with the time it took."""
    story = story_of(HINT, "host:gpu0#1", told)
    story._clock_ns = clock
    story._began_ns = clock()
    with story.part("claim"):
        clock.now += SECOND
    story.about(model="scenes")
    submitted_ns = clock()
    clock.now += 6 * SECOND
    story.rode(TIMINGS, submitted_ns=submitted_ns)

    def files():
        clock.now += 2 * SECOND
        yield "thumbnail"
        clock.now += SECOND
        yield "image"

    for _ in story.each("encode", files()):
        with story.part("put"):
            clock.now += SECOND
    story.end("stored")
    ((job, image),) = told.spans
    assert job == "job_1"
    assert image.attributes == {
        "farm.job": "job_1",
        "farm.index": 3,
        "farm.attempt": 2,
        "farm.worker": "host:gpu0#1",
        "farm.outcome": "stored",
        "farm.model": "scenes",
    }
    assert image.error is None
    assert [(part.name, *times_of(part)) for part in image.parts] == [
        ("claim", 0, 1),
        ("wait for a seat", 1, 2),
        ("seat", 2, 7),
        ("encode", 7, 9),
        ("put", 9, 10),
        ("encode", 10, 11),
        ("put", 11, 12),
    ]
    seat = image.parts[2]
    assert [(part.name, *times_of(part)) for part in seat.parts] == [
        ("encode text", 2, 2.5),
        ("steps", 2.5, 6.75),
        ("decode", 6.75, 7),
    ]
    assert seat.parts[1].attributes == {"farm.steps": 20, "farm.mean_batch": 3.46, "farm.denoise_s": 2.0}
    assert times_of(image) == (0, 12)


def test_what_fails_says_why(told):
    """The part that failed has its error, and so has the image; the error goes its way."""
    story = story_of(HINT, "w", told)
    with pytest.raises(OSError, match="away"), story.part("fetch"):
        raise OSError("away")
    story.end("failed")
    ((_, image),) = told.spans
    assert (image.error, image.parts[0].error) == ("failed", "OSError: away")


def test_a_message_too_many_is_no_story(told):
    """Nothing happened."""
    story_of(HINT, "w", told).end("dropped")
    assert told.spans == []


def test_where_nobody_listens_nothing_is_noted():
    """One story serves all units, and keeps nothing."""
    story = story_of(HINT, "w", OFF)
    assert story is UNTOLD
    things = [1, 2]
    assert story.each("encode", things) is things
    with story.part("claim"):
        story.rode(TIMINGS, submitted_ns=0)
    story.end("stored")
    assert not vars(story)
