"""What a worker says of itself with every heartbeat, put together from those who know."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Final

from farm.ledger.records import Gpu, WorkerReport
from worker.energy import EnergyMeter
from worker.engine import Engine
from worker.gpu import Device, Telemetry, read_telemetry
from worker.render import Renderer
from worker.serving import Serving

_CAPS_TOLD: Final = 20
"""Lanes whose caps a report carries, the ones most lately known: clients may ask for any number of sizes."""


@dataclass(frozen=True)
class Description:
    """What this worker says of itself with every heartbeat."""

    name: str
    node: str
    device: Device
    models: tuple[str, ...]
    serving: Serving
    engine: Engine
    renderer: Renderer
    started_at: float = field(default_factory=time.time)
    energy: EnergyMeter = field(default_factory=EnergyMeter)

    def report(self) -> WorkerReport:
        """Return how things are now."""
        stats = self.engine.stats()
        gpu = read_telemetry(self.device)
        return WorkerReport(
            name=self.name,
            node=self.node,
            pid=os.getpid(),
            device=self.device.kind,
            models=self.models,
            serving=self.serving.models,
            resident=stats.resident_models,
            load_s=dict(stats.load_s),
            loads=stats.loads,
            loading_s=stats.loading_s,
            max_batch=stats.max_batch,
            seats=stats.seats,
            caps=dict(list(stats.caps.items())[-_CAPS_TOLD:]),
            running=stats.running,
            waiting=stats.waiting,
            undelivered=self.renderer.num_undelivered,
            steps=stats.steps,
            seat_steps=stats.seat_steps,
            busy_s=stats.busy_s,
            images=stats.images,
            failures=self.renderer.num_failures,
            oom_count=stats.oom_count,
            started_at=self.started_at,
            energy_j=self.energy.joules(gpu),
            gpu=None if gpu is None else as_told(gpu, self.device.kind),
        )


def as_told(now: Telemetry, kind: str) -> Gpu:
    """Return telemetry of a GPU of this kind as the ledger keeps it."""
    return Gpu(
        uuid=now.uuid,
        name=kind,
        temperature_c=now.temperature_c,
        power_w=now.power_w,
        utilisation=None if now.utilisation_percent is None else now.utilisation_percent / 100,
        memory_used_bytes=None if now.memory_used_mib is None else now.memory_used_mib << 20,
        memory_total_bytes=None if now.memory_total_mib is None else now.memory_total_mib << 20,
    )
