"""A part of a model out of a single file: its tensors renamed to diffusers' names and put into an empty network.

Which tensors of the file are the part's is told by the caller (farm/weights/original.py); the renaming is diffusers'
own wherever it works on any width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxTransformer2DModel, ModelMixin, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from safetensors import safe_open

from worker.pipelines.bfl import convert_bfl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Tensors = dict[str, torch.Tensor]

_UNET: Final = "model.diffusion_model."


def load_from_file(
    cls: Any, path: Path, names: Mapping[str, str], config_folder: Path, *, dtype: torch.dtype, device: torch.device
) -> Any:
    """Return the part of class `cls` that `path` holds under `names` (within the part: in the file), on `device`.

    Its config is the one in `config_folder`. Raises ValueError when the file lacks weights that the config calls for,
    RuntimeError when theirs have other shapes.
    """
    with safe_open(path, framework="pt") as file:
        tensors: Tensors = {name: file.get_tensor(full) for name, full in names.items()}
    prefix = next(full.removesuffix(name) for name, full in names.items())
    with init_empty_weights():
        module = _build(cls, config_folder, tensors)
    converted = convert(module, tensors, prefix)
    del tensors
    expected = module.state_dict()
    state = {
        name: converted.pop(name).to(device, dtype if expected[name].is_floating_point() else None)
        for name in expected
        if name in converted
    }
    module.load_state_dict(state, strict=False, assign=True)
    if not isinstance(module, ModelMixin):
        module.tie_weights()
    lacking = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    if lacking:
        raise ValueError(f"{path.name} lacks {len(lacking)} weights of the {cls.__name__}, {lacking[0]} first")
    return module.to(device)  # buffers that are no weights


def _build(cls: Any, folder: Path, tensors: Tensors) -> Any:
    """Return the network that the config in `folder` describes."""
    if not issubclass(cls, ModelMixin):
        return cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    config = dict(cls.load_config(folder, local_files_only=True))
    first = tensors.get("input_blocks.0.0.weight")
    if first is not None:
        config["in_channels"] = first.shape[1]  # all that tells a model for inpainting
    if issubclass(cls, FluxTransformer2DModel):
        # All that tells dev from schnell; the rest of their configs is the same.
        config["guidance_embeds"] = any("guidance_" in name for name in tensors)
    return cls.from_config(config)


def convert(module: Any, tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors of a part by the names of `module`, the network they are for.

    Those that have them already stay as they are. `prefix` is what their names begin with in the file.
    """
    if len(module.state_dict().keys() & tensors.keys()) > len(tensors) // 2:
        return tensors
    match module:
        case UNet2DConditionModel():
            named = {f"{_UNET}{name}": tensor for name, tensor in tensors.items()}
            converted: Tensors = converters.convert_ldm_unet_checkpoint(named, config=module.config)
        case AutoencoderKL():
            converted = converters.convert_ldm_vae_checkpoint(tensors, config=module.config)
        case FluxTransformer2DModel():
            converted = convert_bfl(tensors)
        case SD3Transformer2DModel():
            converted = converters.convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
        case _:
            converted = _convert_text(module, tensors, prefix)
    return converted


def _convert_text(module: Any, tensors: Tensors, prefix: str) -> Tensors:
    """Return a text encoder's tensors: those of open_clip renamed, those of transformers freed of prefixes."""
    if any(name.startswith("model.") for name in tensors):
        # By their full names: some of SD 2 are left out by theirs, a last layer that is never used.
        named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        converted: Tensors = converters.convert_open_clip_checkpoint(module, named, prefix=f"{prefix}model.")
    else:
        converted = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    expected = module.state_dict()
    if not any(name.startswith("text_model.") for name in expected):
        converted = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
    projection = expected.get("text_projection.weight")
    if (
        projection is not None
        and "text_projection.weight" not in converted
        and projection.shape[0] == projection.shape[1]
    ):
        # CLIP-L has none of its own in files of SD 3, where it means no change.
        converted["text_projection.weight"] = torch.eye(projection.shape[0])
    return converted
