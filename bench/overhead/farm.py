"""Servers for one worker, jobs that keep it full, and what its diary says of an image.

Valkey and the S3 server are those that `farm up` runs; everything listens on loopback and ends with the `with` block.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cli import embedded
from cli.processes import Supervisor, child_env, tail
from farm.catalog import Catalog
from farm.expand import expand
from farm.jobs import new_job_id
from farm.ledger import Ledger
from farm.requests import JobSpec
from farm.settings import Settings
from overhead.noop import MODEL, SAMPLERS, STEPS

_LIMIT_S: Final = 600.0
_SETTLED: Final = (0.2, 0.85)
"""Of a run's images: what is between is measured, when every seat is taken and nothing is new."""


@contextmanager
def servers() -> Iterator[tuple[Path, Settings, Mapping[str, str]]]:
    """Run Valkey and an S3 server; give their folder, the settings that lead there, and those as variables."""
    folder = Path(tempfile.mkdtemp(prefix="farm-overhead-"))
    (folder / "logs").mkdir()
    try:
        secret, ports = embedded.load_secrets(folder), embedded.load_ports(folder)
        variables = embedded.farm_env(secret, ports)
        with Supervisor(lambda line: print(line, file=sys.stderr)) as supervisor:
            supervisor.start(embedded.valkey_spec(folder, secret, ports))
            supervisor.start(embedded.seaweedfs_spec(folder, secret, ports))
            _until(lambda: embedded.valkey_answers(secret, ports) and embedded.s3_answers(ports), "the servers")
            fields = {name.removeprefix("FARM_").lower(): value for name, value in variables.items()}
            yield folder, Settings(**fields), variables
        embedded.sweep_sockets(ports)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def post(ledger: Ledger, num_images: int, *, size_px: int) -> str:
    """Open a job of a mixed load, every image with a prompt of its own; return its id."""
    prompts = [
        {
            "prompt": f"a lighthouse beside a harbour, soft morning light, take {number}",
            "scheduler": SAMPLERS[number % len(SAMPLERS)],
            "num_inference_steps": STEPS[number // len(SAMPLERS) % len(STEPS)],
        }
        for number in range(num_images)
    ]
    spec = JobSpec.model_validate({"model": MODEL, "prompts": prompts, "seed": 1, "width": size_px, "height": size_px})
    job = expand(
        spec,
        Catalog().row(MODEL),
        job_id=new_job_id(),
        tenant="default",
        created_at=time.time(),
        drawn_seed=0,
        max_prompts=10_000,
        max_images=10_000_000,
    )
    ledger.open(job)
    return job.header.id


def watch_worker(*, num_images: int, size_px: int, max_batch: int, step_ms: float, tree: Path) -> dict[str, Any]:
    """Let the worker of the checkout `tree` render so many images; return what one costs there."""
    with servers() as (folder, settings, variables):
        ledger = Ledger.connect(settings)
        job, out = post(ledger, num_images, size_px=size_px), folder / "diary.json"
        options = ("--out", out, "--size-px", size_px, "--step-ms", step_ms)
        env = {
            **child_env(**variables),
            "PYTHONPATH": f"{tree}{os.pathsep}{Path(__file__).resolve().parents[1]}",
            "FARM_DEVICE": "cpu",
            "FARM_WORKER_MODELS": MODEL,
            "FARM_WORKER_NAME": "noop",
            "FARM_MAX_BATCH": str(max_batch),
            "FARM_TORCH_THREADS": "1",
        }
        with (folder / "logs" / "worker.log").open("wb") as log:
            argv = (sys.executable, "-m", "overhead.worker", *map(str, options))
            worker = subprocess.Popen(argv, env=env, cwd=folder, stdout=log, stderr=log)
            try:
                _until(lambda: ledger.job(job).finished_at is not None or worker.poll() is not None, "the images")
                assert worker.poll() is None, f"the worker ended:\n{tail(folder / 'logs' / 'worker.log')}"
            finally:
                worker.send_signal(signal.SIGTERM)
                worker.wait(60)
            counts = ledger.job(job).counts
        ledger.close()
        assert counts.stored == counts.total, f"images are lost: {counts}"
        return figures(json.loads(out.read_text())["samples"], max_batch=max_batch, step_ms=step_ms)


def figures(samples: list[dict[str, Any]], *, max_batch: int, step_ms: float) -> dict[str, Any]:
    """Divide what the counters moved by the images of the settled part of a run. CPU is milliseconds per image."""
    total = samples[-1]["images"]
    settled = [each for each in samples if _SETTLED[0] * total <= each["images"] <= _SETTLED[1] * total]
    first, last = settled[0], settled[-1]
    images, took_s, steps = (last[name] - first[name] for name in ("images", "at_s", "steps"))

    def per_image(name: str) -> dict[str, float]:
        kinds = last[name].keys()
        return {kind: (last[name][kind] - first[name].get(kind, 0.0)) / images * 1000 for kind in kinds}

    parts, threads = per_image("parts_s"), per_image("threads_s")
    process_ms = (last["process_s"] - first["process_s"]) / images * 1000
    return {
        "images": images,
        "images_per_s": images / took_s,
        "cpu_ms": process_ms - threads.pop("diary", 0.0),
        "parts_ms": parts,
        "threads_ms": threads,
        "mean_seats": (last["seat_steps"] - first["seat_steps"]) / steps,
        "steps_per_s": steps / took_s,
        "card_busy_share": steps * step_ms / 1000 / took_s,
        "seats_share": (last["seat_steps"] - first["seat_steps"]) / steps / max_batch,
    }


def _until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {_LIMIT_S:.0f} s")
        time.sleep(0.2)
