"""Numbers as people read them."""

import pytest

from cli.demo import throughput_line
from cli.show import age, rate, span
from farm.machine import num_cores


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (0, "0s"),
        (59.4, "59s"),
        (60, "1m"),
        (75, "1m 15s"),
        (3600, "1h"),
        (5400, "1h 30m"),
        (176_400, "2d 1h"),
    ],
)
def test_a_span_has_its_two_largest_units(seconds, words):
    """Nobody needs the seconds of a day."""
    assert span(seconds) == words


@pytest.mark.parametrize(("given", "words"), [(None, "-"), (0, "-"), (1.234, "1.23/s"), (0.05, "3.0/min")])
def test_a_rate_below_one_a_second_is_told_by_the_minute(given, words):
    """0.05/s says less than 3/min."""
    assert rate(given) == words


def test_a_moment_to_come_is_no_negative_age():
    """Clocks of two machines differ."""
    assert age("2999-01-01T00:00:00Z") == "0s"


def test_the_throughput_line_states_hardware_and_workload():
    """A rate without them says nothing."""
    job = {"total": 12, "started_at": "2026-11-22T17:00:01Z", "finished_at": "2026-11-22T17:00:11Z"}
    model = {"width": 128, "height": 128, "defaults": {"num_inference_steps": 20}}
    line = throughput_line(job, model=model, workers=[{"device": "cpu", "gpu": None}])
    assert line.startswith(f"12 images in 10.0 s: 1.20 images/s on {num_cores()} CPU cores (")
    assert line.endswith("; 20 steps at 128x128)")
    line = throughput_line(job, model=model, workers=[{"gpu": {"name": "NVIDIA RTX 4090"}}] * 2)
    assert line == "12 images in 10.0 s: 1.20 images/s on 2 x NVIDIA RTX 4090 (20 steps at 128x128)"
