"""A card at its limits: when its memory ends, and when a second worker wants it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from farm.catalog import Catalog
from worker.bench.memory import cap
from worker.bench.published import builders
from worker.bench.random_weights import RandomModel
from worker.bench.units import native_unit
from worker.engine import Engine

pytestmark = pytest.mark.gpu


def test_memory_that_ends_halves_the_batch_and_keeps_every_seat(card):
    """A real out-of-memory error costs steps of fewer seats, and no image."""
    if card.torch.type == "cpu":
        pytest.skip("a CPU has no cap to set")
    row = Catalog().row("sd15")
    pipeline = RandomModel(row, builders("sd15"), card).load()
    pipeline.max_batch = None
    engine = Engine(lambda _: pipeline, max_batch=16)
    engine.start()
    try:
        engine.submit(native_unit(row, 0, num_inference_steps=2)).result(timeout=300)
        torch.cuda.empty_cache()
        cap(card.torch, torch.cuda.max_memory_allocated() + 2**30)
        futures = [engine.submit(native_unit(row, i, num_inference_steps=6)) for i in range(16)]
        images = [future.result(timeout=300) for future in futures]
        stats = engine.stats()
    finally:
        engine.stop()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(images) == 16
    assert stats.oom_count > 0
    assert stats.failed == 0
    assert min(stats.caps.values()) < 16


def test_a_second_worker_on_the_card_refuses(card, redis_url, s3, tmp_path):
    """Two workers on one device would each count on all of its memory: the second one ends, and says who has it."""
    env = {
        **os.environ,
        **{f"FARM_{name.upper()}": value for name, value in s3.items()},
        "FARM_REDIS_URL": redis_url,
        "FARM_DEVICE": card.torch.type,
        "FARM_MODELS_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "worker"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as first:
        try:
            assert any("is ready" in line for line in first.stderr)
            second = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        finally:
            first.terminate()
            first.communicate(timeout=60)
    assert second.returncode == 2
    assert f"process {first.pid}, already owns device" in second.stderr
