"""The simulation of scale, small: real servers, real workers, two simulated cards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.long
def test_a_small_simulation_tells_what_it_saw(tmp_path):
    """Two cards render a job to its end through the whole farm, and every part of the report says something."""
    out = tmp_path / "scale.json"
    options = ["--gpus", "2", "--images", "130", "--no-large-job", "--out", out]
    command = [sys.executable, ROOT / "bench/scale.py", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["images"] == 130
    assert row["retries"] == 0
    assert 1 < row["gpu"]["mean_seats"] <= 8
    assert row["gpu"]["images_per_s"] <= row["gpu"]["offered_images_per_s"] * 1.001
    # Claimed and stored, and a share of feed; the window is short, so some of its images were claimed before it began.
    assert 1 < row["redis"]["scripts_per_image"] < 100
    assert row["redis"]["per_image"]["setbit"] >= 0.9
    # Ten bytes and a bit, the rest is what Redis keeps free behind a growing string.
    assert 10 <= row["memory"]["added_bytes_per_image"] < 60
    assert row["feed_latency_ms"]["p50"] <= row["feed_latency_ms"]["max"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
