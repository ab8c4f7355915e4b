"""Runs the workers of one machine: a process for each GPU, or some on the CPU; restarts those that die.

`python -m worker.launcher`. It renders nothing and knows no torch. A worker is told its one device by UUID, and holds
the other end of a pipe: when the launcher is gone, however it went, the pipe ends and the worker drains and ends too.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from farm.errors import Fatal
from farm.logs import configure_logging
from farm.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

log: Final = logging.getLogger(__name__)

_TICK_S: Final = 0.1
_STABLE_AFTER_S: Final = 30.0
"""A worker that lived this long was well: its death is answered at once."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_GRACE_S: Final = 25.0
"""How long workers may drain; they need a step, and end themselves before this."""
_UNLESS_SET: Final = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What our own environment may say otherwise. On a busy machine torch's threads would spin while they wait for one that
has no core: measured 20 times slower."""


@dataclass(frozen=True)
class Device:
    """One device of this machine: its short name, and what `CUDA_VISIBLE_DEVICES` must say to get it alone."""

    name: str
    visible: str
    kind: str


def find_gpus(visible: str | None) -> list[Device]:
    """Return this machine's GPUs, by UUID, as far as `visible` (CUDA_VISIBLE_DEVICES, None when unset) lets us.

    An empty list without an NVIDIA driver.
    """
    import pynvml  # noqa: PLC0415  a machine without GPUs need not have it

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
    return choose_gpus(uuids, visible)


def choose_gpus(uuids: Sequence[str], visible: str | None) -> list[Device]:
    """Return the devices that `visible` leaves of `uuids` (in PCI order), named after their number on this machine.

    `visible` is read as CUDA reads it: numbers, UUIDs or their beginnings, MIG slices; an unknown one ends the list.
    """
    if visible is None:
        return [Device(f"gpu{number}", uuid, "cuda") for number, uuid in enumerate(uuids)]
    chosen: list[Device] = []
    for token in filter(None, (part.strip() for part in visible.split(","))):
        if token.startswith("MIG-"):
            chosen.append(Device(f"mig{len(chosen)}", token, "cuda"))
            continue
        matches = [
            number
            for number, uuid in enumerate(uuids)
            if token == str(number) or (token.startswith("GPU-") and uuid.startswith(token))
        ]
        if len(matches) != 1:
            break
        chosen.append(Device(f"gpu{matches[0]}", uuids[matches[0]], "cuda"))
    return chosen


def choose_devices(settings: Settings, *, gpus: Sequence[Device], cpu_workers: int) -> list[Device]:
    """Return one device per worker to run; raises Fatal when GPUs are asked for and there are none."""
    if settings.device != "cpu" and gpus:
        return list(gpus)
    if settings.device == "cuda":
        raise Fatal("FARM_DEVICE is cuda, but this machine shows no NVIDIA GPU (look at nvidia-smi)")
    return [Device(f"cpu{number}", "", "cpu") for number in range(cpu_workers)]


def worker_env(device: Device, settings: Settings, *, num_workers: int) -> dict[str, str]:
    """Return what a worker's environment needs beyond ours."""
    host = settings.worker_name or socket.gethostname()
    env = {
        "FARM_WORKER_NAME": f"{host}:{device.name}",
        "FARM_DEVICE": device.kind,
        "CUDA_VISIBLE_DEVICES": device.visible,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "FARM_RAM_SHARE": str(settings.ram_share / num_workers),
    }
    if device.kind == "cpu" and not settings.torch_threads:
        # Left alone, each worker would take every core.
        env["FARM_TORCH_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_workers))
    return env


@dataclass
class Child:
    """One worker and how it fares."""

    name: str
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at_s: float = 0.0
    start_at_s: float = 0.0
    pause_s: float = field(default=_FIRST_PAUSE_S)


class Launcher:
    """Keeps children running until told to stop. `command` starts one; its stdin is the pipe that ends with us."""

    def __init__(self, children: Sequence[Child], command: Sequence[str]) -> None:
        self._children = children
        self._command = tuple(command)
        self._is_stopping = False

    def stop(self) -> None:
        """Begin to stop. May be called by a signal handler."""
        self._is_stopping = True

    def run(self) -> None:
        """Start all children, restart those that end, until `stop`; then end them, the slow ones the hard way."""
        try:
            while not self._is_stopping:
                self._tend(time.monotonic())
                time.sleep(_TICK_S)
        finally:
            self._end_all()

    def _tend(self, now_s: float) -> None:
        for child in self._children:
            if child.process is None:
                if now_s >= child.start_at_s and not self._is_stopping:
                    self._start(child)
            elif (code := child.process.poll()) is not None:
                self._bury(child, code, now_s)

    def _start(self, child: Child) -> None:
        child.process = subprocess.Popen(
            self._command, env={**_UNLESS_SET, **os.environ, **child.env}, stdin=subprocess.PIPE
        )
        child.started_at_s = time.monotonic()
        log.info("started worker %s", child.name, extra={"action": "worker_started", "pid": child.process.pid})

    def _bury(self, child: Child, code: int, now_s: float) -> None:
        """Decide when a dead worker starts again: at once after a long life, ever later after short ones."""
        _close_pipe(child)
        child.process = None
        if now_s - child.started_at_s >= _STABLE_AFTER_S:
            child.pause_s = _FIRST_PAUSE_S
            child.start_at_s = now_s
        else:
            child.start_at_s = now_s + child.pause_s
            child.pause_s = min(child.pause_s * 2, _LONGEST_PAUSE_S)
        log.warning(
            "worker %s ended with code %d, starting it again in %.1f s",
            child.name,
            code,
            child.start_at_s - now_s,
            extra={"action": "worker_ended"},
        )

    def _end_all(self) -> None:
        running = [(child, child.process) for child in self._children if child.process is not None]
        for _, process in running:
            process.terminate()
        deadline_s = time.monotonic() + _GRACE_S
        for child, process in running:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.critical("worker %s did not end in time", child.name, extra={"action": "worker_killed"})
                process.kill()
                process.wait()
            _close_pipe(child)
            child.process = None


def _close_pipe(child: Child) -> None:
    if child.process is not None and child.process.stdin is not None:
        child.process.stdin.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT or SIGHUP; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="farm worker",
        description="Run one worker for each GPU of this machine, or on the CPU where there is none.",
    )
    parser.add_argument(
        "--cpu-workers",
        type=_positive,
        default=1,
        metavar="N",
        help="workers to run where there is no GPU, or with FARM_DEVICE=cpu (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    settings = Settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    try:
        gpus = [] if settings.device == "cpu" else find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
        devices = choose_devices(settings, gpus=gpus, cpu_workers=arguments.cpu_workers)
    except Fatal as error:
        log.critical("%s", error, extra={"action": "launcher_refused"})
        return 2
    children = []
    for device in devices:
        env = worker_env(device, settings, num_workers=len(devices))
        children.append(Child(env["FARM_WORKER_NAME"], env))
    launcher = Launcher(children, _worker_command())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _calls(launcher.stop))
    launcher.run()
    return 0


def _worker_command() -> tuple[str, ...]:
    safe_path = ("-P",) if sys.flags.safe_path else ()  # as we were started ourselves
    return (sys.executable, *safe_path, "-m", "worker", "--tethered")


def _calls(act: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
    return lambda _number, _frame: act()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
