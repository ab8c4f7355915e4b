"""`farm up`: a whole farm on one machine, from nothing to a clean stop.

Owns the order: lock the data folder, servers, API and workers, the banner, watch, stop in reverse. What it keeps lies
under the data folder; `farm.json` in it says where a running farm is.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import httpx

from cli import embedded
from cli.client import FarmClient, items, unix_s
from cli.exits import CliError, Exit
from cli.lock import lock
from cli.processes import ChildDied, Spec, Supervisor, child_env, python_module, tail
from cli.show import Stages, banner, note

STATE_FILE: Final = "farm.json"

_SERVERS_READY_S: Final = 60.0
_API_READY_S: Final = 120.0
_WORKER_READY_S: Final = 300.0
_AFTER_REFUSAL_S: Final = 15.0
_TICK_S: Final = 0.1
_WHO_IS_THERE_S: Final = 5.0
_PROBE_EVERY_S: Final = 0.2


@dataclass(frozen=True)
class UpOptions:
    """What `farm up` was asked."""

    host: str
    port: int
    data: Path
    workers: int | None
    until_eof: bool = False

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches the API."""
        return self.host in {"127.0.0.1", "localhost", "::1"}

    @property
    def url(self) -> str:
        """The API as a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104  compared, not bound
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"


class Stopping(Exception):
    """Somebody asked the farm to stop while it was starting."""


class StopSignal:
    """Counts the signals that ask for an end; handlers only count, so that no work is cut in two.

    With `until_eof` the end of standard input asks as well: whoever holds its other end has gone.
    """

    def __init__(self, *, until_eof: bool = False) -> None:
        self.count = 0
        self._until_eof = until_eof
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_set(self) -> bool:
        """Whether the farm is to stop."""
        if not self.count and self._until_eof:
            readable, _, _ = select.select([sys.stdin], [], [], 0)
            if readable and not os.read(sys.stdin.fileno(), 4096):
                self.count += 1
        return self.count > 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


def run_up(options: UpOptions) -> None:
    """Run a farm until a signal asks it to stop; raises CliError when it cannot start."""
    check_host(options)
    data = options.data.resolve()
    (data / "logs").mkdir(parents=True, exist_ok=True)
    with lock(data) as lock_fd, StopSignal(until_eof=options.until_eof) as stop:
        if not embedded.is_free(options.host, options.port):
            raise CliError(port_taken(options), code=Exit.IN_USE)
        (data / STATE_FILE).unlink(missing_ok=True)  # a killed farm could not
        secret = embedded.load_secrets(data)
        ports = embedded.load_ports(data, besides=options.port)
        supervisor = Supervisor(note, lock_fd=lock_fd)
        try:
            with supervisor:
                try:
                    start(options, data, secret, ports, supervisor=supervisor, stop=stop)
                    while not stop.is_set:
                        supervisor.tend()
                        time.sleep(_TICK_S)
                except Stopping:
                    pass
                # From here on: one more signal means now.
                asked = stop.count
                note("stopping: workers finish or give back what they hold (once more to stop at once)")
                supervisor.stop(hurry=lambda: stop.count > asked)
        finally:
            (data / STATE_FILE).unlink(missing_ok=True)
            embedded.sweep_sockets(ports)
        note("stopped; jobs and images stay in " + str(options.data))


def check_host(options: UpOptions) -> None:
    """Raise CliError where the network could reach an API that asks for no key, and nobody said that it may."""
    if options.is_local or os.environ.get("FARM_AUTH"):
        return
    raise CliError(
        f"whoever reaches {options.host} would be the farm's operator: set FARM_AUTH=keys to ask for API keys, "
        "or FARM_AUTH=open to mean it",
        code=Exit.USAGE,
    )


def start(
    options: UpOptions,
    data: Path,
    secret: embedded.Secrets,
    ports: embedded.Ports,
    *,
    supervisor: Supervisor,
    stop: StopSignal,
) -> None:
    """Bring up servers, API and workers, in that order, and say where they are."""
    started_at = time.time()
    env = {
        **child_env(),
        **embedded.farm_env(secret, ports),
        "FARM_MODELS_DIR": str(models_dir()),
    }
    operator_key = os.environ.get("FARM_OPERATOR_KEY") or secret.operator_key
    api = Spec(
        "api",
        python_module("api", "--host", options.host, "--port", str(options.port)),
        {
            **env,
            "FARM_WEBHOOK_SECRET": os.environ.get("FARM_WEBHOOK_SECRET") or secret.webhook_secret,
            "FARM_OPERATOR_KEY": operator_key,
        },
        cwd=Path.cwd(),  # settings may name files relative to it
        log=data / "logs" / "api.log",
    )
    count = () if options.workers is None else ("--cpu-workers", str(options.workers))
    workers = Spec(
        "workers",
        python_module("worker.launcher", *count),
        env,
        cwd=Path.cwd(),
        log=data / "logs" / "workers.log",
        grace_s=40.0,  # more than its launcher gives them
    )
    valkey, seaweedfs = embedded.valkey_spec(data, secret, ports), embedded.seaweedfs_spec(data, secret, ports)
    found: list[dict[str, Any]] = []
    with Stages() as stages, FarmClient(options.url, patience_s=0) as client:

        def wait(spec: Spec, is_ready: Callable[[], bool], limit_s: float) -> None:
            with stages.stage(spec.name):
                wait_for(is_ready, spec, limit_s=limit_s, supervisor=supervisor, stop=stop)

        def worker_reports() -> bool:
            found[:] = fresh_workers(options.url, since=started_at, key=operator_key)
            return bool(found)

        try:
            supervisor.start(valkey)
            supervisor.start(seaweedfs)
            wait(valkey, lambda: embedded.valkey_answers(secret, ports), _SERVERS_READY_S)
            wait(seaweedfs, lambda: embedded.s3_answers(ports), _SERVERS_READY_S)
            supervisor.start(api)
            supervisor.start(workers)
            wait(api, client.is_ready, _API_READY_S)
            wait(workers, worker_reports, _WORKER_READY_S)
        except ChildDied as death:
            raise CliError(f"{death}; its log, {death.spec.log}, ends with:\n{death.last_words}") from death
    write_state(data, options, supervisor, ports)
    if os.environ.get("FARM_AUTH") == "keys":
        note(f"it asks for keys; FARM_OPERATOR_KEY, or operator_key in {options.data / 'secrets.json'}, makes them")
    if options.until_eof:  # whoever started it speaks for it
        note(f"the farm is ready at {options.url}")
    else:
        banner(
            url=options.url,
            s3=f"http://{embedded.LOOPBACK}:{ports.s3}",
            data=options.data,
            workers=found,
        )


def wait_for(
    is_ready: Callable[[], bool], spec: Spec, *, limit_s: float, supervisor: Supervisor, stop: StopSignal
) -> None:
    """Wait until a child is ready; raises Stopping on a signal, ChildDied, or CliError when it takes too long."""
    deadline = time.monotonic() + limit_s
    log_start = spec.log.stat().st_size if spec.log.exists() else 0
    while not is_ready():
        if stop.is_set:
            raise Stopping
        supervisor.tend(starting=True)
        if refused := find_refusal(spec.log, since=log_start):
            # With several GPUs one may be refused and another be on its way.
            deadline = min(deadline, time.monotonic() + _AFTER_REFUSAL_S)
        if time.monotonic() > deadline and refused:
            raise CliError(f"{spec.name} cannot start: {refused}")
        if time.monotonic() > deadline:
            raise CliError(
                f"{spec.name} is not ready after {limit_s:.0f} s; its log, {spec.log}, ends with:\n{tail(spec.log)}"
            )
        time.sleep(_PROBE_EVERY_S)


def find_refusal(log: Path, *, since: int) -> str:
    """Return why a worker last refused to start, as its launcher's log says from byte `since` on; empty if none did."""
    marker = "cannot start: "
    try:
        with log.open("rb") as file:
            file.seek(since)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if marker in line]
    except OSError:
        return ""
    return lines[-1].partition(marker)[2].partition(" action=")[0] if lines else ""


