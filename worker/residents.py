"""Which models are on the device: loaded on demand, the least recently used unloaded first, broken ones remembered.

Used by the engine's thread alone, but for what says otherwise. Deciding whose turn it is to be loaded is the roster's
business, what fits together the budget's (worker/budget.py).
"""

from __future__ import annotations

import gc
import logging
from collections import defaultdict, deque
from functools import partial
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import torch

from worker import ram

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from worker.pipelines.base import Pipeline

log: Final = logging.getLogger(__name__)

BROKEN_S: Final = 30.0
"""How long a model that failed to load is not tried again: the other units of a job would each wait for it to fail."""
APART_S: Final = 600.0
"""How long models that ran out of memory together are kept apart, whatever the sums say: or each would drive out the
other at every step. Not for ever, since it may have been one large picture's doing."""
_LOADS_KEPT: Final = 5
"""Loads that a model's typical load is taken from: a first one that downloads and hashes is soon outvoted."""


class Residents:
    """The models on the device: as many as `fits` says may be there together."""

    def __init__(
        self,
        load: Callable[[str], Pipeline],
        *,
        fits: Callable[[Collection[str]], bool],
        clock: Callable[[], float],
    ) -> None:
        self._load = load
        self._fits = fits
        self._clock = clock
        self._pipelines: dict[str, Pipeline] = {}  # least recently used first
        self._broken: dict[str, tuple[float, Exception]] = {}
        self._clashed_at: dict[frozenset[str], float] = {}
        self._load_times: defaultdict[str, deque[float]] = defaultdict(partial(deque, maxlen=_LOADS_KEPT))
        self.load_s: Mapping[str, float] = MappingProxyType({})  # by model: a typical load, in seconds; never changed
        self.loads = 0
        self.unloads = 0
        self.loading_s = 0.0  # in all
        self.floor_bytes = 0  # of RAM, that the process held just after models went; 0 before, and where nobody tells

    @property
    def names(self) -> tuple[str, ...]:
        """Models on the device; any thread may ask."""
        return tuple(self._pipelines)

    def has_room_for(self, model: str) -> bool:
        """Return whether `model` is here, or may be loaded without unloading another."""
        return model in self._pipelines or self._may_share((*self._pipelines, model))

    def get(self, model: str) -> Pipeline:
        """Return the pipeline of `model`, loading it if need be. Raises whatever loading raised."""
        if model not in self._pipelines:
            self._raise_if_broken(model)
            staying = list(self._pipelines)
            while staying and not self._may_share((*staying, model)):
                del staying[0]
            self._unload([name for name in self._pipelines if name not in staying], f"making room for {model}")
            self._pipelines[model] = self._timed_load(model)
        pipeline = self._pipelines.pop(model)
        self._pipelines[model] = pipeline
        return pipeline

    def peek(self, model: str) -> Pipeline | None:
        """Return the pipeline of `model` if it is here now, without using it; any thread may ask."""
        return self._pipelines.get(model)

    def keep_only(self, model: str) -> bool:
        """Unload all models but `model`, which ran out of memory beside them; return whether there were others."""
        others = [name for name in self._pipelines if name != model]
        self._clashed_at |= {frozenset((model, name)): self._clock() for name in others}
        self._unload(others, "out of memory")
        free_cached_memory()
        return bool(others)

    def remember_broken(self, model: str, error: Exception) -> None:
        """Make `get` raise `error` for a while instead of trying again.

        The while runs from the first of these calls: units that fail of what is remembered do not prolong it.
        """
        self._broken.setdefault(model, (self._clock(), error))

    def _may_share(self, models: Collection[str]) -> bool:
        now = self._clock()
        clash = any(now - at < APART_S and pair <= set(models) for pair, at in self._clashed_at.items())
        return not clash and self._fits(models)

    def _timed_load(self, model: str) -> Pipeline:
        began = self._clock()
        pipeline = self._load(model)
        elapsed_s = self._clock() - began
        times = self._load_times[model]
        times.append(elapsed_s)
        self.load_s = MappingProxyType({**self.load_s, model: median(times)})
        self.loads += 1
        self.loading_s += elapsed_s
        return pipeline

    def _unload(self, models: Iterable[str], reason: str) -> None:
        names = list(models)
        if not names:
            return
        for name in names:
            del self._pipelines[name]
            self.unloads += 1
            log.info("model %s unloaded: %s", name, reason, extra={"action": "model_unloaded", "model": name})
        # Pipelines refer to themselves in places (an encoder to the model that it asks for its LoRAs), so that without
        # a collection the weights would still be there while the next ones come.
        gc.collect()
        free_cached_memory()
        ram.give_back()
        self.floor_bytes = ram.held_bytes() or 0

    def _raise_if_broken(self, model: str) -> None:
        failed_at, error = self._broken.get(model, (0.0, None))
        if error is None:
            return
        if self._clock() - failed_at < BROKEN_S:
            raise error
        del self._broken[model]


def free_cached_memory() -> None:
    """Give back device memory that torch keeps for reuse; nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
