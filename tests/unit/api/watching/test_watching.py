"""What watchers are told, where it takes no Redis to see: the bounds of a slow client, events on the wire, ranges."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.watching import sse
from api.watching.bulletin import _MAX_PENDING, SYNC, Reader
from api.watching.events import _NEAR, _ranges
from api.watching.watched import WatcherClosed


def test_a_slow_reader_is_told_the_latest_of_each_job():
    """However often it changed meanwhile; first of all to look for himself."""

    async def main():
        reader = Reader(lambda _header: True)
        for number in range(5):
            reader.put("a", b"a%d" % number)
            reader.put("b", b"b%d" % number)
        assert await reader.next() == SYNC + b"a4b4"
        reader.put("a", b"a5")
        assert await reader.next() == b"a5"

    asyncio.run(main())


def test_a_reader_that_is_too_far_behind_is_told_to_look_for_himself():
    """Memory has an end: beyond it what is pending becomes one sync."""

    async def main():
        reader = Reader(lambda _header: True)
        assert await reader.next() == SYNC
        for number in range(_MAX_PENDING + 1):
            reader.put(str(number), b"x")
        assert await reader.next() == SYNC + b"x"

    asyncio.run(main())


def test_a_reader_hears_that_the_api_stops():
    """It does not wait for news that will not come."""

    async def main():
        reader = Reader(lambda _header: True)
        await reader.next()
        reader.close()
        with pytest.raises(WatcherClosed):
            await asyncio.wait_for(reader.next(), 60)

    asyncio.run(main())


def test_an_event_is_written_as_browsers_read_it():
    """Id, name and data, each on a line, and an empty line."""
    assert sse.event("job", json.dumps({"a": 1}), "3") == b'id: 3\nevent: job\ndata: {"a": 1}\n\n'
    assert sse.event("end", b"{}") == b"event: end\ndata: {}\n\n"
    assert sse.comment("here") == b": here\n\n"


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=50))
def test_ranges_hold_all_images_and_few_others(indices):
    """Each index is in one range, ranges are in order and apart, and hold no stretch without an index that is long."""
    ranges = _ranges(indices)
    assert {index for first, last in ranges for index in range(first, last + 1)} >= indices
    assert all(first in indices and last in indices for first, last in ranges)
    assert all(later[0] - sooner[1] > _NEAR for sooner, later in pairwise(ranges))
