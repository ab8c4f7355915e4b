"""How many seats follow from what steps cost: the smallest batch that is nearly as fast as the best."""

from __future__ import annotations

import json
from statistics import median

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.tuning.curves import BATCHES, End, StepCurve, batches_up_to, best_batch

MS = st.floats(0.01, 1e5)


@st.composite
def curves(draw):
    """Any curve at all: nothing says that a device must be sensible."""
    step_ms = draw(st.dictionaries(st.sampled_from(BATCHES), MS, min_size=1))
    return StepCurve(dict(sorted(step_ms.items())), 3, draw(st.sampled_from(End)), max(step_ms))


def sensible(fixed_ms, per_seat_ms):
    """Return what a device takes that has some fixed cost and some for each seat, by batch."""
    return {batch: fixed_ms + per_seat_ms * batch for batch in BATCHES}


@given(curve=curves(), most=st.integers(1, 64), within=st.floats(0, 0.5))
def test_the_choice_is_the_smallest_that_is_nearly_the_best(curve, most, within):
    """It was measured, is never above what is allowed, loses at most its share, and nothing smaller would do."""
    chosen = best_batch(curve, most=most, within=within)
    allowed = [batch for batch in curve.step_ms if batch <= most]
    if chosen is None:
        assert not allowed or curve.end is End.TIME
        return
    assert chosen in allowed
    floor = (1 - within) * max(curve.rate(batch) for batch in allowed)
    assert curve.rate(chosen) >= floor
    assert all(curve.rate(batch) < floor for batch in allowed if batch < chosen)


@given(
    fixed_ms=st.floats(0, 100),
    per_seat_ms=st.floats(0.1, 100),
    hiccups=st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 1e4)), min_size=len(BATCHES), max_size=len(BATCHES)),
)
def test_one_hiccup_in_each_batch_decides_nothing(fixed_ms, per_seat_ms, hiccups):
    """Of three rounds one may take any time whatever: the choice is the one without."""
    clean = {batch: [ms * 0.999, ms, ms * 1.001] for batch, ms in sensible(fixed_ms, per_seat_ms).items()}
    noisy = {}
    for (batch, times), (place, factor) in zip(clean.items(), hiccups, strict=True):
        noisy[batch] = [ms * factor if at == place else ms for at, ms in enumerate(times)]
    chosen = best_batch(StepCurve.of(noisy, end=End.FLAT, bound=64), most=64)
    curve = StepCurve.of(clean, end=End.FLAT, bound=64)
    best = max(map(curve.rate, BATCHES))
    # A median of what is left is off by a thousandth at most.
    assert curve.rate(chosen) >= 0.97 * best * 0.995
    assert all(curve.rate(batch) < 0.97 * best * 1.005 for batch in BATCHES if batch < chosen)


@pytest.mark.parametrize(
    ("fixed_ms", "per_seat_ms", "expected"),
    [(0, 10, 1), (1, 10, 4), (10, 10, 24), (100, 1, 64)],
    ids=["every seat costs the same", "nearly so", "launches cost as much as a seat", "launches are all"],
)
def test_the_more_is_fixed_the_more_seats_pay(fixed_ms, per_seat_ms, expected):
    """The choice follows from what a step costs beside its seats."""
    curve = StepCurve(sensible(fixed_ms, per_seat_ms), 3, End.BOUND, 64)
    assert best_batch(curve, most=64) == expected


@given(curve=curves(), most=st.integers(1, 64), fewer=st.integers(1, 64))
def test_a_lower_limit_never_means_more_seats(curve, most, fewer):
    """Less memory, or a lower FARM_MAX_BATCH, leaves the choice or lowers it."""
    assume(fewer <= most)
    there, here = best_batch(curve, most=most), best_batch(curve, most=fewer)
    if here is not None and there is not None:
        assert here <= there


def test_a_curve_that_had_no_time_says_nothing_while_it_rises():
    """Where each seat still paid and time was up, the largest batch that was tried is no answer."""
    rising = StepCurve({1: 10.0, 2: 11.0}, 3, End.TIME, 8)
    assert best_batch(rising, most=8) is None
    assert best_batch(rising, most=2) == 2
    assert best_batch(StepCurve({1: 10.0, 2: 19.9}, 3, End.TIME, 8), most=8) == 1


@pytest.mark.parametrize(
    ("end", "answers"),
    [
        (End.FLAT, {4: True, 8: True, 64: True}),
        (End.MEMORY, {4: True, 8: True, 64: False}),
        (End.BOUND, {4: True, 8: True, 64: False}),
        (End.TIME, {4: True, 8: True, 64: False}),
    ],
)
def test_a_curve_says_for_which_bounds_it_holds(end, answers):
    """A curve that was cut off is measured again where more is allowed, or fits, than when it was measured."""
    curve = StepCurve({1: 10.0, 8: 20.0}, 3, end, 16 if end is End.MEMORY else 8)
    assert {bound: curve.answers(bound) for bound in answers} == answers


@given(bound=st.integers(1, 64))
def test_the_bound_itself_is_tried(bound):
    """Batches to try begin with one and end with what is allowed, in order and each once."""
    batches = batches_up_to(bound)
    assert batches[0] == 1 or bound == 1
    assert batches[-1] == bound
    assert batches == sorted(set(batches))


@given(times=st.dictionaries(st.sampled_from(BATCHES), st.tuples(MS, MS, MS), min_size=1))
def test_a_curve_comes_back_from_json_as_it_was(times):
    """What the store keeps is the curve, to the microsecond."""
    curve = StepCurve.of(times, end=End.FLAT, bound=64)
    assert curve.step_ms == {batch: median(three) for batch, three in times.items()}
    back = StepCurve.from_json(json.loads(json.dumps(curve.as_json())))
    assert back == StepCurve({batch: round(ms, 4) for batch, ms in curve.step_ms.items()}, 3, End.FLAT, 64)


@pytest.mark.parametrize(
    "change",
    [{"step_ms": {"1": 0.0}}, {"step_ms": {"0": 1.0}}, {"step_ms": {"one": 1.0}}, {"step_ms": 3}, {"end": "bored"}],
)
def test_nonsense_is_no_curve(change):
    """A file that somebody edited cannot make a batch of nothing, or divide by zero."""
    told = StepCurve({1: 10.0}, 3, End.FLAT, 8).as_json() | change
    with pytest.raises((LookupError, ValueError, TypeError, AttributeError)):
        StepCurve.from_json(told)


def test_medians_are_of_as_many_rounds_each():
    """A batch that was measured less often than the others is not compared with them."""
    with pytest.raises(ValueError, match="rounds"):
        StepCurve.of({1: [1.0, 1.0], 2: [1.0]}, end=End.FLAT, bound=2)
