"""Which models this worker serves now: looks at what waits, decides (farm/turns.py), tells the ledger and the engine.

Only the queues of served models are read, and units are handed out only for models that somebody serves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from farm.turns import Server, choose

if TYPE_CHECKING:
    from farm.ledger import Ledger

log: Final = logging.getLogger(__name__)

_UNKNOWN_LOAD_S: Final = 10.0
"""What a model is taken to cost that was never loaded here."""
_LOOKS: Final = 3
"""How often in a row to look again when others were quicker to choose."""


class Device(Protocol):
    """What the engine has to say about models, and to be told."""

    @property
    def seats(self) -> int:
        """Units worth having at once."""

    @property
    def load_s(self) -> Mapping[str, float]:
        """What loading each model took, typically; of those that were loaded."""

    @property
    def resident_models(self) -> Collection[str]:
        """The models on the device now."""

    def expect(self, model: str) -> None:
        """Prepare for units of `model`."""

    def give_back(self, models: Collection[str]) -> None:
        """Give back the units of these models that have no seat yet."""


class Serving:
    """The models whose queues this worker reads, a choice of those it may serve. `update` is called by one thread."""

    def __init__(
        self,
        worker: str,
        models: Sequence[str],
        *,
        ledger: Ledger,
        device: Device,
        fits: Callable[[Collection[str]], bool],
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._able = tuple(models)
        self._ledger = ledger
        self._device = device
        self._fits = fits
        self._wait_s = wait_s
        self._clock = clock
        self._since_s = clock()
        self._coming: str | None = None  # chosen, and not on the device yet: others finish their seats, or it loads
        # With one model there is nothing to decide.
        self._serving: tuple[str, ...] = self._able if len(self._able) == 1 else ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models served now; any thread may ask."""
        return self._serving

    def update(self) -> bool:
        """Look at what waits and serve what should be served; return whether that is something new.

        Raises LedgerDown.
        """
        if len(self._able) == 1:
            return False
        for _ in range(_LOOKS):
            demand = self._ledger.demand()
            loads_s = self._device.load_s
            if self._coming is not None and self._coming in self._device.resident_models:
                self._since_s = self._clock() - loads_s.get(self._coming, 0.0)
                self._coming = None
            me = Server(
                able=self._able,
                serving=self._serving,
                served_s=0.0 if self._coming else self._clock() - self._since_s,
                load_s=lambda model, known=loads_s: known.get(model, _UNKNOWN_LOAD_S),  # type: ignore[misc]
                fits=self._fits,
            )
            choice = choose(demand, me, wait_s=self._wait_s)
            if choice == self._serving:
                return False
            if self._ledger.serve(
                self._worker, choice, models=self._able, seats=self._device.seats, version=demand.version
            ):
                self._change(choice, demand.models)
                return True
        return False

    def _change(self, choice: tuple[str, ...], waiting: Collection[str]) -> None:
        left = [model for model in self._serving if model not in choice]
        self._serving = choice
        self._coming = choice[0]
        self._device.expect(choice[0])
        # Of a model that nothing waits for any more, what we hold are its last units: ours to finish.
        self._device.give_back([model for model in left if model in waiting])
        extra = {"action": "serving", "models": list(choice), "left": left}
        log.info("serving %s from now on", ", ".join(choice), extra=extra)
