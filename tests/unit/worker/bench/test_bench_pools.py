"""Measurements on a CPU leave no pool of threads behind, which would slow the next one down."""

import threading
import time
from pathlib import Path

import pytest
import torch

from worker.bench.pools import leaving_no_pool


def tasks():
    """Return the threads that the system knows of this process, OpenMP's among them."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
def test_the_pool_of_a_measurement_ends_with_it():
    """Though it computed in parallel; a thread that lives on keeps its pool."""

    def compute():
        num_threads = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            torch.randn(400, 400) @ torch.randn(400, 400)
            torch.ones(1_000_000).add_(1)
            return tasks() - before_it
        finally:
            torch.set_num_threads(num_threads)

    before_it = tasks()  # other tests' threads may end at any time
    its = leaving_no_pool(torch.device("cpu"), compute)
    assert len(its) >= 4  # the thread itself, and three that help it
    until_s = time.monotonic() + 30
    while len(its & tasks()) > len(its) - 4:  # they end a moment after their thread
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_what_it_returns_and_raises_passes_through():
    """As if it had been called."""
    assert leaving_no_pool(torch.device("cpu"), threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        leaving_no_pool(torch.device("cpu"), lambda: 1 / 0)


def test_on_a_card_it_is_called_where_it_is():
    """CUDA graphs of a compiled model belong to the thread that made them."""
    assert leaving_no_pool(torch.device("cuda"), threading.get_ident) == threading.get_ident()