def fresh_workers(url: str, *, since: float, key: str = "") -> list[dict[str, Any]]:
    """Return the workers that started since then: the ledger may still remember those of an earlier farm."""
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = httpx.get(f"{url}/v1/workers", headers=headers, timeout=2.0, trust_env=False)
        found = items(answer.json()) if answer.is_success else []
    except (httpx.HTTPError, ValueError):
        return []
    return [worker for worker in found if unix_s(worker["started_at"]) >= since]


def models_dir() -> Path:
    """Return the folder of the models: the environment's, this checkout's, or `models` here."""
    if named := os.environ.get("FARM_MODELS_DIR"):
        return Path(named).resolve()
    checkout = Path(__file__).resolve().parents[1] / "models"
    return checkout if checkout.is_dir() else Path("models").resolve()


def port_taken(options: UpOptions) -> str:
    """Say who has the port, as far as it tells, and what to do."""
    with contextlib.suppress(httpx.HTTPError):
        if httpx.get(f"{options.url}/healthz", timeout=_WHO_IS_THERE_S, trust_env=False).is_success:
            return f"a farm runs at {options.url} already; start a second one with --port and --data of its own"
    return f"port {options.port} on {options.host} is taken; choose another, such as --port {options.port + 1}"


def write_state(data: Path, options: UpOptions, supervisor: Supervisor, ports: embedded.Ports) -> None:
    """Tell other programs where the running farm is."""
    state = {
        "api": options.url,
        "s3": f"http://{embedded.LOOPBACK}:{ports.s3}",
        "pid": os.getpid(),
        "children": supervisor.pids,
    }
    half = data / f"{STATE_FILE}.part"
    half.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    half.replace(data / STATE_FILE)
