"""LoRA files: found by name, read once, and brought to one form whatever program wrote them.

diffusers' own converters know the layouts that are about (PEFT, old diffusers, kohya with diffusers' or SAI's block
names, XLabs and BFL for Flux); what they give is brought to `LoraLayer`s here: which module, which two matrices, which
scale. Nothing here touches a model.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import diffusers
from safetensors import SafetensorError, safe_open

from farm.errors import RenderFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from farm.catalog import Catalog, Family, Source

_CONVERTERS: Final[Mapping[str, str]] = {
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "flux": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
}
"""The pipelines that know how each family's LoRAs are written."""

_UNREADABLE: Final = (OSError, LookupError, ValueError, TypeError, AttributeError, AssertionError, SafetensorError)
"""What a file that is no LoRA, or is one of another kind of model, makes the converters raise."""

_CACHE_BYTES: Final = 2 * 2**30
_DENOISERS: Final = ("unet", "transformer")
_MATRIX: Final = re.compile(r"^(?P<module>.+?)\.lora_(?P<side>[AB])\.(?:[^.]+\.)?weight$")
_ALPHA_END: Final = re.compile(r"(?:\.lora_[AB]\.weight)?\.alpha$")
# Names from before PEFT: to_q_lora.down, q_proj.lora_linear_layer.up, to_q.lora.down.
_OLD_ATTENTION: Final = re.compile(r"\.to_(q|k|v|out)_lora\.")
_OLD_SIDE: Final = re.compile(r"\.lora(?:_linear_layer)?\.(down|up)\.")
_ATTENTION_LAYERS: Final = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """What a LoRA adds to one module's weight: scale * (up @ down), reshaped to the weight's shape."""

    down: torch.Tensor  # [rank, in, …]
    up: torch.Tensor  # [out, rank, …]
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """One LoRA file, on the CPU: layers by part of the model and name of the module."""

    name: str
    sha256: str
    layers: Mapping[str, Mapping[str, LoraLayer]]
    num_bytes: int


