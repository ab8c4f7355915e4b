"""A model of the catalog whose files are on this machine, as worker/bench measures it. Nothing is downloaded."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from transformers import AutoConfig

from farm.errors import Fatal
from farm.weights import Hub, Weights, has_weights
from worker.bench.reference import pipeline_of
from worker.bench.work import Work, work_of
from worker.pipelines.families import family_class
from worker.pipelines.fitting import memory_of, plan_model
from worker.pipelines.loading import load_pipeline
from worker.pipelines.parts import load_part, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from farm.catalog import ModelRow
    from farm.plans import Plan
    from farm.weights import ModelFiles
    from worker.forward import Toolbox
    from worker.gpu import Device
    from worker.lora import LoraLibrary
    from worker.pipelines.latent import LatentModel

_OFFLINE = Hub(is_asked=False)


class DiskModel:
    """The model of `row` with the weights that are under `models_dir` or in the hub's cache."""

    weights = "disk"

    def __init__(self, row: ModelRow, models_dir: Path, device: Device, *, toolbox: Toolbox | None = None) -> None:
        self.row = row
        self.device = device
        self._toolbox = toolbox
        self._models_dir = models_dir

    @cached_property
    def files(self) -> ModelFiles:
        """Its files. Raises Fatal when one is missing."""
        prefer_fp16 = self.device.torch.type == "cuda"
        return Weights(self._models_dir, _OFFLINE).model(self.row, prefer_fp16=prefer_fp16)

    def is_here(self) -> bool:
        """Return whether all of its files are on this machine."""
        try:
            return bool(self.files.weights)
        except Fatal:
            return False

    def work(self) -> Work:
        """Return the work of one image at the row's own size."""
        types = family_class(self.row.family).component_types
        networks: Mapping[str, Any] = {
            name: _on_meta(types[name], self.files.config_folder(name))
            for name in types
            if has_weights(name) and self.files.has(name)
        }
        return work_of(networks, self.row, width=self.row.width, height=self.row.height)

    def plan(self, memory_bytes: int | None = None) -> Plan:
        """Return the memory plan, of the device's memory where none is given. Raises NoPlan."""
        device = self.device.torch
        return plan_model(self.row, self.files, device, memory_bytes=memory_bytes or memory_of(device))

    def load(self, memory_bytes: int | None = None, *, loras: LoraLibrary | None = None) -> LatentModel:
        """Load it as a worker does. Raises ModelBroken."""
        return load_pipeline(
            self.row,
            models_dir=self._models_dir,
            device=self.device.torch,
            device_name=self.device.kind,
            memory_bytes=memory_bytes,
            hub=_OFFLINE,
            loras=loras,
            toolbox=self._toolbox,
        )

    def reference(self, dtype: torch.dtype) -> Any:
        """Return diffusers' own pipeline of the same files, whole on the device. Raises Fatal for single files."""
        files, types = self.files, family_class(self.row.family).component_types
        if files.single is not None or (files.vae is not None and files.vae.file is not None):
            raise Fatal("diffusers' pipeline is not compared for models in single files")
        parts: dict[str, Any] = dict.fromkeys(types)
        for name, cls in types.items():
            if not files.has(name):
                continue
            if not has_weights(name):
                parts[name] = load_tokenizer(cls, files.folder / name)
                continue
            chosen = files.vae.chosen if name == "vae" and files.vae is not None else files.parts[name]
            parts[name] = load_part(
                cls,
                files.config_folder(name),
                variant=chosen.variant if chosen is not None else None,
                dtype=dtype,
                device=self.device.torch,
            ).eval()
        folder = files.folder / "scheduler"
        config = json.loads((folder / "scheduler_config.json").read_text("utf-8"))
        scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(folder)
        return pipeline_of(self.row, parts, scheduler)


def _on_meta(cls: Any, folder: Path) -> Any:
    """Return the network of a config without its weights."""
    with torch.device("meta"):
        if hasattr(cls, "load_config"):  # diffusers
            made = cls.from_config(json.loads((folder / "config.json").read_text("utf-8")))
        else:
            made = cls(AutoConfig.from_pretrained(folder))
    return made.eval()
