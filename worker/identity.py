"""What an image owes to the worker that renders it: files, device, versions. Two that agree render the same bytes.

Nothing is downloaded, and a model's weights are not read: they are known by the digests that were recorded when a
worker loaded or `farm models verify` read them. What is not known yet is Unknown, and whoever asks does without.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from farm.errors import FarmError
from farm.weights import DIGESTS_FILE, Digests, Hub, Weights
from farm.weights.digests import digest_of_set
from worker.safety import FOLDER as SAFETY_FOLDER
from worker.safety import REPOSITORY as SAFETY_REPOSITORY
from worker.upscale import LANCZOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from farm.catalog import Catalog, ModelRow
    from farm.jobs import Unit
    from farm.weights import ModelFiles
    from worker.gpu import Device

_PACKAGES: Final = ("diffusion-farm", "torch", "diffusers", "transformers", "pillow", "numpy")
"""Whose versions may show in an image: who computes it, and who encodes it."""

_TEXT_SUFFIXES: Final = (".json", ".txt", ".model")
_LOOK_AGAIN_S: Final = 5.0
"""How long a model's files count as they were seen: units come by the hundred, and finding files takes milliseconds."""


class Unknown(FarmError):
    """Something that the image would owe itself to is not here, or was never read."""


class _Model(NamedTuple):
    row: ModelRow
    weights: str
    configs: str
    seen_at_s: float


@dataclass(frozen=True, slots=True)
class Identity:
    """What a unit would be rendered with here; digests are sha256, hex, by name."""

    row: ModelRow
    model: str  # digest of the weights, as recipes tell it
    configs: str  # digest of the texts beside them: configs and tokenizers
    loras: Mapping[str, str]
    controlnets: Mapping[str, str]
    inversions: Mapping[str, str]  # of every embedding whose name stands in the prompts: some more than are used
    upscaler: str
    safety_checker: str
    device: str
    memory_gib: int  # of a card: its memory plan, hence what that approximates, follows from it
    versions: Mapping[str, str]


class Identities:
    """Tells of units what they would be rendered with. Safe to share between threads."""

    def __init__(
        self,
        catalog: Catalog,
        models_dir: Path,
        device: Device,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._models_dir = models_dir
        self._device = device
        self._memory_gib = _memory_gib(device)
        self._clock = clock
        self._weights = Weights(models_dir, Hub(is_asked=False))
        self._prefers_fp16 = device.torch.type == "cuda"
        self._versions = {name: metadata.version(name) for name in _PACKAGES}
        self._lock = threading.Lock()  # a file is read for its digest once, however many units wait for it
        self._models: dict[str, _Model] = {}

    def of(self, unit: Unit) -> Identity:
        """Return what `unit` would be rendered with as files lie now; raises Unknown."""
        try:
            with self._lock:
                # Opened anew: other processes write it when they have loaded something.
                return self._of(unit, Digests(self._models_dir / DIGESTS_FILE))
        except Unknown:
            raise
        except (FarmError, OSError) as error:
            raise Unknown(str(error)) from error

    def _of(self, unit: Unit, digests: Digests) -> Identity:
        model = self._model(unit.model, digests)
        return Identity(
            row=model.row,
            model=model.weights,
            configs=model.configs,
            loras={lora.name: digests.of(self._lora(lora.name)) for lora in unit.loras},
            controlnets={net.model: self._controlnet(net.model, digests) for net in unit.controlnets},
            inversions={path.stem: digests.of(path) for path in self._inversions(unit)},
            upscaler=self._upscaler(unit, digests),
            safety_checker=self._safety_checker(digests) if unit.output.safety_checker else "",
            device=self._device.kind,
            memory_gib=self._memory_gib,
            versions=self._versions,
        )

    def _model(self, name: str, digests: Digests) -> _Model:
        seen = self._models.get(name)
        if seen is None or self._clock() >= seen.seen_at_s + _LOOK_AGAIN_S:
            row = self._catalog.row(name)
            files = self._weights.model(row, prefer_fp16=self._prefers_fp16)
            seen = _Model(row, _weights_hash(files, digests), _configs_hash(files), self._clock())
            self._models[name] = seen
        return seen

    def _lora(self, name: str) -> Path:
        path = self._models_dir / "loras" / f"{name}.safetensors"
        if path.is_file():
            return path
        if (row := self._catalog.loras.get(name)) is not None:
            return self._weights.file(row)
        raise Unknown(f"there is no LoRA {name!r}")

    def _controlnet(self, name: str, digests: Digests) -> str:
        row = self._catalog.controlnets.get(name)
        if row is None:
            raise Unknown(f"there is no ControlNet {name!r}")
        part = self._weights.part(row, "controlnet", prefer_fp16=self._prefers_fp16)
        configs = [] if part.folder is None else [part.folder / "config.json"]
        return digest_of_set({path.name: digests.of(path) for path in (*part.weights, *configs)})

    def _inversions(self, unit: Unit) -> Iterator[Path]:
        words = f"{unit.prompt}\n{unit.negative_prompt}".lower()
        for path in sorted((self._models_dir / "embeddings").rglob("*.safetensors")):
            if path.stem.lower() in words:
                yield path

    def _upscaler(self, unit: Unit, digests: Digests) -> str:
        name = unit.output.upscaler
        if unit.output.upscale is None or name == LANCZOS:
            return ""
        return digests.of(self._models_dir / "upscalers" / f"{name}.safetensors")

    def _safety_checker(self, digests: Digests) -> str:
        folder = self._models_dir / SAFETY_FOLDER
        if not folder.is_dir():
            return SAFETY_REPOSITORY  # published once, and never changed
        return digest_of_set({path.name: digests.of(path) for path in _files_in(folder)})


def _memory_gib(device: Device) -> int:
    """Return the memory of a card, rounded; 0 for a CPU, whose images do not depend on it."""
    if device.torch.type != "cuda":
        return 0
    return round(torch.cuda.get_device_properties(device.torch).total_memory / 2**30)


def _weights_hash(files: ModelFiles, digests: Digests) -> str:
    for path in files.weights.values():
        if digests.recorded(path) is None:
            raise Unknown(f"{path} has never been read")
    return files.model_hash(digests)


def _configs_hash(files: ModelFiles) -> str:
    """Return one digest over the texts beside the weights. They are edited by hand, so no record of them is trusted."""
    vae = None if files.vae is None else files.vae.folder
    folders = [files.folder, *([] if vae is None else [vae])]
    texts = {
        f"{number}/{path.relative_to(folder)}": path
        for number, folder in enumerate(folders)
        for path in _files_in(folder)
        if path.suffix in _TEXT_SUFFIXES
    }
    return digest_of_set({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in texts.items()})


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
