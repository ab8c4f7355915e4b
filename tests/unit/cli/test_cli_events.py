"""Streams of events are read as the WHATWG says, however they are cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import events
from cli.events import BadStream, Event, EventParser


def read(*pieces, parser=None):
    """Return the events of a stream that comes in these pieces."""
    parser = parser or EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        # The examples of section 9.2.6.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("message", "YHOO\n+2\n10")]),
        (b"data\n\ndata\ndata\n\ndata:", [Event("message", ""), Event("message", "\n")]),
        (b"data:test\n\ndata: test\n\n", [Event("message", "test")] * 2),
        (b"data:  two\n\n", [Event("message", " two")]),
        # Names, comments, fields that nobody knows, and a byte order mark at the beginning alone.
        (b"\xef\xbb\xbfevent: job\ndata: {}\n\n", [Event("job", "{}")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event("message", "a")]),
        (b": still here\n\n:\nevent: x\n\ndata: y\n\n", [Event("message", "y")]),
        (b"event: a\nevent: b\nDATA: no\n data: no\nfoo\ndata: c:d\n\n", [Event("b", "c:d")]),
        # Every end of a line, and none that is one only to Python.
        (b"data: a\rdata: b\r\ndata: c\n\r\n", [Event("message", "a\nb\nc")]),
        ("data: a\u2028b\x0bc\x85d\n\n".encode(), [Event("message", "a\u2028b\x0bc\x85d")]),
        (b"data: \xff\n\n", [Event("message", "\ufffd")]),
        # What is cut off is not told.
        (b"data: a\n\ndata: half\n", [Event("message", "a")]),
    ],
)
def test_events_are_read_as_the_standard_says(stream, told):
    """Whole, byte by byte, and in twos: a piece may end anywhere."""
    assert read(stream) == told
    assert read(*(bytes([byte]) for byte in stream)) == told
    assert read(*(stream[place : place + 2] for place in range(0, len(stream), 2))) == told


@given(st.lists(st.binary(max_size=6)), st.lists(st.sampled_from([b"data:", b"\r", b"\n", b"\r\n", b"id: 1", b"x"])))
def test_pieces_make_no_difference(noise, parts):
    """What is told does not depend on how the network has cut it."""
    stream = b"".join(parts) + b"".join(noise)
    whole, pieces = EventParser(), EventParser()
    assert read(stream, parser=whole) == read(*(bytes([byte]) for byte in stream), parser=pieces)
    assert (whole.last_id, whole.retry_s) == (pieces.last_id, pieces.retry_s)


def test_the_last_id_is_remembered_when_its_event_has_ended():
    """Of an event that is cut off it does not count; it outlives the connection, and an empty one forgets it."""
    parser = EventParser()
    read(b"id: 7\ndata: a\n\nid: 8\ndata: b\n", parser=parser)
    assert parser.last_id == "7"
    parser.begin()
    assert read(b"data: c\n\n", parser=parser) == [Event("message", "c")]
    assert parser.last_id == "7"
    read(b"id: 9\n\nid: 1\x000\ndata: d\n\n", parser=parser)
    assert parser.last_id == "9"
    read(b"id\n\n", parser=parser)
    assert parser.last_id == ""


@pytest.mark.parametrize(
    ("line", "retry_s"), [(b"retry: 250", 0.25), (b"retry: 2s", None), (b"retry", None), (b"retry: " + b"9" * 5000, 60)]
)
def test_when_to_come_again_is_digits(line, retry_s):
    """In milliseconds, and not next week."""
    parser = EventParser()
    read(line + b"\n", parser=parser)
    assert parser.retry_s == retry_s


@pytest.mark.parametrize("piece", [b"x", b"data: x\n"])
def test_an_event_that_does_not_end_is_given_up(monkeypatch, piece):
    """Whatever sends it must not fill the memory; many events one after the other may be longer."""
    monkeypatch.setattr(events, "_MAX_EVENT_BYTES", 100)
    assert len(read(*[b"data: x\n\n"] * 30)) == 30
    with pytest.raises(BadStream):
        read(*[piece] * 101)
