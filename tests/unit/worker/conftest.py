"""A tiny random model, saved and loaded once for all tests of the worker."""

from __future__ import annotations

import threading

import pytest
import torch

from tiny_models import save_tiny_sd15, tiny_row
from worker.pipelines.loading import load_pipeline


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Compute on one thread: models this small spend more on waking a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _words_of_our_own(caplog):
    """Have `caplog` keep what this test has the farm say, and nothing of threads that an earlier one left behind."""
    others = {*threading.enumerate()} - {threading.current_thread()}

    def is_ours(record):
        return record.name.partition(".")[0] in ("farm", "worker") and threading.current_thread() not in others

    caplog.handler.addFilter(is_ours)
    yield
    caplog.handler.removeFilter(is_ours)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Return a folder with a random SD 1.5, as diffusers saves it."""
    return save_tiny_sd15(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder):
    """Load that model on the CPU, in float32."""
    return load_pipeline(tiny_row(tiny_folder), models_dir=tiny_folder, device=torch.device("cpu"))
