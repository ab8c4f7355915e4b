"""Timing steps: what is tried, when it ends, and that it costs nobody more than the time it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simulated_device import SimulatedDevice
from worker.tuning.curves import BATCHES, End, batches_up_to, best_batch
from worker.tuning.measure import BUDGET_S, ROUNDS, measure


def measured(device, bound=32, **options):
    """Return the curve of a simulated device."""
    return measure(device.step, bound=bound, clock=device.clock, **options)


def test_a_curve_is_what_the_device_takes():
    """Each batch is stepped once for nothing and three times for its median."""
    device = SimulatedDevice(lambda batch: 10 + batch)
    curve = measured(device, bound=6)
    assert curve.step_ms == pytest.approx({1: 11, 2: 12, 3: 13, 4: 14, 6: 16})
    assert (curve.rounds, curve.end, curve.bound) == (3, End.BOUND, 6)
    assert device.steps == [batch for batch in (1, 2, 3, 4, 6) for _ in range(1 + ROUNDS)]


def test_the_first_step_of_a_batch_is_not_counted():
    """Finding kernels for a new shape takes what it takes, once."""
    seen = set()

    def step_ms(batch):
        is_new = batch not in seen
        seen.add(batch)
        return 500 if is_new else 10

    assert measured(SimulatedDevice(step_ms), bound=2).step_ms == pytest.approx({1: 10, 2: 10})


def test_it_ends_where_two_batches_in_a_row_bring_nothing():
    """A saturated device is not asked about thirty-two seats."""
    device = SimulatedDevice(lambda batch: 100 * batch)
    curve = measured(device)
    assert device.tried == [1, 2, 3]
    assert curve.end is End.FLAT
    assert best_batch(curve, most=32) == 1


def test_one_odd_batch_does_not_end_it():
    """Three seats that cost as much as four are not the end of what batches bring."""
    device = SimulatedDevice(lambda batch: {1: 20, 2: 22, 3: 40}.get(batch, 20 + 5 * batch))
    curve = measured(device, bound=8)
    assert device.tried == [1, 2, 3, 4, 6, 8]
    assert best_batch(curve, most=8) == 8


def test_running_out_of_memory_is_where_it_ends():
    """The batch that does not fit is no error: the curve ends before it, and says why."""
    device = SimulatedDevice(lambda batch: 50 + batch, memory=4)
    curve = measured(device)
    assert list(curve.step_ms) == [1, 2, 3, 4]
    assert curve.end is End.MEMORY
    assert best_batch(curve, most=32) == 4


def test_no_memory_for_a_single_seat_is_an_empty_curve():
    """What cannot be measured is for the step itself to report."""
    curve = measured(SimulatedDevice(lambda _: 1, memory=0))
    assert curve.step_ms == {}
    assert best_batch(curve, most=8) is None


@given(
    fixed_ms=st.floats(0, 5000),
    per_seat_ms=st.floats(0.01, 20_000),
    bound=st.integers(1, 64),
    memory=st.integers(0, 99),
)
def test_it_takes_no_longer_than_it_says(fixed_ms, per_seat_ms, bound, memory):
    """Whatever the device, measuring is over within its budget and one step; what it tried was allowed."""
    device = SimulatedDevice(lambda batch: fixed_ms + per_seat_ms * batch, memory=memory)
    curve = measured(device, bound=bound)
    longest_s = (fixed_ms + per_seat_ms * max(device.tried)) / 1000
    assert device.now_s - 100 <= BUDGET_S + longest_s + 1e-6
    assert set(device.tried) <= set(batches_up_to(bound))
    assert max(curve.step_ms, default=0) <= min(bound, memory)
    assert len(device.steps) <= len(BATCHES) * (1 + ROUNDS)


@given(fixed_ms=st.floats(0, 40), per_seat_ms=st.floats(0.5, 10), bound=st.integers(1, 32))
def test_ending_early_loses_next_to_nothing(fixed_ms, per_seat_ms, bound):
    """The choice from what was tried is within five percent of the best there is, tried or not."""

    def step_ms(batch):
        return fixed_ms + per_seat_ms * batch

    chosen = best_batch(measured(SimulatedDevice(step_ms), bound=bound), most=bound)
    assert chosen / step_ms(chosen) >= 0.95 * bound / step_ms(bound)


def test_a_batch_that_would_take_too_long_is_not_begun():
    """Where two seats were slow, three are not tried in the time that is left."""
    device = SimulatedDevice(lambda batch: 800.0 * batch)
    curve = measured(device)
    assert device.tried == [1, 2]
    assert curve.end is End.TIME
    assert device.now_s - 100 <= BUDGET_S
    assert best_batch(curve, most=32) == 1


def test_a_compiler_does_not_use_up_the_time():
    """A minute that goes into the first step of a batch, after short ones, is not taken from what is left."""
    seen = set()

    def step_ms(batch):
        is_compiled = batch == 2 and batch not in seen
        seen.add(batch)
        return 60_000 if is_compiled else 100 + batch

    curve = measured(SimulatedDevice(step_ms), bound=6)
    assert list(curve.step_ms) == [1, 2, 3, 4, 6]
    assert curve.step_ms[2] == pytest.approx(102)
    assert curve.end is End.BOUND


def test_a_first_step_beyond_the_budget_is_the_only_one():
    """A device that is not made for this is left alone after one step."""
    device = SimulatedDevice(lambda _: 30_000)
    curve = measured(device)
    assert device.steps == [1]
    assert (curve.step_ms, curve.end) == ({}, End.TIME)


def test_another_failure_is_not_taken_for_an_answer():
    """What is wrong with a model is told, and is nobody's limit."""

    def fail(_batch):
        raise RuntimeError("no kernel for this")

    with pytest.raises(RuntimeError, match="no kernel"):
        measured(SimulatedDevice(fail))


def test_a_lost_device_is_not_hidden():
    """A kernel that faulted while measuring ends the engine as it would at any other time."""

    def fail(_batch):
        raise torch.AcceleratorError("illegal memory access")

    with pytest.raises(torch.AcceleratorError):
        measured(SimulatedDevice(fail))
