"""From a catalog row to a pipeline on a device: find the files, hash them, load them, or say clearly why not.

Only safetensors are read, never pickle. Every failure is a ModelBroken that names model, source and reason.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from farm.errors import ModelBroken
from worker.pipelines.base import conv_layout
from worker.pipelines.families import family_class
from worker.pipelines.latent import Loaded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from farm.catalog import ModelRow
    from worker.pipelines.latent import LatentModel

_PICKLE_SUFFIXES: Final = (".bin", ".ckpt", ".pt", ".pth")

_hashes: dict[tuple[str, int, int], str] = {}
"""Digest of a file by path, mtime and size: reloading a model must not read gigabytes twice."""


def load_pipeline(
    row: ModelRow, *, models_dir: Path, device: torch.device, device_name: str | None = None
) -> LatentModel:
    """Load the model of `row` onto `device`: fp16 on CUDA, fp32 on a CPU.

    Raises ModelBroken, naming model, source and reason.
    """
    transformers.utils.logging.disable_progress_bar()  # a worker's log is read by machines
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    family = family_class(row.family)
    try:
        folder = _find_folder(row, models_dir)
        weights = _find_weights(folder, [part for part in family.component_types if not _is_tokenizer(part)])
        model_hash = hash_weights(folder, weights)
        config = _read_json(folder / "scheduler" / "scheduler_config.json")
        index = _read_json(folder / "model_index.json")
        return family(
            Loaded(
                name=row.name,
                parts={
                    part: _load_part(family, part, folder / part, dtype=dtype, device=device)
                    for part in family.component_types
                },
                scheduler_config={**config, **row.scheduler_config},
                options=index,
                model_hash=model_hash,
                device=device,
                device_name=device_name or _kind(device),
                dtype=dtype,
                max_batch=row.max_batch,
                max_sequence_length=row.max_sequence_length,
                embeddings_dir=models_dir / "embeddings",
            )
        )
    except torch.OutOfMemoryError:
        raise  # the engine can make room
    # What transformers and diffusers raise for a broken folder is any of these.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelBroken(f"model {row.name} ({row.source}): {reason}") from error


def hash_weights(folder: Path, weights: list[Path]) -> str:
    """Return the sha256, hex, over the digests of `weights` in order of their path in `folder`."""
    whole = hashlib.sha256()
    for path in sorted(weights):
        whole.update(f"{path.relative_to(folder).as_posix()} {_hash_file(path)}\n".encode())
    return whole.hexdigest()


def _hash_file(path: Path) -> str:
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def _find_folder(row: ModelRow, models_dir: Path) -> Path:
    """Return the model's folder: local if there is one, else the hub's snapshot, downloaded when needed."""
    local = models_dir / row.source  # an absolute source stays as it is
    if local.is_dir():
        return local
    # `owner/name` may be a hub repository; anything else can only have been a folder.
    if row.source.count("/") != 1 or row.source.startswith((".", "/")):
        raise FileNotFoundError(f"there is no folder {local}")
    try:
        snapshot = DiffusionPipeline.download(
            row.source,
            revision=row.revision,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except OSError as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"there is no folder {local}, and the hub says: {reason}") from error
    return Path(snapshot)


def _find_weights(folder: Path, parts: Iterable[str]) -> list[Path]:
    """Return the safetensors of all `parts`, each seen to have an intact header."""
    weights = []
    for part in parts:
        found = sorted((folder / part).glob("*.safetensors"))
        if not found:
            pickled = any(path.suffix in _PICKLE_SUFFIXES for path in (folder / part).glob("*"))
            reason = "only pickled weights, which can run code" if pickled else "no weights"
            raise FileNotFoundError(f"{folder / part} holds {reason}; safetensors are needed")
        weights += found
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except SafetensorError as error:
            raise ValueError(f"{path} is corrupt: {error}") from error
    return weights


def _load_part(family: type[LatentModel], part: str, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Load one component; weights that its config calls for and the file lacks are an error, not random numbers."""
    cls = family.component_types[part]
    if _is_tokenizer(part):
        return cls.from_pretrained(folder, local_files_only=True)
    if part == "vae":
        dtype = vae_dtype(family, cls.load_config(folder, local_files_only=True), dtype)
    # transformers and diffusers have a name of their own each for the same thing.
    name = "dtype" if issubclass(cls, transformers.PreTrainedModel) else "torch_dtype"
    module, info = cls.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **{name: dtype}
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights, {missing[0]} first")
    return place(module, device)


def place(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Put `module` on `device`, laid out for inference, and return it."""
    module.to(device).to(memory_format=conv_layout(device))  # type: ignore[call-overload]  # torch's stubs lack it
    return module.eval().requires_grad_(requires_grad=False)


def vae_dtype(family: type[LatentModel], config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """Return what a VAE computes in where the denoiser computes in `dtype`.

    Where fp16 would overflow diffusers' pipelines go to fp32 without a word, which takes ten times as long; bf16 has
    the range of fp32 at the speed of fp16, for a little precision that no eye sees.
    """
    overflows = family.heeds_force_upcast and config.get("force_upcast", True)
    return torch.bfloat16 if overflows and dtype == torch.float16 else dtype


def _is_tokenizer(part: str) -> bool:
    return part.startswith("tokenizer")


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")  # noqa: TRY004  of a file, not of a caller
    return content


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
