"""Random Stable Diffusion models of some ten thousand weights, saved as diffusers saves real ones.

They draw nothing, but run through the same classes and the same code as the real ones, in milliseconds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from farm.catalog import ModelRow
from farm.jobs import Unit
from farm.requests import Output, Reproducibility

if TYPE_CHECKING:
    from pathlib import Path

SIZE_PX = 16
"""Native size: latents of 8 x 8, as the VAE has two levels."""

_WIDTH = 16
_WIDE = 24  # of CLIP-G
_PROJECTED = 8  # numbers of its projected pooled state

_SDXL_UNET = {
    "cross_attention_dim": _WIDTH + _WIDE,
    "attention_head_dim": (1, 2),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + _PROJECTED,
}


def save_tiny_sd15(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0, **unet: Any) -> Path:
    """Save a random SD 1.5 to `folder` and return the folder; the same seed gives the same files.

    `unet` changes the UNet's config.
    """
    torch.manual_seed(seed)
    return _save_sd(folder, _text_encoder(), _unet(**unet), clip_tokenizer(), prediction_type)


def save_tiny_sd21(folder: Path, *, seed: int = 0) -> Path:
    """Save a random SD 2.1: it predicts velocity, pads with another token, and has heads of one width at all levels."""
    torch.manual_seed(seed)
    text_encoder = _text_encoder(hidden_act="gelu", projection_dim=_PROJECTED, use_attention_mask=True)
    unet = _unet(attention_head_dim=(1, 2), use_linear_projection=True)
    return _save_sd(folder, text_encoder, unet, clip_tokenizer(pad_token="!"), "v_prediction")


def _save_sd(folder: Path, text_encoder: Any, unet: Any, tokenizer: CLIPTokenizer, prediction_type: str) -> Path:
    pipeline = StableDiffusionPipeline(
        text_encoder=text_encoder,
        unet=unet,
        tokenizer=tokenizer,
        vae=_vae(),
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_sdxl(folder: Path, *, force_zeros: bool = True, seed: int = 0, **unet: Any) -> Path:
    """Save a random SDXL to `folder` and return the folder; `unet` changes the UNet's config."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionXLPipeline(
        text_encoder=_text_encoder(),
        text_encoder_2=_text_encoder(
            CLIPTextModelWithProjection, hidden_size=_WIDE, hidden_act="gelu", projection_dim=_PROJECTED
        ),
        unet=_unet(**_SDXL_UNET | unet),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        vae=_vae(scaling_factor=0.13025),
        scheduler=_scheduler("epsilon"),
        force_zeros_for_empty_prompt=force_zeros,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_controlnet(unet: UNet2DConditionModel, folder: Path, *, seed: int, **config: Any) -> None:
    """Save a ControlNet for `unet` that, unlike one that has learned nothing yet, does something."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    net.register_to_config(**config)
    net.save_pretrained(folder)


def _scheduler(prediction_type: str) -> PNDMScheduler:
    """Return the scheduler that Stable Diffusion 1.5 comes with; its config says things that only others heed."""
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    scheduler: PNDMScheduler = PNDMScheduler.from_config(config)
    return scheduler


def _text_encoder(cls: Any = CLIPTextModel, **config: Any) -> Any:
    common = {
        "vocab_size": len(_vocabulary()),
        "hidden_size": _WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return cls(CLIPTextConfig(**common | config))


def _unet(**config: Any) -> UNet2DConditionModel:
    common = {
        "sample_size": SIZE_PX // 2,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": _WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**common | config)


def _vae(**config: Any) -> AutoencoderKL:
    common = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": SIZE_PX,
    }
    return AutoencoderKL(**common | config)


def tiny_row(folder: Path, *, name: str = "tiny", **fields: object) -> ModelRow:
    """Return a catalog row for a model saved in `folder`."""
    row = {"name": name, "family": "sd15", "source": os.fspath(folder), "width": SIZE_PX, "height": SIZE_PX}
    return ModelRow.model_validate({**row, "min_size": 8, **fields})


def tiny_unit(**fields: object) -> Unit:
    """Return a unit for the model `tiny`; override any field."""
    defaults = {
        "job": "job_test",
        "index": 0,
        "attempt": 1,
        "model": "tiny",
        "prompt": "a red circle",
        "negative_prompt": "",
        "seed": 1,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "scheduler": "euler",
        "width": SIZE_PX,
        "height": SIZE_PX,
        "reproducibility": Reproducibility.FAST,
        "output": Output(),
    }
    values = {**defaults, **fields}
    return Unit(**{"guided": values["guidance_scale"] > 1, **values})


def _vocabulary() -> dict[str, int]:
    """Return CLIP's two special tokens and every letter, alone and at the end of a word."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *[letter + "</w>" for letter in letters]]
    return {token: number for number, token in enumerate(tokens)}


def clip_tokenizer(**options: Any) -> CLIPTokenizer:
    """Return a CLIP tokenizer of letters."""
    return CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=77, **options)
