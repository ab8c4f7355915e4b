"""Which models may be on the device together: sums over their memory plans, nothing loaded and nothing asked.

Plans are made for one model alone on the device; here several of them share it. One lane steps at a time, so weights
add up, while working memory is needed once: by whichever model needs most.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from farm.plans import Where
from farm.plans.working import CONTEXT_BYTES, WORKSPACE_BYTES, margin_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from farm.plans import Plan

log: Final = logging.getLogger(__name__)

_SHARED_BYTES: Final = CONTEXT_BYTES + WORKSPACE_BYTES
"""In every plan for a card, and on the card once."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes, in bytes: of the device always, of it while the model works, and of RAM always."""

    held: int
    working: int
    ram: int = 0

    @classmethod
    def of(cls, plan: Plan, *, max_batch: int, on_card: bool) -> Self:
        """Return what a model under `plan` takes when lanes have at most `max_batch` seats.

        The context that all models on a card share is not in it.
        """
        return cls(
            held=plan.steady_bytes - (_SHARED_BYTES if on_card else 0),
            working=plan.peak_at(min(max_batch, plan.max_batch)) - plan.steady_bytes,
            ram=sum(part.weight_bytes for part in plan.components if part.where is not Where.RESIDENT),
        )


@dataclass(frozen=True, slots=True)
class Space:
    """What models may take together, in bytes; `device` on a CPU is RAM, and `ram` is for what waits beside a card."""

    device: int
    ram: int

    @classmethod
    def on_card(cls, vram_bytes: int, *, ram_bytes: int) -> Self:
        """Return the space on a card of so much memory, less what a plan leaves free and what is there once."""
        return cls(vram_bytes - margin_bytes(vram_bytes) - _SHARED_BYTES, ram_bytes)

    @classmethod
    def in_ram(cls, ram_bytes: int) -> Self:
        """Return the space that a worker on the CPU has, of whose `ram_bytes` a plan leaves some free."""
        return cls(ram_bytes - margin_bytes(ram_bytes), ram_bytes)

    def holds(self, footprints: Iterable[Footprint]) -> bool:
        """Return whether all of them fit, each at work while the others wait."""
        together = list(footprints)
        device = sum(each.held for each in together) + max((each.working for each in together), default=0)
        return device <= self.device and sum(each.ram for each in together) <= self.ram


class Budget:
    """Says which models fit together. `measure` returns None for a model whose size cannot be told: it goes alone."""

    def __init__(self, measure: Callable[[str], Footprint | None], space: Space, *, max_models: int = 0) -> None:
        """Allow at most `max_models` at once, 0 for as many as fit."""
        self._measure = measure
        self._space = space
        self._max_models = max_models
        self._known: dict[str, Footprint | None] = {}

    def fits(self, models: Collection[str]) -> bool:
        """Return whether `models` may be resident together; one alone always may, whether it loads is its loader's.

        Any thread may ask. The first time that a model is asked for, its files' headers are read.
        """
        footprints = [self._footprint(model) for model in models]
        if len(models) <= 1:
            return True
        known = [each for each in footprints if each is not None]
        if len(known) < len(models) or 0 < self._max_models < len(models):
            return False
        return self._space.holds(known)

    def _footprint(self, model: str) -> Footprint | None:
        if model not in self._known:
            self._known[model] = footprint = self._measure(model)
            if footprint is None:
                log.info("model %s is of unknown size and stays alone on the device", model, extra={"model": model})
        return self._known[model]


def one_at_a_time(models: Collection[str]) -> bool:
    """Say of any two models that they do not fit together."""
    return len(models) <= 1
