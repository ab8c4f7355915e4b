"""Joules that a card takes, by its own counter; where it has none, by its power, asked for many times a second."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from worker.gpu import Device

_SAMPLE_S: Final = 0.05


class PowerDriver(Protocol):
    """What is asked of the driver of one card; None is what the card does not tell."""

    def energy_mj(self) -> int | None:
        """Return the millijoules that the card has taken since the driver was loaded."""

    def power_mw(self) -> int | None:
        """Return what it takes now, milliwatts."""


@dataclass(frozen=True, slots=True)
class Energy:
    """What was taken within a window."""

    joules: float
    source: Literal["counter", "sampled"]


class EnergyMeter:
    """Measures the energy within a `with` block; `energy` tells it afterwards, None where nobody knows."""

    def __init__(
        self, driver: PowerDriver | None, *, clock: Callable[[], float] = time.perf_counter, sample_s: float = _SAMPLE_S
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._sample_s = sample_s
        self._watts: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="power", daemon=True)
        self._began_mj: int | None = None
        self.energy: Energy | None = None

    def __enter__(self) -> Self:
        if self._driver is not None:
            self._began_mj = self._driver.energy_mj()
            if self._began_mj is None:
                self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._driver is None:
            return
        if self._began_mj is None:
            self._ended.set()
            self._sampler.join()
            if len(self._watts) > 1:
                self.energy = Energy(_integral(self._watts), "sampled")
        elif (ended_mj := self._driver.energy_mj()) is not None:
            self.energy = Energy((ended_mj - self._began_mj) / 1000, "counter")

    def _sample(self) -> None:
        assert self._driver is not None  # noqa: S101  the thread is started with one only
        while True:
            if (power_mw := self._driver.power_mw()) is not None:
                self._watts.append((self._clock(), power_mw / 1000))
            if self._ended.wait(self._sample_s):
                break
        if (power_mw := self._driver.power_mw()) is not None:
            self._watts.append((self._clock(), power_mw / 1000))


class Nvml:
    """The NVIDIA driver's answers for the card of this UUID."""

    def __init__(self, uuid: str) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def energy_mj(self) -> int | None:
        """Return the millijoules since the driver was loaded; cards before Volta do not count them."""
        return _ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)

    def power_mw(self) -> int | None:
        """Return what the card takes now, milliwatts."""
        return _ask(pynvml.nvmlDeviceGetPowerUsage, self._handle)


def power_driver(device: Device) -> PowerDriver | None:
    """Return the driver of the device, None on a CPU and where the driver cannot be asked."""
    if device.uuid is None:
        return None
    try:
        return Nvml(device.uuid)
    except pynvml.NVMLError:
        return None


def _integral(samples: list[tuple[float, float]]) -> float:
    """Return the joules under power over time, straight lines between the samples."""
    return sum((later[0] - earlier[0]) * (later[1] + earlier[1]) / 2 for earlier, later in pairwise(samples))


def _ask(question: Callable[[object], int], handle: object) -> int | None:
    try:
        return int(question(handle))
    except pynvml.NVMLError:
        return None
