"""Joules that the card has taken since this worker began: its own counter's, else its power over the time between asks.

Asked with every heartbeat, which is often enough for a farm's bill. A benchmark asks oftener: worker/bench/energy.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.gpu import Telemetry


class EnergyMeter:
    """Adds up what one card takes, idle or not. Used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._joules = 0.0
        self._is_known = False
        self._counter_j: float | None = None  # when it was last asked
        self._power: tuple[float, float] | None = None  # seconds of the clock, watts

    def joules(self, now: Telemetry | None) -> float | None:
        """Take note of how the card is now; return the joules since the first note, None while it tells nothing.

        Never falls: a counter that begins anew, as after the driver was loaded again, costs what lies between.
        """
        before, self._counter_j = self._counter_j, None if now is None else now.energy_j
        earlier, self._power = self._power, None
        if now is not None and now.power_w is not None:
            self._power = (self._clock(), now.power_w)
        self._is_known = self._is_known or self._counter_j is not None or self._power is not None
        if before is not None and self._counter_j is not None:
            self._joules += max(0.0, self._counter_j - before)
        elif self._counter_j is None and earlier is not None and self._power is not None:
            # A straight line between the two.
            self._joules += (self._power[0] - earlier[0]) * (self._power[1] + earlier[1]) / 2
        return self._joules if self._is_known else None
