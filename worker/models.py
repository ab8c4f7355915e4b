"""The models of one worker, by name: measured, read ahead and loaded, with what each of these needs at hand.

Which are loaded, and when, is decided elsewhere (worker/residents.py, worker/scheduler.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.weights import DIGESTS_FILE, Hub, Weights
from worker import ram
from worker.budget import Budget, Space
from worker.lora import LoraLibrary
from worker.pipelines.fitting import footprint_of, memory_of
from worker.pipelines.loading import load_pipeline
from worker.prefetch import Prefetch, read_or_hash

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from farm.catalog import Catalog
    from farm.settings import Settings
    from worker.budget import Footprint
    from worker.forward import Toolbox
    from worker.gpu import Device
    from worker.pipelines.base import Pipeline


class WorkerModels:
    """What an engine asks about the models of `catalog`; fetches from the hub what is not here."""

    def __init__(self, settings: Settings, catalog: Catalog, device: Device, *, toolbox: Toolbox | None = None) -> None:
        """Prepare for the models of `catalog`, whose forwards are made fast by `toolbox`, if there is one."""
        token = None if settings.hf_token is None else settings.hf_token.get_secret_value()
        self._catalog = catalog
        self._device = device
        self._toolbox = toolbox
        self._models_dir = settings.models_dir
        self._max_batch = settings.max_batch
        self._hub = Hub(token=token)
        self._weights = Weights(settings.models_dir, self._hub)
        self._loras = LoraLibrary(catalog, settings.models_dir / "loras", fetch=self._weights.file)
        self._prefetch = Prefetch(self._find, read_or_hash(settings.models_dir / DIGESTS_FILE))
        self._memory_bytes = memory_of(device.torch)
        ram_bytes = round(ram.total_bytes() * settings.ram_share)
        on_card = device.torch.type == "cuda"
        space = Space.on_card(self._memory_bytes, ram_bytes=ram_bytes) if on_card else Space.in_ram(ram_bytes)
        self.fits = Budget(self._measure, space, max_models=settings.max_resident_models).fits
        self.read_ahead = self._prefetch.expect

    def start(self) -> None:
        """Start the thread that reads ahead."""
        self._prefetch.start()

    def stop(self) -> None:
        """Read nothing ahead any more."""
        self._prefetch.stop()

    def load(self, model: str) -> Pipeline:
        """Load a model onto the device, with its LoRAs at hand. Raises as `load_pipeline`."""
        self._prefetch.give_over(model)
        return load_pipeline(
            self._catalog.row(model),
            models_dir=self._models_dir,
            device=self._device.torch,
            device_name=self._device.kind,
            hub=self._hub,
            loras=self._loras,
            controlnets=self._catalog.controlnets,
            toolbox=self._toolbox,
        )

    def _find(self, model: str) -> Iterable[Path]:
        prefer_fp16 = self._device.torch.type == "cuda"
        return self._weights.model(self._catalog.row(model), prefer_fp16=prefer_fp16).weights.values()

    def _measure(self, model: str) -> Footprint | None:
        if model not in self._catalog.names:
            return None  # of a newer API's catalog; loading it will fail
        return footprint_of(
            self._catalog.row(model),
            self._models_dir,
            self._device.torch,
            memory_bytes=self._memory_bytes,
            max_batch=self._max_batch,
        )
