"""The one device of this worker: chosen, proven to be ours alone, and watched.

A worker owns one device, pinned from outside through CUDA_VISIBLE_DEVICES. What runs on it is not known here.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import pynvml
import torch

from farm.errors import Fatal
from farm.ledger import Gpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from farm.settings import Settings

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """The device this worker renders on, and its stable name in the farm."""

    node: str  # of this machine and device, or FARM_WORKER_NAME
    device: torch.device
    kind: str  # what images depend on: the GPU's model, or "cpu"
    uuid: str | None = None  # of the GPU, as nvidia-smi prints it; None on a CPU

    def telemetry(self) -> Gpu | None:
        """Return what the driver says of the GPU; None on a CPU and where the driver cannot be asked."""
        return None if self.uuid is None else _read_telemetry(self.uuid, self.kind)

    def memory(self) -> Memory | None:
        """Return how full the device's memory is; None on a CPU."""
        return None if self.device.type != "cuda" else _read_memory(self.device)


@dataclass(frozen=True, slots=True)
class Memory:
    """Device memory in MiB: of the card, and what torch of this process holds and has held at most."""

    total_mib: int
    free_mib: int
    held_mib: int
    peak_mib: int


@contextmanager
def occupy(settings: Settings, *, lock_dir: Path | None = None) -> Iterator[Place]:
    """Choose the device, lock it for as long as this lasts, and yield it.

    Locks are files in `lock_dir`, by default in the machine's temporary folder: a device is locked by its UUID, a CPU
    by the worker's name, for several may share one CPU. Raises Fatal when there is no such device, when it is not
    the only one, and when another worker owns it.
    """
    place = choose_place(settings.device, settings.worker_name)
    folder = lock_dir or Path(tempfile.gettempdir()) / f"diffusion-farm-{os.getuid()}"
    with DeviceLock(folder, place.uuid or place.node):
        yield place


def choose_place(wanted: Literal["auto", "cuda", "cpu"], worker_name: str | None = None) -> Place:
    """Return the one visible GPU, or the CPU where there is none and `cuda` is not demanded.

    Raises Fatal when `cuda` is demanded and there is no GPU, and when more than one is visible: one process, one GPU.
    """
    host = socket.gethostname()
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return Place(worker_name or f"{host}:cpu", torch.device("cpu"), "cpu")
    if not torch.cuda.is_available():
        raise Fatal("FARM_DEVICE is cuda, but torch sees no CUDA device; use cpu or auto to render without one")
    if (num_visible := torch.cuda.device_count()) > 1:
        raise Fatal(
            f"{num_visible} CUDA devices are visible, a worker owns exactly one: "
            "start one worker per GPU, each with CUDA_VISIBLE_DEVICES set to its UUID"
        )
    properties = torch.cuda.get_device_properties(0)
    uuid = f"GPU-{properties.uuid}"
    # The first block of a UUID tells the cards of one machine apart, and survives a change of their order.
    node = worker_name or f"{host}:{uuid[:12]}"
    return Place(node, torch.device("cuda", 0), properties.name, uuid)


class DeviceLock:
    """Proof that no other worker on this machine uses the device; the kernel drops it when the process ends.

    Who holds it may take over at once whatever a predecessor on the device has left behind.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises Fatal, naming the owner's process, when another worker holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise Fatal(
                f"another worker, process {owner}, already owns device {self.path.stem} ({self.path} is locked)"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; the file stays, removing it would let two workers lock two files of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def _read_memory(device: torch.device) -> Memory:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return Memory(
        total_mib=total_bytes // _MIB,
        free_mib=free_bytes // _MIB,
        held_mib=torch.cuda.memory_reserved(device) // _MIB,
        peak_mib=torch.cuda.max_memory_reserved(device) // _MIB,
    )


def _read_telemetry(uuid: str, name: str) -> Gpu | None:
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return None
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    return Gpu(
        uuid=uuid,
        name=name,
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        utilisation=None if rates is None else rates.gpu / 100,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
    )


def _ask(question: Any, *args: Any) -> Any:
    """Return the driver's answer, None where this card has none."""
    try:
        return question(*args)
    except pynvml.NVMLError:
        return None
