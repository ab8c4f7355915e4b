"""What a model takes of a card in each phase: measured, beside what its plan counts with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from worker.bench.units import native_unit
from worker.gpu import synchronise
from worker.pipelines.base import NO_INPUTS, Ride

if TYPE_CHECKING:
    from collections.abc import Callable

    from farm.catalog import ModelRow
    from farm.plans import Plan
    from worker.pipelines.base import Pipeline

_GIB = 1 << 30


class MemoryMeter(Protocol):
    """What is asked of the allocator of one device."""

    def reset(self) -> None:
        """Forget the peak so far."""

    def peak_bytes(self) -> int | None:
        """Return the most that this process held since, None where nobody counts."""


class TorchMemory:
    """torch's own count of what it holds on a card, fragments included; nothing is counted on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        """Give back what is only kept for reuse, and forget the peak so far."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int | None:
        """Return the most that was held since."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None


def measure_phases(pipeline: Pipeline, row: ModelRow, plan: Plan, meter: MemoryMeter) -> dict[str, Any]:
    """Encode, denoise one step and decode, and return each phase's peak beside the plan's, GiB.

    The plan's figures include the CUDA context, which torch does not count.
    """
    unit = native_unit(row, 0)
    latents = torch.randn(1, *pipeline.latent_shape(unit.height, unit.width), device=pipeline.device)
    with torch.inference_mode():
        encoded, encode_bytes = _peak_of(lambda: pipeline.encode(unit, NO_INPUTS), pipeline, meter)
        ride = Ride(encoded.conditioning, 500.0, unit.cfg_scale, 0, 1)
        _, denoise_bytes = _peak_of(
            lambda: pipeline.predict(latents, [ride], guided=unit.guided, batch_shape=None), pipeline, meter
        )
        _, decode_bytes = _peak_of(lambda: pipeline.decode(latents), pipeline, meter)
    measured = {"encode": encode_bytes, "denoise": denoise_bytes, "decode": decode_bytes}
    return {
        phase.name: {"planned_gib": _gib(phase.peak_bytes), "measured_gib": _gib(measured[phase.name])}
        for phase in plan.phases
    }


def cap(device: torch.device, memory_bytes: int) -> None:
    """Let this process have no more of the card than so many bytes, as if the card were that small."""
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total_bytes), device)


def _peak_of(work: Callable[[], Any], pipeline: Pipeline, meter: MemoryMeter) -> tuple[Any, int | None]:
    meter.reset()
    done = work()
    synchronise(pipeline.device)
    return done, meter.peak_bytes()


def _gib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / _GIB, 3)
