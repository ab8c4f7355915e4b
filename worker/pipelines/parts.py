"""One part of a model out of a diffusers folder: its network or tokenizer, whole, on a device, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from diffusers import ModelMixin

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def load_tokenizer(cls: Any, folder: Path) -> Any:
    """Return the tokenizer in `folder`."""
    return cls.from_pretrained(folder, local_files_only=True)


def load_part(
    cls: Any,
    folder: Path,
    *,
    variant: str | None,
    dtype: torch.dtype,
    device: torch.device,
    quantization_config: object | None = None,
) -> Any:
    """Return the network in `folder`, on `device`; weights go there as they are read.

    Weights that its config calls for and the files lack are a ValueError, not random numbers.
    """
    options: dict[str, Any] = {"quantization_config": quantization_config} if quantization_config is not None else {}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    # transformers and diffusers have a name of their own each for the same thing.
    options["torch_dtype" if issubclass(cls, ModelMixin) else "dtype"] = dtype
    module, info = cls.from_pretrained(
        folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights, {missing[0]} first")
    return module


def silence() -> None:
    """Keep the libraries' progress bars out of a log that machines read."""
    transformers.utils.logging.disable_progress_bar()
