"""Numbers of rows that forwards are padded to: few of them, none too small, and little waste."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.forward.buckets import bucket_of

ROWS = st.integers(1, 4096)


@given(ROWS)
def test_a_bucket_holds_all_rows_and_wastes_less_than_an_eighth(num_rows):
    """Nobody is left out, and padding costs less than an eighth of what is computed for somebody."""
    bucket = bucket_of(num_rows)
    assert num_rows <= bucket < num_rows * 9 / 8 or bucket == num_rows


@given(ROWS, ROWS)
def test_more_rows_never_have_a_smaller_bucket(one, other):
    """Buckets grow with rows, and a bucket is its own."""
    assert bucket_of(min(one, other)) <= bucket_of(max(one, other))
    assert bucket_of(bucket_of(one)) == bucket_of(one)


def test_there_are_few_shapes():
    """A lane of 64 guided seats has 40 shapes, and one of 8 guided seats is never padded."""
    assert len({bucket_of(rows) for rows in range(1, 129)}) == 40
    assert [bucket_of(rows) for rows in range(1, 17)] == list(range(1, 17))


def test_round_numbers_of_rows_are_buckets():
    """A full lane, at the caps that people set and the benchmark measures, is never padded, guided or not."""
    for seats in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        assert bucket_of(seats) == seats
        assert bucket_of(2 * seats) == 2 * seats


def test_a_forward_without_rows_is_refused():
    """Nobody asks for a forward of nobody."""
    with pytest.raises(ValueError, match="not 0"):
        bucket_of(0)
