"""The published models at full size: on the meta device, where no weight takes memory, or with random weights.

The configurations are those that the checkpoints carry in their folders, as far as the classes' defaults differ. What
is made of the networks, and with which words they are fed, is worker/bench/random_weights.py's business.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CLIP_L: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
_CLIP_H: Final = {
    **_CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_CLIP_BIG_G: Final = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_T5_XXL: Final = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
}
_VAE: Final = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
_VAE_16: Final = {
    **_VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_SD15_UNET: Final = {"sample_size": 64, "cross_attention_dim": 768}
_SD21_UNET: Final = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_SDXL_UNET: Final = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_FLUX: Final = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}
_SD35_LARGE: Final = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "num_attention_heads": 38,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
_SD35_MEDIUM: Final = {
    **_SD35_LARGE,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}


def _clip(config: dict[str, Any], *, projected: bool = False) -> Callable[[], torch.nn.Module]:
    cls: Callable[[CLIPTextConfig], torch.nn.Module] = CLIPTextModelWithProjection if projected else CLIPTextModel
    return lambda: cls(CLIPTextConfig(**config))


def _t5() -> torch.nn.Module:
    encoder: torch.nn.Module = T5EncoderModel(T5Config(**_T5_XXL))
    return encoder


_CHECKPOINTS: Final[dict[str, dict[str, Callable[[], torch.nn.Module]]]] = {
    "sd15": {
        "text_encoder": _clip(_CLIP_L),
        "unet": lambda: UNet2DConditionModel(**_SD15_UNET),
        "vae": lambda: AutoencoderKL(**_VAE),
    },
    "sd21": {
        "text_encoder": _clip(_CLIP_H),
        "unet": lambda: UNet2DConditionModel(**_SD21_UNET),
        "vae": lambda: AutoencoderKL(**{**_VAE, "sample_size": 768}),
    },
    "sdxl": {
        "text_encoder": _clip(_CLIP_L),
        "text_encoder_2": _clip(_CLIP_BIG_G, projected=True),
        "unet": lambda: UNet2DConditionModel(**_SDXL_UNET),
        # As the catalog's row has it: in the published VAE, which overflows in 16 bits, the flag is set.
        "vae": lambda: AutoencoderKL(**{**_VAE, "sample_size": 1024, "force_upcast": False}),
    },
    "flux-schnell": {
        "text_encoder": _clip(_CLIP_L),
        "text_encoder_2": _t5,
        "transformer": lambda: FluxTransformer2DModel(**_FLUX, guidance_embeds=False),
        "vae": lambda: AutoencoderKL(**_VAE_16),
    },
    "flux-dev": {
        "text_encoder": _clip(_CLIP_L),
        "text_encoder_2": _t5,
        "transformer": lambda: FluxTransformer2DModel(**_FLUX, guidance_embeds=True),
        "vae": lambda: AutoencoderKL(**_VAE_16),
    },
    "sd35-medium": {
        "text_encoder": _clip(_CLIP_L, projected=True),
        "text_encoder_2": _clip(_CLIP_BIG_G, projected=True),
        "text_encoder_3": _t5,
        "transformer": lambda: SD3Transformer2DModel(**_SD35_MEDIUM),
        "vae": lambda: AutoencoderKL(**_VAE_16),
    },
    "sd35-large": {
        "text_encoder": _clip(_CLIP_L, projected=True),
        "text_encoder_2": _clip(_CLIP_BIG_G, projected=True),
        "text_encoder_3": _t5,
        "transformer": lambda: SD3Transformer2DModel(**_SD35_LARGE),
        "vae": lambda: AutoencoderKL(**_VAE_16),
    },
}

CHECKPOINTS: Final = tuple(_CHECKPOINTS)


def builders(checkpoint: str) -> Mapping[str, Callable[[], torch.nn.Module]]:
    """Return what makes each component of `checkpoint` with weights, by diffusers' names for them."""
    return _CHECKPOINTS[checkpoint]


def component_names(checkpoint: str) -> tuple[str, ...]:
    """Return the names of the weight-bearing components of `checkpoint`."""
    return tuple(_CHECKPOINTS[checkpoint])


@cache
def build(checkpoint: str, component: str) -> torch.nn.Module:
    """Return one component at full size on the meta device."""
    with torch.device("meta"):
        network = _CHECKPOINTS[checkpoint][component]()
    return network.eval().requires_grad_(requires_grad=False)
