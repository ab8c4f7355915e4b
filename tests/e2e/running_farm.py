"""A whole farm for tests: Valkey, S3, API and worker as real processes on loopback, spoken to as clients do.

No test here depends on how fast the machine is: what must come in the midst of a job comes while the gate is shut
(tests/odd_worker.py), or into a job that has no end unless it is cancelled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from farm.ledger import Ledger
from farm.settings import Settings
from servers import free_ports, seaweed, valkey

_SETTLE_S = 200.0
_ROOT = Path(__file__).parents[2]


class Farm:
    """A farm whose API is spoken to by `client`; its one worker may be killed at will."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self._gate = folder / "gate"
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])  # the code beside these tests
        self._env = {**os.environ, **env, "PYTHONPATH": path, "ODD_GATE": str(self._gate)}
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        (port,) = free_ports(1)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_SETTLE_S)
        self._start("api.log", "-m", "api", "--port", str(port))
        self.wait_until(lambda: self.client.get("/readyz").status_code == 200, "the API to be ready")

    def _start(self, log_name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / log_name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._env,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def wait_until(self, is_so, what: str, timeout_s: float = _SETTLE_S) -> None:
        """Wait until something is so; fails at once when a process has ended that nobody killed."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(httpx.TransportError):
                if is_so():
                    return
            has_died = any(process.poll() is not None for process in self._processes)
            if has_died or time.monotonic() > deadline:
                logs = "\n".join(log.read_text()[-3000:] for log in self._folder.glob("*.log"))
                raise AssertionError(f"waited in vain for {what}\n{logs}")
            time.sleep(0.05)

    def start_worker(self) -> None:
        """Start a worker, by a launcher that starts it again when it dies, and wait until it has reported."""
        self._start("worker.log", str(_ROOT / "tests" / "odd_worker.py"), "launcher", "--cpu-workers", "1")
        self.wait_until(self._pids, "the worker to report")

    def kill_worker(self) -> None:
        """Kill the worker, and wait until another one has reported in its place."""
        killed = self._pids()
        os.kill(killed[-1], signal.SIGKILL)
        self.wait_until(lambda: not set(self._pids()) <= set(killed), "another worker to report")

    def _pids(self) -> list[int]:
        """Return the workers that have reported, the last one started last; a dead one for a lease's time."""
        told = self.client.get("/v1/workers").json().get("data", [])
        return [worker["pid"] for worker in sorted(told, key=lambda worker: worker["started_at"])]

    @contextmanager
    def shut_gate(self) -> Iterator[None]:
        """Hold the worker up before images whose prompt has GATED in it, for the length of a `with` block."""
        self._gate.touch()
        try:
            yield
        finally:
            self._gate.unlink()

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """Reach the farm's ledger past the API, for the length of a `with` block."""
        ledger = Ledger.connect(Settings(redis_url=self._env["FARM_REDIS_URL"]))
        try:
            yield ledger
        finally:
            ledger.close()

    def post(self, **body) -> str:
        """POST a job and return its id."""
        answer = self.client.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job_id: str) -> dict:
        """GET a job."""
        return self.client.get(f"/v1/jobs/{job_id}").json()

    def wait_stored(self, job_id: str, count: int) -> None:
        """Wait until at least `count` images of a job are stored."""
        self.wait_until(lambda: self.job(job_id)["counts"]["stored"] >= count, f"{count} images of {job_id}")

    def wait_state(self, job_id: str, state: str) -> dict:
        """Wait until a job is in this state; return it."""
        self.wait_until(lambda: self.job(job_id)["state"] == state, f"{job_id} to be {state}")
        return self.job(job_id)

    def ask(self, method: str, path: str) -> dict:
        """Send a request without a body that must succeed; return its answer."""
        answer = self.client.request(method, path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait(self, job_id: str) -> dict:
        """Wait until a job is settled; return it."""
        self.wait_until(lambda: self.job(job_id)["state"] in ("done", "failed", "cancelled"), f"{job_id} to settle")
        return self.job(job_id)

    def images(self, job_id: str) -> list[dict]:
        """GET all images of a job, page by page."""
        images, path = [], f"/v1/jobs/{job_id}/images?limit=50"
        while path:
            page = self.client.get(path).json()
            images += page["data"]
            path = page["next"]
        return images

    def files(self, job_id: str) -> list[bytes]:
        """Fetch every image of a job by its presigned URL, in order."""
        return [httpx.get(image["url"]).raise_for_status().content for image in self.images(job_id)]

    def stop(self) -> None:
        """End every process, the polite way first."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.client.close()


@contextmanager
def running_farm(folder: Path, **settings: str) -> Iterator[Farm]:
    """Run a farm for the length of a `with` block; its workers are the caller's to start."""
    with valkey() as redis, seaweed() as s3:
        env = {
            "FARM_REDIS_URL": redis.url,
            "FARM_DEVICE": "cpu",
            "FARM_MAX_BATCH": "4",
            "FARM_TORCH_THREADS": "1",
            "FARM_LEASE_S": "30",
            "FARM_LOG_LEVEL": "WARNING",
            **{f"FARM_{name.upper()}": value for name, value in {**s3.credentials, **settings}.items()},
        }
        farm = Farm(env, folder)
        try:
            yield farm
        finally:
            farm.stop()
