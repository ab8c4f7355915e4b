"""The memory of encoded prompts holds to its budget and forgets what was not used for longest."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from worker.text.cache import EmbeddingCache


class Sized(NamedTuple):
    """An encoding that is nothing but its size."""

    num_bytes: int


def test_an_encoding_is_made_once():
    """A second look finds the very object of the first, and both are counted."""
    cache = EmbeddingCache(100)
    first = cache.get("a", lambda: Sized(10))
    assert cache.get("a", lambda: Sized(11)) is first
    assert (cache.hits, cache.misses, cache.num_bytes, len(cache)) == (1, 1, 10, 1)


def test_what_was_not_used_for_longest_goes():
    """A look counts as use."""
    cache = EmbeddingCache(30)
    for key in "abc":
        cache.get(key, lambda: Sized(10))
    cache.get("a", lambda: Sized(10))
    cache.get("d", lambda: Sized(10))
    hits = cache.hits
    for key in "acd":
        cache.get(key, lambda: Sized(10))
    assert cache.hits == hits + 3
    cache.get("b", lambda: Sized(10))
    assert cache.misses == 5


def test_an_encoding_beyond_the_budget_is_not_kept():
    """It is returned, and what was there stays."""
    cache = EmbeddingCache(30)
    cache.get("a", lambda: Sized(10))
    assert cache.get("b", lambda: Sized(31)) == Sized(31)
    assert (len(cache), cache.num_bytes) == (1, 10)


def test_encoding_may_look_up_others():
    """What is encoded from a part that is kept keeps both."""
    cache = EmbeddingCache(30)
    cache.get("whole", lambda: Sized(cache.get("part", lambda: Sized(10)).num_bytes * 2))
    assert (len(cache), cache.num_bytes) == (2, 30)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=60))
def test_the_budget_holds_at_all_times(looks):
    """Whatever comes in whatever order, the sum is right, and never above the budget."""
    cache = EmbeddingCache(50)
    sizes = {}
    for key, size in looks:
        sizes[key] = cache.get(key, lambda size=size: Sized(size)).num_bytes
        assert cache.num_bytes <= 50
        assert cache.num_bytes == sum(encoding.num_bytes for encoding in cache._encodings.values())
    assert cache.hits + cache.misses == len(looks)
