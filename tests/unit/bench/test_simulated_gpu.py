"""The GPU made of arithmetic: when its steps begin and end, and what it takes for waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.cards import CARDS, Card
from simulation.gpu import SimulatedGpu

CARD = Card("test", "sd15", steps=4, seat_s=0.5, fixed_s=1.0)


def finished_at(gpu, now):
    """Return who has finished by `now`, and when."""
    return {each.unit: each.finished_at for each in gpu.advance(now)}


def test_a_unit_alone_takes_its_steps():
    """Four steps of one seat begin when the unit is there."""
    gpu = SimulatedGpu(CARD, 2)
    gpu.submit("a", 10.0)
    assert finished_at(gpu, 100.0) == {"a": 10.0 + 4 * 1.5}
    assert gpu.diary.steps == [(10.0 + 1.5 * n, 11.5 + 1.5 * n, 1) for n in range(4)]


def test_late_company_joins_at_the_next_step():
    """A unit that comes while a step runs sits from the next step on, and makes that step longer."""
    gpu = SimulatedGpu(CARD, 2)
    gpu.submit("a", 0.0)
    gpu.submit("b", 0.1)
    assert finished_at(gpu, 100.0) == {"a": 1.5 + 3 * 2.0, "b": 1.5 + 3 * 2.0 + 1.5}


def test_nobody_sits_beyond_the_seats():
    """A third unit waits until one of two seats is free, and takes it in the same moment."""
    gpu = SimulatedGpu(CARD, 2)
    for unit in "abc":
        gpu.submit(unit, 0.0)
    assert finished_at(gpu, 100.0) == {"a": 8.0, "b": 8.0, "c": 8.0 + 4 * 1.5}
    assert max(seats for _, _, seats in gpu.diary.steps) == 2
    assert gpu.diary.refills == [(8.0, 0.0)]


def test_a_seat_that_waits_for_the_farm_is_told():
    """The wait of a free seat is the time from its last unit's end to the next unit's arrival."""
    gpu = SimulatedGpu(CARD, 1)
    gpu.submit("a", 0.0)
    gpu.advance(6.0)
    gpu.submit("b", 6.25)
    assert finished_at(gpu, 100.0) == {"b": 12.25}
    assert gpu.diary.refills == [(6.0, 0.25)]


def test_a_removed_unit_frees_its_seat():
    """Who is taken out finishes never, and the others go on."""
    gpu = SimulatedGpu(CARD, 2)
    for unit in "abc":
        gpu.submit(unit, 0.0)
    gpu.advance(0.5)
    assert gpu.remove(lambda unit: unit == "a") == ["a"]
    assert set(finished_at(gpu, 100.0)) == {"b", "c"}


def test_a_step_that_lost_everybody_counts_as_begun():
    """Seats that were taken when a step began stand in the diary, although all have left before its end."""
    gpu = SimulatedGpu(CARD, 2)
    gpu.submit("a", 0.0)
    gpu.advance(0.5)
    gpu.remove(lambda _: True)
    assert finished_at(gpu, 100.0) == {}
    assert gpu.diary.steps == [(0.0, 1.5, 1)]


@given(
    arrivals=st.lists(st.integers(0, 400).map(lambda n: n / 8), min_size=1, max_size=20).map(sorted),
    looks=st.lists(st.integers(0, 1600).map(lambda n: n / 8), max_size=20).map(sorted),
)
def test_it_does_not_matter_when_one_looks(arrivals, looks):
    """Whoever advances the GPU often, seldom or late finds the same steps, refills and ends."""
    watched, unwatched = SimulatedGpu(CARD, 3), SimulatedGpu(CARD, 3)
    ends, moments = {}, iter([*looks, float("inf")])
    moment = next(moments)
    for number, arrival in enumerate(arrivals):
        while moment < arrival:  # a look before somebody comes cannot know of them
            ends |= finished_at(watched, moment)
            moment = next(moments)
        watched.submit(number, arrival)
        unwatched.submit(number, arrival)
    while moment < float("inf"):
        ends |= finished_at(watched, moment)
        moment = next(moments)
    ends |= finished_at(watched, 10_000.0)
    assert ends == finished_at(unwatched, 10_000.0)
    assert len(ends) == len(arrivals)
    assert watched.diary == unwatched.diary


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: f"{card.name}-{card.model}")
def test_no_card_beats_its_floor(card):
    """No card of the table renders faster than its matmul rate allows: that would be a bug in the table."""
    floor_s = {
        ("4090", "sd15"): 0.210,
        ("4090-plain", "sd15"): 0.210,
        ("4090", "sdxl"): 1.26,
        ("4090", "flux-dev"): 6.35,
        ("4090", "flux-schnell"): 0.88,
        ("h100", "sd15"): 0.043,
        ("h100", "sdxl"): 0.522,
        ("h100", "flux-dev"): 1.31,
    }
    assert 1 / card.images_per_s(8) >= floor_s[card.name, card.model]
