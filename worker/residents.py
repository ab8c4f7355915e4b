"""Which models are on the device: loaded on demand, the least recently used unloaded first, broken ones remembered.

Used by the engine's thread alone. Deciding whose turn it is to be loaded is the roster's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.pipelines.base import Pipeline

BROKEN_S: Final = 30.0
"""How long a model that failed to load is not tried again: the other units of a job would each wait for it to fail."""


class Residents:
    """The models on the device, at most `max_models`."""

    def __init__(self, load: Callable[[str], Pipeline], *, max_models: int, clock: Callable[[], float]) -> None:
        self._load = load
        self._max_models = max_models
        self._clock = clock
        self._pipelines: dict[str, Pipeline] = {}  # least recently used first
        self._broken: dict[str, tuple[float, Exception]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Models on the device."""
        return tuple(self._pipelines)

    @property
    def has_room(self) -> bool:
        """Whether another model may be loaded without unloading one."""
        return len(self._pipelines) < self._max_models

    def get(self, model: str) -> Pipeline:
        """Return the pipeline of `model`, loading it if need be. Raises whatever loading raised."""
        if model not in self._pipelines:
            self._raise_if_broken(model)
            while len(self._pipelines) >= self._max_models:
                del self._pipelines[next(iter(self._pipelines))]
            free_cached_memory()
            self._pipelines[model] = self._load(model)
        pipeline = self._pipelines.pop(model)
        self._pipelines[model] = pipeline
        return pipeline

    def peek(self, model: str) -> Pipeline | None:
        """Return the pipeline of `model` if it is here now, without using it; any thread may ask."""
        return self._pipelines.get(model)

    def keep_only(self, model: str) -> bool:
        """Unload all models but `model` and free cached memory; return whether there were others."""
        others = [name for name in self._pipelines if name != model]
        for name in others:
            del self._pipelines[name]
        free_cached_memory()
        return bool(others)

    def remember_broken(self, model: str, error: Exception) -> None:
        """Make `get` raise `error` for a while instead of trying again."""
        self._broken[model] = (self._clock(), error)

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
