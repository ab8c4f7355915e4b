"""The clients of bench/watchers.py take answers for what they are, however the network cuts them."""

import asyncio
import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from crowd.clients import Listener, Poller, Tally

EVENTS = (
    b"retry: 2000\n\n",
    b'id: 0\nevent: job\ndata: {"counts": {"stored": 0}}\n\n',
    b": still here\n\n",
    b'id: 1\nevent: image\ndata: {"index": 5}\n\nid: 2\nevent: image\ndata: {"index": 3}\n\n',
    b'id: 2\nevent: job\ndata: {"counts": {"stored": 2}}\n\n',
    b'id: 2-over\nevent: end\ndata: {"state": "done"}\n\n',
)
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in EVENTS)


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_a_stream_reads_the_same_wherever_it_is_cut(cuts):
    """All events, in order, once."""
    listener = Listener("job")
    at = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(at):
        listener.data_received(STREAM[start:end])
    assert listener.images == [5, 3]
    assert listener.ids == ["0", "1", "2", "2", "2-over"]
    assert listener.last_counts == {"stored": 2}
    assert (listener.names["job"], listener.names["end"], listener.ended.is_set()) == (2, 1, True)


def test_an_answer_counts_when_it_is_whole():
    """Not at its head, nor at half its body."""

    async def main():
        tally = Tally()
        poller = Poller("/", tally, lambda: 60.0)
        body = json.dumps({"state": "done"}).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        for piece in (answer[:20], answer[20:-3], answer[-3:]):
            assert not tally.statuses
            poller.data_received(piece)
        poller.stop()
        assert (dict(tally.statuses), poller.last, len(tally.took_s)) == ({200: 1}, body, 1)

    asyncio.run(main())
