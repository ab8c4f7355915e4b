"""Joules of a card over a worker's life, from what its driver tells at each heartbeat."""

from worker.energy import EnergyMeter
from worker.gpu import Telemetry


def told(*, power_w=None, energy_j=None):
    """Return what a driver says."""
    return Telemetry("GPU-1", 60, power_w, energy_j, 90, 1024, 24576)


class Clock:
    """Moves on by ten seconds each time it is looked at."""

    now = 0.0

    def __call__(self):
        self.now += 10
        return self.now


def test_a_card_that_counts_is_believed():
    """The counter's difference since the first note, whatever the power says; idle time counts."""
    meter = EnergyMeter(Clock())
    assert [meter.joules(told(power_w=9000, energy_j=j)) for j in (5000.0, 5400.0, 5400.0, 6000.0)] == [
        0,
        400,
        400,
        1000,
    ]


def test_a_counter_that_begins_anew_takes_nothing_back():
    """The driver was loaded again: what lies between is lost, what was counted stays."""
    meter = EnergyMeter(Clock())
    assert [meter.joules(told(energy_j=j)) for j in (100.0, 300.0, 20.0, 50.0)] == [0, 200, 200, 230]


def test_a_card_that_does_not_count_is_reckoned_from_its_power():
    """Straight lines between the notes: 100 to 300 W over ten seconds are 2 kJ."""
    meter = EnergyMeter(Clock())
    assert [meter.joules(told(power_w=w)) for w in (100.0, 300.0, 300.0)] == [0, 2000, 5000]


def test_silence_between_two_notes_is_not_guessed_at():
    """A driver that does not answer once leaves a hole, and the sum stands."""
    meter = EnergyMeter(Clock())
    assert [meter.joules(now) for now in (told(power_w=100.0), None, told(power_w=100.0), told(power_w=100.0))] == [
        0,
        0,
        0,
        1000,
    ]


def test_a_cpu_takes_no_joules_that_anybody_knows():
    """None is not nothing."""
    assert EnergyMeter(Clock()).joules(None) is None
    assert EnergyMeter(Clock()).joules(told()) is None
