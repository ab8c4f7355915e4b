"""The one device of this worker: chosen, proven to be ours alone, and watched.

A worker owns one device, pinned from outside through CUDA_VISIBLE_DEVICES. What runs on it is not known here.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import pynvml
import torch

from farm.errors import Fatal

if TYPE_CHECKING:
    from pathlib import Path

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Device:
    """The device this worker renders on."""

    torch: torch.device
    kind: str  # what images depend on: the GPU's model, or "cpu"
    uuid: str | None  # of the GPU, as nvidia-smi prints it; None on a CPU

    @property
    def id(self) -> str:
        """A name for this device on this machine, fit for a file name; a machine's CPU counts as one device."""
        return self.uuid or "cpu"


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_device(wanted: Literal["auto", "cuda", "cpu"]) -> Device:
    """Return the device to render on: the one visible GPU, or the CPU where there is none and `cuda` is not demanded.

    Raises Fatal when `cuda` is demanded and there is no GPU, and when more than one is visible: one process, one GPU.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return Device(torch.device("cpu"), "cpu", None)
    if not torch.cuda.is_available():
        raise Fatal("FARM_DEVICE is cuda, but torch sees no CUDA device; use cpu or auto to render without one")
    if (num_visible := torch.cuda.device_count()) > 1:
        raise Fatal(
            f"{num_visible} CUDA devices are visible, a worker owns exactly one: "
            "start one worker per GPU, each with CUDA_VISIBLE_DEVICES set to its UUID"
        )
    properties = torch.cuda.get_device_properties(0)
    return Device(torch.device("cuda", 0), properties.name, f"GPU-{properties.uuid}")


class DeviceLock:
    """Proof that no other worker on this machine uses the device; the kernel drops it when the process ends.

    Who holds it may take over at once whatever a predecessor on the device has left behind.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.lock"
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


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the driver says of a GPU right now; a field the card does not report is None."""

    uuid: str
    temperature_c: int | None
    power_w: float | None
    energy_j: float | None  # since the driver was loaded; cards before Volta do not count it
    utilisation_percent: int | None
    memory_used_mib: int | None
    memory_total_mib: int | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Device memory in MiB: of the card, and what torch of this process holds and has held at most."""

    total_mib: int
    free_mib: int
    held_mib: int
    peak_mib: int


def read_memory(device: Device) -> Memory | None:
    """Return how full the device's memory is; None on a CPU."""
    if device.torch.type != "cuda":
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info(device.torch)
    return Memory(
        total_mib=total_bytes // _MIB,
        free_mib=free_bytes // _MIB,
        held_mib=torch.cuda.memory_reserved(device.torch) // _MIB,
        peak_mib=torch.cuda.max_memory_reserved(device.torch) // _MIB,
    )


def read_telemetry(device: Device) -> Telemetry | None:
    """Return what the driver says of the GPU; None on a CPU and where the driver cannot be asked."""
    if device.uuid is None:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
    except pynvml.NVMLError:
        return None
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    energy_mj = _ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return Telemetry(
        uuid=device.uuid,
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        energy_j=None if energy_mj is None else energy_mj / 1000,
        utilisation_percent=None if rates is None else rates.gpu,
        memory_used_mib=None if memory is None else memory.used // _MIB,
        memory_total_mib=None if memory is None else memory.total // _MIB,
    )


def driver_version() -> str:
    """Return the version of the NVIDIA driver, "" where there is none."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return ""


def _ask(question: Any, *args: Any) -> Any:
    """Return the driver's answer, None where this card has none."""
    try:
        return question(*args)
    except pynvml.NVMLError:
        return None
