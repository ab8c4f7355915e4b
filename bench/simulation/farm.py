"""Processes of a simulated farm: Valkey and the API as `farm up` runs them, and one forked worker per GPU.

Everything listens on loopback and ends with the `with` block. Measuring is `simulation.run`'s business.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path

import httpx
from redis import Redis

from cli import embedded
from cli.processes import Spec, Supervisor, child_env, python_module
from farm.ledger import Ledger
from farm.settings import Settings
from simulation.worker import Plan, work

_START_LIMIT_S = 60.0
_STARTED_AT_ONCE = 4
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Farm:
    """The running servers."""

    folder: Path
    settings: Settings
    redis: Redis
    ledger: Ledger
    api: httpx.Client
    api_pid: int


@contextmanager
def running_farm(**api_variables: str) -> Iterator[Farm]:
    """Run Valkey, with the settings of `farm up`, and the API, with these variables beside them."""
    folder = Path(tempfile.mkdtemp(prefix="farm-scale-"))
    try:
        (folder / "logs").mkdir()
        secret, ports = embedded.load_secrets(folder), embedded.load_ports(folder)
        (api_port,) = embedded.pick_ports(1)
        variables = embedded.farm_env(secret, ports)
        api_argv = python_module("api", "--host", embedded.LOOPBACK, "--port", str(api_port))
        settings = Settings(redis_url=variables["FARM_REDIS_URL"], s3_access_key="none", s3_secret_key="none")  # noqa: S106
        with Supervisor(lambda line: print(line, flush=True)) as supervisor:
            supervisor.start(embedded.valkey_spec(folder, secret, ports))
            _until(lambda: embedded.valkey_answers(secret, ports), "Valkey")
            supervisor.start(
                Spec(
                    "api",
                    api_argv,
                    child_env(**variables, **api_variables),
                    cwd=folder,
                    log=folder / "logs" / "api.log",
                )
            )
            with httpx.Client(base_url=f"http://127.0.0.1:{api_port}", timeout=60, trust_env=False) as client:
                _until(lambda: _answers(client), "the API")
                ledger = Ledger.connect(settings)
                redis: Redis = Redis.from_url(settings.redis_url)
                yield Farm(folder, settings, redis, ledger, client, supervisor.pids["api"])
                redis.close()
                ledger.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Workers:
    """Forked workers, one per GPU."""

    def __init__(self, farm: Farm, plan: Plan, count: int) -> None:
        self._farm = farm
        context = multiprocessing.get_context("fork")
        settings = [
            farm.settings.model_copy(
                update={
                    "device": "cpu",
                    "worker_name": f"gpu{number:04}",
                    "worker_models": plan.card.model,
                    "max_batch": plan.max_batch,
                    "torch_threads": 1,
                    "log_level": "ERROR",
                }
            )
            for number in range(count)
        ]
        self._processes: list[ForkProcess] = [
            context.Process(target=work, args=(each, plan, farm.folder), daemon=True) for each in settings
        ]

    def start(self) -> None:
        """Start all, a few at a time, and wait until each has told the ledger that it lives."""
        for number, process in enumerate(self._processes, start=1):
            process.start()
            if number % _STARTED_AT_ONCE == 0 or number == len(self._processes):
                _until(partial(self._are_up, number), f"{number} workers")
            if number % 32 == 0:
                print(f"  {number} workers are up", flush=True)

    def _are_up(self, count: int) -> bool:
        return len(self._farm.ledger.workers()) >= count

    def cpu_s(self) -> float:
        """Return the CPU seconds of all, so far."""
        return sum(cpu_s(process.pid) for process in self._processes if process.pid is not None)

    def stop(self) -> list[Path]:
        """Let all drain and write their diaries; return those."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_START_LIMIT_S)
            if process.is_alive():
                process.kill()
        return sorted(self._farm.folder.glob("gpu*.json"))


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def machine_cpu_s() -> float:
    """Return the CPU seconds that the whole machine has been busy, whoever for."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/jobs").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for it; raises TimeoutError."""
    deadline = time.monotonic() + _START_LIMIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up within {_START_LIMIT_S:.0f} s")
        time.sleep(0.05)
