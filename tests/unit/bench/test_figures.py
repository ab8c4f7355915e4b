"""From diaries and counters to the figures of the report."""

import pytest

from simulation.cards import Card
from simulation.chart import draw
from simulation.figures import RedisFigures, RedisSample, Window, gpu_figures, percentiles_ms, refill_latencies

CARD = Card("test", "sd15", steps=4, seat_s=0.5)
FULL = {"steps": [(float(n), n + 1.0, 2) for n in range(10)], "refills": [(1.0, 0.0), (3.0, 0.5), (99.0, 9.0)]}


def test_a_full_gpu_loses_nothing():
    """Steps that follow each other with every seat taken are what the card offers."""
    figures = gpu_figures([FULL], Window(2.5, 7.5), CARD, 2)
    assert (figures.idle_share, figures.lost_share, figures.mean_seats) == (0.0, 0.0, 2.0)
    assert figures.images_per_s == pytest.approx(figures.offered_images_per_s) == pytest.approx(0.5)


def test_time_between_steps_is_idle():
    """A pause within the window is idle time and lost time; what lies outside does not count."""
    diary = {"steps": [(0.0, 4.0, 2), (5.0, 9.0, 2)], "refills": []}
    card = Card("test", "sd15", steps=4, seat_s=2.0)
    figures = gpu_figures([diary], Window(2.0, 7.0), card, 2)
    assert figures.idle_share == figures.lost_share == pytest.approx(0.2)


def test_an_empty_seat_loses_only_what_is_fixed():
    """Where all of a step's time is fixed, half of the seats is half of the images; where none is, nothing is lost."""
    diary = {"steps": [(0.0, 1.0, 1)], "refills": []}
    fixed = gpu_figures([diary], Window(0.0, 1.0), Card("fixed", "sd15", 4, 0.0, fixed_s=1.0), 2)
    assert (fixed.idle_share, fixed.lost_share) == (0.0, pytest.approx(0.5))
    assert gpu_figures([diary], Window(0.0, 1.0), Card("free", "sd15", 4, 1.0), 2).lost_share == pytest.approx(0.0)


def test_waits_of_dilated_cards_weigh_more():
    """Cards slowed tenfold that stand still for a tenth of the time would stand still for more than half of it."""
    diary = {"steps": [(0.0, 9.0, 2)], "refills": []}
    figures = gpu_figures([diary], Window(0.0, 10.0), Card("test", "sd15", 4, 0.45), 2, dilation=10.0)
    assert figures.idle_share == pytest.approx(1 / (1 + 0.9))


def test_only_seats_freed_within_the_window_count():
    """What fell free before or after the window is left out."""
    assert refill_latencies([FULL], Window(2.0, 10.0)) == [0.5]


def test_percentiles_are_nearest_ranks():
    """A percentile is one of the values, in milliseconds."""
    assert percentiles_ms(n / 1000 for n in range(1, 101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert percentiles_ms([0.25]) == dict.fromkeys(("p50", "p95", "p99", "max"), 250.0)
    assert percentiles_ms([]) == {}


def sample(at_s, cpu_s, num_bytes, calls):
    """Return a sample from answers as redis-py gives them."""
    info = {
        "used_cpu_user": cpu_s / 2,
        "used_cpu_sys": cpu_s / 2,
        "total_net_input_bytes": num_bytes,
        "total_net_output_bytes": 2 * num_bytes,
        "aof_current_size": 3 * num_bytes,
        "connected_clients": 7,
    }
    return RedisSample.of(info, {f"cmdstat_{name}": {"calls": n, "usec": n} for name, n in calls.items()}, at_s)


def test_redis_is_told_per_image():
    """What lay before the first sample does not count; commands that came up in between do."""
    before = sample(10.0, 1.0, 1000, {"evalsha": 10})
    after = sample(20.0, 6.0, 5000, {"evalsha": 50, "hset": 60})
    figures = RedisFigures.between(before, after, images=20)
    assert figures.cpu_share == 0.5
    assert figures.images_per_s_of_one_core == 4
    assert figures.commands_per_image == 5.0
    assert figures.script_ms_per_image == 0.002
    assert figures.per_image == {"hset": 3.0, "evalsha": 2.0}
    assert (figures.input_bytes_per_image, figures.output_bytes_per_image, figures.aof_bytes_per_image) == (
        200,
        400,
        600,
    )


def test_the_chart_takes_a_farm_that_loses_nothing(tmp_path):
    """A row of zeros is drawn as well as one beyond the limit."""
    gpu = {"offered_images_per_s": 64.0, "idle_share": 0.0, "lost_share": 0.0}
    row = {"gpus": 16, "card": "4090", "model": "sd15", "machine_cpu_share": 0.5, "gpu": gpu}
    draw([row], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000
