"""Seats are never exceeded, nobody starves, and who came first goes first: for any arrivals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import scheduler
from worker.scheduler import Roster


class Key(NamedTuple):
    """A batch key, as far as the roster cares."""

    model: str
    shape: int = 0


@dataclass(eq=False)
class Traveller:
    """A unit that needs `calls` steps."""

    key: Key
    calls: int
    arrived: int = 0
    slot: int = -1
    left: int = 0
    finished_at: int | None = None

    def __post_init__(self):
        self.left = self.calls


class Line:
    """A roster in operation: steps as the engine does, without rendering anything."""

    def __init__(self, max_batch, patience=5):
        self.roster = Roster(max_batch, patience=patience)
        self.resident = set()

    def join(self, traveller):
        self.roster.join(traveller.key, traveller)
        return traveller

    def step(self):
        """Make one step; return who rode."""
        lane = self.roster.next_lane(self.resident.__contains__)
        if lane is None:
            return []
        self.resident = {lane.key.model}
        lane.take_seats()
        riders = lane.aboard
        assert riders, "a lane was chosen that has nobody to carry"
        seated = lane.seated
        assert len(seated) <= lane.num_slots
        assert sorted({rider.slot for rider in seated}) == sorted(rider.slot for rider in seated)
        assert len(riders) <= lane.cap
        self.roster.stepped(lane)
        for rider in riders:
            rider.left -= 1
            if not rider.left:
                rider.finished_at = self.roster.steps
                assert self.roster.leave(lane.key, rider)
        return riders


travellers = st.builds(
    Traveller,
    key=st.builds(Key, model=st.sampled_from("abc"), shape=st.integers(0, 1)),
    calls=st.integers(1, 12),
)


@settings(print_blob=True)
@given(
    arrivals=st.lists(st.lists(travellers, max_size=3), min_size=1, max_size=25),
    max_batch=st.integers(1, 4),
    patience=st.integers(1, 10),
)
def test_nobody_starves(arrivals, max_batch, patience):
    """Everybody is finished within M * R + (M - 1) * patience steps, and no step carries more than there are seats."""
    line = Line(max_batch, patience)
    everybody = []
    bounds = {}
    for group in arrivals:
        everybody += [line.join(traveller) for traveller in group]
        for traveller in group:
            model = traveller.key.model
            # Equally old ones may go first, those who come later may not.
            work = sum(t.left for t in everybody if t.key.model == model)
            bounds[traveller] = (line.roster.steps, work)
        line.step()
    while line.step():
        pass
    assert line.roster.is_empty
    num_models = len({t.key.model for t in everybody})
    for traveller in everybody:
        came_at, work = bounds[traveller]
        assert traveller.finished_at is not None
        assert traveller.finished_at - came_at <= num_models * work + (num_models - 1) * patience


@settings(max_examples=settings.default.max_examples // 2, print_blob=True)
@given(first=st.lists(travellers, min_size=1, max_size=6), later=st.lists(travellers, max_size=20))
def test_every_step_carries_the_oldest(first, later):
    """As long as one model is asked for, every step carries the oldest unfinished unit, whatever comes after it."""
    line = Line(max_batch=2)
    for traveller in (*first, *later):
        traveller.key = Key("a", traveller.key.shape)
    for traveller in first:
        line.join(traveller)
    everybody = list(first)
    while any(t.finished_at is None for t in everybody):
        oldest = min(t.arrived for t in everybody if t.finished_at is None)
        riders = line.step()
        assert oldest in {rider.arrived for rider in riders}
        if later:
            everybody.append(line.join(later.pop()))


def test_among_equally_old_the_fullest_lane_goes_first():
    """Units that came between the same two steps are equally old; the lane with most of them goes first."""
    line = Line(max_batch=4)
    lonely = line.join(Traveller(Key("a", 0), 1))
    crowd = [line.join(Traveller(Key("a", 1), 1)) for _ in range(3)]
    assert line.step() == crowd
    assert line.step() == [lonely]


def test_freed_seat_is_taken_at_the_next_step():
    """Whoever waits for a full lane sits in the first seat that becomes free, while the others ride on."""
    line = Line(max_batch=2)
    short, long = (line.join(Traveller(Key("a"), calls)) for calls in (1, 3))
    waiting = line.join(Traveller(Key("a"), 1))
    assert line.step() == [short, long]
    assert set(line.step()) == {long, waiting}
    assert waiting.finished_at == 2


def test_a_model_is_changed_only_when_patience_is_up():
    """While its model has work it keeps the device for `patience` steps; then the one that waited longest gets it."""
    line = Line(max_batch=1, patience=4)
    for _ in range(20):
        line.join(Traveller(Key("a"), 1))
    line.step()
    for model in "bc":
        line.join(Traveller(Key(model), 1))
    turns = "".join(line.step()[0].key.model for _ in range(12))
    assert turns == "aaabcaaaaaaa"


def test_room_for_another_model_asks_nobody_for_patience():
    """With room on the device, the oldest unit goes first whatever its model."""
    roster = Roster(1, patience=100)
    roster.join(Key("b"), Traveller(Key("b"), 1))
    roster.steps = 1
    roster.join(Key("a"), Traveller(Key("a"), 1))
    assert roster.next_lane({"a", "b"}.__contains__).key.model == "b"
    assert roster.next_lane({"a"}.__contains__).key.model == "a"


def test_a_lowered_cap_keeps_everybody_seated():
    """After running out of memory all keep their seats, the oldest ride, and the cap outlives the lane."""
    line = Line(max_batch=4)
    riders = []
    for _ in range(4):
        riders.append(line.join(Traveller(Key("a"), 2)))
        line.roster.steps += 1
    (lane,) = line.roster
    lane.take_seats()
    line.roster.limit(lane, 2)
    assert line.step() == riders[:2]
    assert lane.seated == riders
    while line.step():
        pass
    line.join(Traveller(Key("a"), 1))
    assert next(iter(line.roster)).cap == 2


def test_leaving_twice_does_nothing():
    """Who is gone cannot be taken out again, and a lane without anybody is gone too."""
    roster = Roster(1)
    traveller = Traveller(Key("a"), 1)
    roster.join(traveller.key, traveller)
    assert roster.leave(traveller.key, traveller)
    assert not roster.leave(traveller.key, traveller)
    assert roster.is_empty


def test_a_lane_needs_a_seat():
    """A roster without seats is a mistake of whoever configured it."""
    with pytest.raises(ValueError, match="at least one seat"):
        Roster(0)


@settings(print_blob=True)
@given(
    arrivals=st.lists(st.lists(travellers, max_size=4), min_size=1, max_size=20),
    caps=st.lists(st.integers(1, 9), min_size=1),
    max_batch=st.integers(1, 4),
)
def test_a_measured_lane_has_one_seat_until_it_is_settled(arrivals, caps, max_batch):
    """Before it is known how many seats pay nobody sits beside the first, and afterwards never more than that."""
    roster = Roster(max_batch, is_measured=lambda key: key.shape == 1)
    known = {}
    for turn, group in enumerate([*arrivals, *[[]] * 2000]):
        for traveller in group:
            roster.join(traveller.key, traveller)
        assert {lane.key for lane in roster if not lane.is_settled}.isdisjoint(known)
        lane = roster.next_lane(lambda _: True)
        if lane is None:
            if turn >= len(arrivals):
                break
            continue
        lane.take_seats()
        if not lane.is_settled:
            assert lane.key.shape == 1
            assert len(lane.seated) == lane.cap == 1
            if lane.waiting:
                known[lane.key] = min(caps[len(known) % len(caps)], max_batch)
                roster.settle(lane, caps[(len(known) - 1) % len(caps)])
                lane.take_seats()
        assert len(lane.aboard) <= known.get(lane.key, max_batch)
        assert roster.seats == max(each.cap for each in roster) >= len(lane.aboard)
        roster.stepped(lane)
        for rider in lane.aboard:
            rider.left -= 1
            if not rider.left:
                assert roster.leave(lane.key, rider)
    assert roster.is_empty
    assert roster.caps == known


def test_what_memory_taught_lowers_a_settled_cap_and_never_raises_it():
    """The lower of what pays and what fits is what a lane has, and the lane that follows it."""
    roster = Roster(8, is_measured=lambda _: True)
    traveller = Traveller(Key("a"), 1)
    roster.join(traveller.key, traveller)
    (lane,) = roster
    roster.settle(lane, 6)
    roster.limit(lane, 3)
    roster.limit(lane, 5)
    roster.leave(traveller.key, traveller)
    roster.join(traveller.key, traveller)
    (lane,) = roster
    assert (lane.cap, lane.is_settled, roster.seats) == (3, True, 3)


def test_caps_of_long_ago_are_forgotten(monkeypatch):
    """Lanes of ever new sizes take no more memory for ever; a forgotten one is measured anew, or read from the disk."""
    monkeypatch.setattr(scheduler, "MAX_CAPS", 2)
    roster = Roster(8, is_measured=lambda _: True)
    for shape in range(3):
        traveller = Traveller(Key("a", shape), 1)
        roster.join(traveller.key, traveller)
        roster.settle(next(iter(roster)), 4)
        roster.leave(traveller.key, traveller)
    assert list(roster.caps) == [Key("a", 1), Key("a", 2)]