class LoraLibrary:
    """The LoRAs of a farm: rows of the catalog, and `.safetensors` files in a folder. Safe to share between threads."""

    def __init__(
        self, catalog: Catalog, folder: Path, *, fetch: Callable[[Source], Path], max_bytes: int = _CACHE_BYTES
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._read: OrderedDict[tuple[Path, int, int, Family], LoraWeights] = OrderedDict()

    def names(self, family: Family) -> list[str]:
        """Return what a unit of `family` may name: rows of that family, and all files."""
        files = [path.relative_to(self._folder).with_suffix("") for path in self._folder.rglob("*.safetensors")]
        rows = [row.name for row in self._catalog.loras.values() if row.family == family]
        return sorted({*rows, *(path.as_posix() for path in files)})

    def get(self, name: str, family: Family, denoiser_config: Mapping[str, Any]) -> LoraWeights:
        """Return the LoRA called `name`, read for a model of `family`.

        Raises RenderFailed, naming the LoRA and the choices or the reason, when there is none or it cannot be read.
        """
        path = self._find(name, family)
        try:
            status = path.stat()
            key = (path, status.st_mtime_ns, status.st_size, family)
            with self._lock:
                if key not in self._read:
                    self._read[key] = read_lora(name, path, family, denoiser_config)
                self._read.move_to_end(key)
                while len(self._read) > 1 and sum(lora.num_bytes for lora in self._read.values()) > self._max_bytes:
                    self._read.popitem(last=False)
                return self._read[key]
        except _UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RenderFailed(f"LoRA {name!r} cannot be read: {reason}") from error

    def _find(self, name: str, family: Family) -> Path:
        path = self._folder / f"{name}.safetensors"
        if path.is_file():
            return path
        row = self._catalog.loras.get(name)
        if row is not None and row.family == family:
            return self._fetch(row)
        if row is not None:
            raise RenderFailed(f"LoRA {name!r} is for models of family {row.family}, not {family}")
        pickled = [path for path in self._folder.glob(f"{name}.*") if path.suffix in (".pt", ".ckpt", ".bin", ".pth")]
        if pickled:
            raise RenderFailed(f"LoRA {name!r} is a pickle ({pickled[0].name}), which can run code: use safetensors")
        raise RenderFailed(f"there is no LoRA {name!r}; there are: {', '.join(self.names(family)) or 'none'}")


def read_lora(name: str, path: Path, family: Family, denoiser_config: Mapping[str, Any]) -> LoraWeights:
    """Read a LoRA file. Raises ValueError, and whatever diffusers' converters raise, for what is none."""
    with safe_open(path, framework="pt") as file:  # a broken file says so here, before a converter guesses
        if not any("lora" in key for key in file.keys()):  # noqa: SIM118  safe_open is no mapping
            raise ValueError(f"{path.name} holds no LoRA that can be put into weights (LyCORIS kinds cannot)")
    pipeline: Any = getattr(diffusers, _CONVERTERS[family])
    options: dict[str, Any] = {"unet_config": _AttributeConfig(denoiser_config)} if family in ("sd15", "sdxl") else {}
    if family == "flux":
        options["return_alphas"] = True
    found = pipeline.lora_state_dict(
        str(path.parent),
        weight_name=path.name,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
        **options,
    )
    # SD 3's converter knows no alphas of its own.
    state, alphas, metadata = found if len(found) == 3 else (found[0], None, found[1])  # noqa: PLR2004
    layers = _layers(state, alphas or {}, metadata or {})
    if not layers:
        raise ValueError(f"{path.name} holds no layers for {family}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    num_bytes = sum(tensor.nbytes for part in layers.values() for x in part.values() for tensor in (x.down, x.up))
    return LoraWeights(name, sha256, layers, num_bytes)


class _AttributeConfig(dict[str, Any]):
    """A config whose entries are attributes as well, which is how the converters read a UNet's."""

    __getattr__ = dict.__getitem__


def _layers(
    state: Mapping[str, torch.Tensor], alphas: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, dict[str, LoraLayer]]:
    """Bring what a converter gave to layers by part and module."""
    parts = sorted({key.split(".", 1)[0] for key in state})
    return {
        part: _part_layers(
            {_to_peft(part, name): tensor for name, tensor in _under(state, part).items()},
            {_ALPHA_END.sub("", _to_peft(part, name)): float(alpha) for name, alpha in _under(alphas, part).items()},
            _under(metadata, part),
        )
        for part in parts
    }


def _under(mapping: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the entries of one part of the model, without its name."""
    return {key.removeprefix(f"{part}."): value for key, value in mapping.items() if key.startswith(f"{part}.")}


def _to_peft(part: str, name: str) -> str:
    """Return a matrix's or an alpha's name in PEFT's words: `<module>.lora_A.weight`, `<module>.alpha`."""
    name = name.replace(".processor.", ".")
    if part in _DENOISERS:
        name = _OLD_ATTENTION.sub(lambda old: f".{_ATTENTION_LAYERS[old[1]]}.lora.", name)
    else:
        name = _OLD_ATTENTION.sub(r".\1_proj.lora.", name)
    return _OLD_SIDE.sub(lambda old: ".lora_A." if old[1] == "down" else ".lora_B.", name)


def _part_layers(
    state: Mapping[str, torch.Tensor], alphas: Mapping[str, float], metadata: Mapping[str, Any]
) -> dict[str, LoraLayer]:
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        found = _MATRIX.match(key)
        if found is None:
            raise ValueError(f"it holds {key}, which is no LoRA matrix")
        matrices.setdefault(found["module"], {})[found["side"]] = tensor
    layers = {}
    for module, sides in matrices.items():
        if len(sides) != 2:  # noqa: PLR2004
            raise ValueError(f"one of the two matrices of {module} is missing")
        rank = sides["A"].shape[0]
        if sides["B"].shape[1] != rank:
            raise ValueError(f"the matrices of {module} do not fit each other")
        layers[module] = LoraLayer(sides["A"], sides["B"], _scale(module, rank, alphas, metadata))
    return layers


def _scale(module: str, rank: int, alphas: Mapping[str, float], metadata: Mapping[str, Any]) -> float:
    """Return alpha / rank; a file that names no alpha means one of the size of the rank."""
    if module in alphas:
        return alphas[module] / rank
    if "lora_alpha" not in metadata:
        return 1.0
    alpha = float(metadata.get("alpha_pattern", {}).get(module, metadata["lora_alpha"]))
    return alpha / (rank**0.5 if metadata.get("use_rslora") else rank)
