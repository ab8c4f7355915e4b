"""The whole farm on this card: API and worker as processes, a job over HTTP, images in S3.

Redis and S3 are there already, and the settings (FARM_REDIS_URL, FARM_S3_…) say where; `farm bench` starts them where
they are not. Only what is on the wire is known here.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from farm.errors import Fatal
from worker.bench.startup import child_env
from worker.bench.units import NEGATIVE_PROMPT, prompt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from farm.catalog import ModelRow
    from farm.jobs import Acceleration

_START_LIMIT_S: Final = 300.0
_JOB_LIMIT_S: Final = 3600.0
_GRACE_S: Final = 60.0
_POLL_S: Final = 0.1
_FINAL: Final = ("done", "failed", "cancelled")


def measure_farm(
    row: ModelRow,
    *,
    batch: int,
    images: int,
    warm_steps: int,
    acceleration: Acceleration,
    settings: Mapping[str, str],
    logs: Path,
) -> float:
    """Return the images/s of a job of so many images, from the first one's start to the last one's end.

    Before it one batch of `warm_steps` is rendered. `settings` are FARM_* variables beyond our own environment's.
    Raises Fatal when the farm does not do it all.
    """
    with _running(row.name, batch, settings, logs) as ask:
        _finish(ask, _job(row, batch, acceleration, num_inference_steps=warm_steps))
        job = _finish(ask, _job(row, images, acceleration))
    began, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return images / (ended - began).total_seconds()


def _job(row: ModelRow, images: int, acceleration: Acceleration, **fields: Any) -> dict[str, Any]:
    """Return the body of a job whose images are as `native_unit` has them: prompts and seeds differ."""
    return {
        "model": row.name,
        "prompts": [prompt_of(index) for index in range(images)],
        "negative_prompt": NEGATIVE_PROMPT,
        "seed": 1,
        "num_inference_steps": row.num_inference_steps,
        "acceleration": acceleration._asdict(),
        **fields,
    }


@contextmanager
def _running(model: str, batch: int, settings: Mapping[str, str], logs: Path) -> Iterator[Callable[..., Any]]:
    """Run an API and a worker for `model`; yields what asks that API."""
    port = free_port()
    env = {**child_env(), **settings, "FARM_WORKER_MODELS": model, "FARM_MAX_BATCH": str(batch)}
    api = f"http://127.0.0.1:{port}"
    with ExitStack() as farm:
        processes = [
            farm.enter_context(_process(command, env, logs / f"{command[0]}.log"))
            for command in (("api", "--port", str(port)), ("worker",))
        ]
        # A proxy that the environment names is for the world outside.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask(method: str, path: str, body: object = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(api + path, data, {"content-type": "application/json"}, method=method)  # noqa: S310  our own API
            with opener.open(request, timeout=30) as answer:
                return json.load(answer)

        deadline = time.monotonic() + _START_LIMIT_S
        while (workers := _workers(ask)) is None or processes[1].pid not in workers:
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                raise Fatal(f"the farm did not start; its logs end with:\n{_last_words(logs)}")
            time.sleep(_POLL_S)
        if len(workers) > 1:
            raise Fatal("other workers serve this farm: one card is measured, on a farm of its own")
        yield ask


def _workers(ask: Callable[..., Any]) -> list[int] | None:
    """Return the process ids of the workers that report, None while the API does not answer."""
    try:
        return [worker["pid"] for worker in ask("GET", "/v1/workers")["data"]]
    except (urllib.error.URLError, OSError):
        return None


def _finish(ask: Callable[..., Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Submit a job and return it when all of its images are stored."""
    job: dict[str, Any] = ask("POST", "/v1/jobs", body)
    deadline = time.monotonic() + _JOB_LIMIT_S
    while job["state"] not in _FINAL:
        if time.monotonic() > deadline:
            raise Fatal(f"the farm did not finish a job within {_JOB_LIMIT_S:.0f} s")
        time.sleep(_POLL_S)
        job = ask("GET", f"/v1/jobs/{job['id']}")
    if job["state"] != "done":
        raise Fatal(f"the farm's job ended {job['state']}: {job['counts']}")
    return job


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _process(command: tuple[str, ...], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module of this checkout; it is stopped politely, then not."""
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-P", "-m", *command], env=dict(env), stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(logs: Path) -> str:
    return "\n".join(path.read_text("utf-8", "replace")[-1500:] for path in sorted(logs.glob("*.log")))
