"""A device whose steps take what a test says: drives measuring without a second going by."""

from __future__ import annotations

import torch


class SimulatedDevice:
    """`step_ms` says what a step of so many seats takes, or raises; time goes by in steps alone."""

    def __init__(self, step_ms, *, memory=10**6):
        self.step_ms = step_ms
        self.memory = memory  # seats of the largest step that does not run out of it
        self.now_s = 100.0
        self.steps = []  # seats of each step that was begun

    def clock(self):
        return self.now_s

    def step(self, batch):
        self.steps.append(batch)
        if batch > self.memory:
            raise torch.OutOfMemoryError(f"no memory for {batch} seats")
        self.now_s += self.step_ms(batch) / 1000

    @property
    def tried(self):
        """Batches in the order in which they were tried."""
        return list(dict.fromkeys(self.steps))
