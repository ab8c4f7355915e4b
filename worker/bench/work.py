"""The work of an image, counted on the networks themselves: every product, convolution and attention of a forward.

Networks are on the meta device, where nothing is computed and no weight takes memory. A multiply-add is two FLOP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from farm.catalog import Family, ModelRow

_TERA: Final = 1e12
_CLIP_TOKENS: Final = 77


@dataclass(frozen=True, slots=True)
class Work:
    """The TFLOP of one image of a model: `step` of one row of one forward, the others once for each image."""

    step: float
    decode: float
    encode: float  # the prompt; a negative one is the same for many images, and kept

    def image(self, *, calls: int, guided: bool) -> float:
        """Return the TFLOP of an image that takes so many calls of the denoiser."""
        return self.denoise(calls=calls, guided=guided) + self.decode + self.encode

    def denoise(self, *, calls: int, guided: bool) -> float:
        """Return the TFLOP of so many calls for one seat; with guidance a seat is two rows."""
        return calls * self.step * (2 if guided else 1)


def work_of(networks: Mapping[str, Any], row: ModelRow, *, width: int, height: int) -> Work:
    """Count the work of an image of `width` x `height` pixels.

    `networks` are the model's parts with weights, by diffusers' names, on the meta device.
    """
    vae = networks["vae"]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    latents = (1, vae.config.latent_channels, height // factor, width // factor)
    denoiser = networks["unet" if "unet" in networks else "transformer"]
    inputs = _INPUTS[row.family](networks, latents, row.max_sequence_length)
    encoders = {name: part for name, part in networks.items() if name.startswith("text_encoder")}
    return Work(
        step=tflop_of(lambda: denoiser(**inputs, return_dict=False)),
        decode=tflop_of(lambda: vae.decode(_empty(*latents))),
        encode=sum(_encoding(part, row.max_sequence_length) for part in encoders.values()),
    )


def tflop_of(forward: Callable[[], object]) -> float:
    """Return the TFLOP of what `forward` does."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        forward()
    return float(counter.get_total_flops()) / _TERA


def _encoding(encoder: Any, num_t5_tokens: int) -> float:
    is_t5 = encoder.config.model_type == "t5"
    ids = torch.zeros(1, num_t5_tokens if is_t5 else _CLIP_TOKENS, dtype=torch.long, device="meta")
    return tflop_of(lambda: encoder(input_ids=ids))


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def _unet_inputs(networks: Mapping[str, Any], latents: tuple[int, ...], _num_t5_tokens: int) -> dict[str, Any]:
    config = networks["unet"].config
    inputs: dict[str, Any] = {
        "sample": _empty(1, config.in_channels, *latents[2:]),
        "timestep": _empty(1),
        "encoder_hidden_states": _empty(1, _CLIP_TOKENS, config.cross_attention_dim),
    }
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = _empty(1, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        pooled = networks["text_encoder_2"].config.projection_dim
        inputs["added_cond_kwargs"] = {"text_embeds": _empty(1, pooled), "time_ids": _empty(1, 6)}
    return inputs


def _flux_inputs(networks: Mapping[str, Any], latents: tuple[int, ...], num_t5_tokens: int) -> dict[str, Any]:
    config = networks["transformer"].config
    tokens = latents[2] // 2 * (latents[3] // 2)
    return {
        "hidden_states": _empty(1, tokens, config.in_channels),
        "timestep": _empty(1),
        "guidance": _empty(1) if config.guidance_embeds else None,
        "pooled_projections": _empty(1, config.pooled_projection_dim),
        "encoder_hidden_states": _empty(1, num_t5_tokens, config.joint_attention_dim),
        "txt_ids": _empty(num_t5_tokens, 3),
        "img_ids": _empty(tokens, 3),
    }


def _sd3_inputs(networks: Mapping[str, Any], latents: tuple[int, ...], num_t5_tokens: int) -> dict[str, Any]:
    config = networks["transformer"].config
    return {
        "hidden_states": _empty(1, config.in_channels, *latents[2:]),
        "timestep": _empty(1),
        "pooled_projections": _empty(1, config.pooled_projection_dim),
        "encoder_hidden_states": _empty(1, _CLIP_TOKENS + num_t5_tokens, config.joint_attention_dim),
    }


_INPUTS: Final[dict[Family, Callable[[Mapping[str, Any], tuple[int, ...], int], dict[str, Any]]]] = {
    "sd15": _unet_inputs,
    "sdxl": _unet_inputs,
    "flux": _flux_inputs,
    "sd3": _sd3_inputs,
}
