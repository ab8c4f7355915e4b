"""Seats of a lane: measured once, remembered across processes, never more than memory allows."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch

from simulated_device import SimulatedDevice
from tiny_models import tiny_unit
from worker.seat import BatchKey, Seat
from worker.tuning.caps import MEMORY_S, Caps
from worker.tuning.store import Measured, Origin

ORIGIN = Origin("a card, 24 GiB", "2.13.0", "0.42.1", "570.1")


class SimulatedPipeline:
    """A model on a simulated device."""

    architecture = "sd15-0123456789abcdef-resident"
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, device):
        self.simulated = device
        self.calls = []  # what each forward was given

    def latent_shape(self, height, width):
        return (4, height // 8, width // 8)

    def predict(self, latents, rides, *, guided, batch_shape):
        assert len(latents) == len(rides)
        assert batch_shape is None
        self.calls.append((latents, rides, guided))
        self.simulated.step(len(rides))


class Worker:
    """One process on a card: what it asks, and what of it the card hears of."""

    def __init__(self, folder, *, step_ms=lambda batch: 20 + batch, memory=10**6, now_s=1e9):
        self.device = SimulatedDevice(step_ms, memory=memory)
        self.pipeline = SimulatedPipeline(self.device)
        self.now_s = now_s
        self.caps = Caps(Measured(folder, ORIGIN), clock=self.device.clock, now=lambda: self.now_s)

    def seats(self, *, most=8, is_alone=True, **fields):
        return self.caps.seats(self.pipeline, seat(**fields), most=most, is_alone=is_alone)


def seat(**fields):
    """Return a unit's seat, at the start of its run."""
    unit = tiny_unit(**fields)
    seated = Seat(unit, Future(), BatchKey.of(unit), 0.0)
    seated.schedule = SimpleNamespace(timesteps=[900.0, 500.0, 100.0])
    seated.conditioning, seated.calls = "its words", 3
    return seated


def saturated(batch):
    """Return what a step takes of which each seat costs the same."""
    return 10.0 * batch


def test_a_card_is_measured_once(tmp_path):
    """The first worker makes steps, the next ones read what came out; another size is measured for itself."""
    first, second = Worker(tmp_path, step_ms=saturated), Worker(tmp_path, step_ms=saturated)
    assert (first.seats(), second.seats(), first.seats()) == (1, 1, 1)
    assert first.device.tried == [1, 2, 3]
    assert second.device.tried == []
    assert second.seats(width=64, height=64) == 1
    assert second.device.tried == [1, 2, 3]


def test_what_pays_is_allowed(tmp_path):
    """Where every seat brings something all are allowed, and not one more than that."""
    worker = Worker(tmp_path)
    assert worker.seats(most=8) == 8
    assert max(worker.device.tried) == 8


def test_forwards_are_like_those_of_the_lane(tmp_path):
    """They have the seat's words, size and guidance, at a call in the middle of its run."""
    worker = Worker(tmp_path)
    worker.seats(guided=True, width=64, height=32)
    latents, rides, guided = worker.pipeline.calls[-1]
    assert latents.shape == (8, 4, 4, 8)
    assert latents.std() > 0.5
    assert guided
    assert {ride.conditioning for ride in rides} == {"its words"}
    assert {(ride.timestep, ride.call, ride.calls) for ride in rides} == {(500.0, 1, 3)}


def test_more_is_measured_when_more_is_allowed(tmp_path):
    """A curve that was cut off by FARM_MAX_BATCH does not hold for a larger one, nor is it in the way of a smaller."""
    assert Worker(tmp_path).seats(most=4) == 4
    larger = Worker(tmp_path)
    assert larger.seats(most=8) == 8
    smaller = Worker(tmp_path)
    assert smaller.seats(most=6) == 6
    assert smaller.device.tried == []


def test_one_seat_needs_no_measuring(tmp_path):
    """Where one is all that is allowed there is nothing to choose."""
    worker = Worker(tmp_path)
    assert worker.seats(most=1) == 1
    assert worker.device.tried == []


def test_a_lack_of_memory_while_measuring_is_a_limit_for_the_next_worker_too(tmp_path):
    """What does not fit is tried once a week, and not at each start."""
    first = Worker(tmp_path, memory=3)
    assert first.seats() == 3
    second = Worker(tmp_path, memory=3)
    assert second.seats() == 3
    assert second.device.tried == []
    later = Worker(tmp_path, now_s=1e9 + MEMORY_S)
    assert later.seats() == 8


def test_memory_that_other_models_hold_is_no_limit_of_the_card(tmp_path):
    """Beside other models a curve may end early; that is neither kept nor taken for the best."""
    crowded = Worker(tmp_path, memory=3)
    assert crowded.seats(is_alone=False) == 8
    assert crowded.seats(is_alone=False) == 8
    assert crowded.device.steps.count(4) == 1
    alone = Worker(tmp_path)
    assert alone.seats() == 8
    assert 8 in alone.device.tried


