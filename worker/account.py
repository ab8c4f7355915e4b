"""The engine's books: what was done since it started, and whose the device's time was."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.gpu import synchronise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from worker.seat import Seat


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine has done since it started, and what it is doing."""

    steps: int
    seat_steps: int  # seats taken, summed over steps; / (steps * max_batch) is the occupancy
    busy_s: float
    images: int
    failed: int
    oom_count: int
    max_batch: int
    seats: int  # units worth having at once
    waiting: int
    running: int
    caps: Mapping[str, int]  # by lane: seats that pay, or that memory or the catalog allow, where that is known
    resident_models: tuple[str, ...]
    load_s: Mapping[str, float] = field(default_factory=dict)  # by model: what loading it typically took
    loads: int = 0
    unloads: int = 0
    loading_s: float = 0.0  # spent on loads; no part of busy_s
    floor_bytes: int = 0  # RAM of the process just after the latest unload; 0 before


@dataclass(slots=True)
class Account:
    """Counts of one engine. Written by its thread, read by others at any time."""

    clock: Callable[[], float]
    seat_steps: int = 0
    images: int = 0
    failed: int = 0
    oom_count: int = 0
    busy_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, *, seat_steps: int = 0, images: int = 0, failed: int = 0, ooms: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self.seat_steps += seat_steps
            self.images += images
            self.failed += failed
            self.oom_count += ooms

    @contextmanager
    def busy(self, device: torch.device) -> Iterator[Callable[[], float]]:
        """Count the time within as the device's; what this yields tells the seconds afterwards."""
        elapsed_s = 0.0
        started = self.clock()
        try:
            yield lambda: elapsed_s
        finally:
            # Kernels run behind our back. Waiting for them costs one launch per step, and makes every number true.
            synchronise(device)
            elapsed_s = self.clock() - started
            with self._lock:
                self.busy_s += elapsed_s


def charge(seats: Sequence[Seat], elapsed_s: float) -> None:
    """Share the device's time out among those it was spent for."""
    for seat in seats:
        seat.gpu_s += elapsed_s / len(seats)
