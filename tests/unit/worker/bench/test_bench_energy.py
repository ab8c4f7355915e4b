"""Joules: by the card's counter where it has one, else from its power; nothing where nobody knows."""

import itertools
import threading

import pytest

from worker.bench.energy import EnergyMeter


class Card:
    """A card whose counter and power are told."""

    def __init__(self, energies_mj, power_mw=None):
        self._energies = iter(energies_mj)
        self._power_mw = power_mw
        self.asked = threading.Event()
        self.num_asked = itertools.count(1)

    def energy_mj(self):
        return next(self._energies)

    def power_mw(self):
        if next(self.num_asked) == 3:
            self.asked.set()
        return self._power_mw


def test_the_counter_is_read_before_and_after():
    """The counter's difference is the energy, however long it took."""
    with EnergyMeter(Card([5_000, 305_000])) as meter:
        pass
    assert (meter.energy.joules, meter.energy.source) == (300.0, "counter")


def test_a_card_without_a_counter_is_asked_for_its_power():
    """Power over time is summed up; where it never changes, that is power times time."""
    ticks = itertools.count()
    card = Card([None], power_mw=250_000)
    with EnergyMeter(card, clock=lambda: float(next(ticks)), sample_s=0.001) as meter:
        assert card.asked.wait(60)
    seconds = next(ticks) - 1
    assert meter.energy.joules == pytest.approx(250.0 * seconds)
    assert meter.energy.source == "sampled"


@pytest.mark.parametrize("driver", [None, Card([None])], ids=["CPU", "card that tells nothing"])
def test_where_nobody_knows_nothing_is_told(driver):
    """A CPU, or a card that tells neither energy nor power, has no joules rather than invented ones."""
    with EnergyMeter(driver, sample_s=0.001) as meter:
        pass
    assert meter.energy is None