def test_a_curve_that_flattens_beside_other_models_is_kept(tmp_path):
    """Only memory depends on who else is there."""
    assert Worker(tmp_path, step_ms=saturated, memory=3).seats(is_alone=False) == 1
    neighbour = Worker(tmp_path, step_ms=saturated)
    assert neighbour.seats() == 1
    assert neighbour.device.tried == []


def test_what_rendering_learnt_of_memory_holds_for_the_next_start(tmp_path):
    """Running out of memory lowers what was measured, here and in the next process, for a week."""
    first = Worker(tmp_path)
    assert first.seats() == 8
    first.caps.ran_out(first.pipeline, seat(), 2)
    assert first.seats() == 2
    second = Worker(tmp_path)
    assert second.seats() == 2
    assert second.device.tried == []
    assert Worker(tmp_path, now_s=1e9 + MEMORY_S).seats() == 8


def test_the_best_rate_counts_among_the_seats_that_fit(tmp_path):
    """The lower of both limits holds, whichever it is."""
    worker = Worker(tmp_path, step_ms=saturated)
    assert worker.seats() == 1
    worker.caps.ran_out(worker.pipeline, seat(), 4)
    assert worker.seats() == 1


def test_a_slow_card_keeps_what_it_was_allowed(tmp_path, caplog):
    """Where time is up before anything is clear, the bound holds, and this process does not try again."""
    worker = Worker(tmp_path, step_ms=lambda batch: 2400 + batch)
    with caplog.at_level(logging.INFO):
        assert worker.seats() == 8
    assert worker.device.tried == [1]
    assert worker.seats() == 8
    assert worker.device.tried == [1]
    assert "8 seats, as the best was not found" in caplog.text
    assert Worker(tmp_path).seats() == 8


def test_a_slow_card_that_gains_nothing_is_known_from_two_batches(tmp_path):
    """Where two seats took twice as long as one, the next worker need not spend the time again."""
    worker = Worker(tmp_path, step_ms=lambda batch: 800.0 * batch)
    assert worker.seats() == 1
    assert worker.device.tried == [1, 2]
    after = Worker(tmp_path, step_ms=lambda batch: 800.0 * batch)
    assert after.seats() == 1
    assert after.device.tried == []


def test_a_measurement_that_was_called_off_is_not_kept(tmp_path):
    """A worker that has to go leaves no half of a curve for those who come."""
    worker = Worker(tmp_path, step_ms=saturated)
    unit = seat()
    assert worker.caps.seats(worker.pipeline, unit, most=8, is_alone=True, go_on=lambda: 2 not in worker.device.tried)
    assert worker.device.tried == [1, 2]
    assert list(tmp_path.glob("*.json")) == []


def test_one_line_tells_what_was_found(tmp_path, caplog):
    """Measuring says its result, the curve, how it was taken and how long it took, in one sentence."""
    with caplog.at_level(logging.INFO):
        Worker(tmp_path, step_ms=saturated).seats()
        Worker(tmp_path, step_ms=saturated).seats()
    (record,) = caplog.records
    assert record.action == "batch_measured"
    assert record.seats == 1
    assert record.getMessage() == (
        "measured tiny 16x16 guided fast: 1 seats are within 3% of the best rate; ms of a step by seats: "
        "1: 10.0, 2: 20.0, 3: 30.0 (medians of 3, ended by flat after 0.2 s)"
    )


@pytest.mark.parametrize("value", [{}, {"seats": "many", "at": 0}, {"step_ms": {"1": -5}}, {"seats": 0, "at": 1e12}])
def test_an_entry_that_says_nothing_is_measured_again(tmp_path, value):
    """A file that somebody edited is not believed, and raises nothing."""
    Worker(tmp_path, step_ms=saturated).seats()
    Worker(tmp_path).caps.ran_out(SimulatedPipeline(None), seat(), 5)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert len(content["entries"]) == 2
    for entry in content["entries"].values():
        entry["value"] = value
    path.write_text(json.dumps(content))
    assert Worker(tmp_path, step_ms=saturated).seats() == 1


def test_the_random_numbers_of_others_stay_theirs(tmp_path):
    """Measuring draws from a generator of its own."""
    before = torch.get_rng_state()
    Worker(tmp_path).seats()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_else_a_step_raises_is_passed_on(tmp_path):
    """A model that cannot step is the engine's to judge; nothing is kept of it."""

    def broken(_batch):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        Worker(tmp_path, step_ms=broken).seats()
    assert list(tmp_path.glob("*.json")) == []
