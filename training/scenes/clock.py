"""Owns the time of a training stage: how far it is, what the learning rate is, when to save and to sample.

Stages are bounded by minutes, not steps, and count the minutes spent before an interruption too.
"""

from __future__ import annotations

import math
import time


class Clock:
    """Measures one stage of `minutes`, of which `spent_s` have passed in earlier runs."""

    def __init__(self, minutes: float, *, spent_s: float = 0.0) -> None:
        self._whole_s = minutes * 60.0
        self._began_at = time.monotonic() - spent_s
        self._last: dict[str, float] = {}

    @property
    def spent_s(self) -> float:
        """Seconds spent in this stage, over all runs."""
        return time.monotonic() - self._began_at

    @property
    def share(self) -> float:
        """How far the stage is, from 0 to 1."""
        return min(1.0, self.spent_s / self._whole_s)

    @property
    def is_over(self) -> bool:
        """Whether the minutes are spent."""
        return self.spent_s >= self._whole_s

    def is_time_to(self, act: str, every_s: float) -> bool:
        """Say yes once per `every_s`, first after a whole interval."""
        last = self._last.setdefault(act, time.monotonic())
        if time.monotonic() - last < every_s:
            return False
        self._last[act] = time.monotonic()
        return True

    def rate(self, peak: float, *, step: int = 10**9, warmup_steps: int = 1) -> float:
        """Give the learning rate: up linearly over the first steps, then down a cosine over the minutes to 1%."""
        rise = min(1.0, (step + 1) / warmup_steps)
        return peak * rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * self.share)))

    def say(self, stage: str, step: int, **figures: float) -> None:
        """Print one line of progress."""
        left_s = max(0.0, self._whole_s - self.spent_s)
        said = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{stage} step {step} {said} spent {self.spent_s / 60:.1f} min, {left_s / 60:.1f} min left", flush=True)
