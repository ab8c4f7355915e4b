"""Random Flux.1 and SD 3.5 of some ten thousand weights, saved as diffusers saves real ones.

As in tests/tiny_models.py: they draw nothing, but run through the classes and the code path of the real ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tiny_models import SIZE_PX, clip_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SIZE_MULTIPLE_PX = 4
"""The VAE has two levels, and the transformers take two latents a side."""

_T5_WIDTH = 40
_CLIP_WIDTHS = (16, 20)
_ClipT = TypeVar("_ClipT", bound=CLIPTextModel | CLIPTextModelWithProjection)


def save_tiny_flux(
    folder: Path, *, guidance_embeds: bool, in_channels: int = 16, depth: int = 1, seed: int = 0
) -> Path:
    """Save a random Flux.1 to `folder` and return the folder: like dev if `guidance_embeds`, else like schnell.

    It has `depth` blocks of either kind.
    """
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=16,
        num_layers=depth,
        num_single_layers=depth,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=_CLIP_WIDTHS[0],
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    pipeline = FluxPipeline(
        # The published settings, but for the numbers of tokens: images are smaller here.
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0,
            use_dynamic_shifting=guidance_embeds,
            base_image_seq_len=4,
            max_image_seq_len=64,
            base_shift=0.5,
            max_shift=1.15,
        ),
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel, _CLIP_WIDTHS[0]),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=_lively(transformer),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_sd3(folder: Path, *, use_dynamic_shifting: bool = False, channels: int = 4, seed: int = 0) -> Path:
    """Save a random SD 3.5 to `folder` and return the folder; diffusers inpaints with 16 latent channels only."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=SIZE_PX // 2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=sum(_CLIP_WIDTHS),
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    shifting = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
    pipeline = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, **(shifting if use_dynamic_shifting else {})),
        vae=_vae(channels),
        text_encoder=_clip(CLIPTextModelWithProjection, _CLIP_WIDTHS[0]),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection, _CLIP_WIDTHS[1]),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        text_encoder_3=_t5(),
        tokenizer_3=t5_tokenizer(),
        transformer=_lively(transformer),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _vae(channels: int = 4) -> AutoencoderKL:
    """Return a VAE as flow models have it: shifted latents, no quantising convolutions."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=SIZE_PX,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip(cls: type[_ClipT], width: int) -> _ClipT:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _lively(cls(config))


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=_T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return _lively(T5EncoderModel(config))


def t5_tokenizer() -> T5Tokenizer:
    """Return a unigram tokenizer of letters and a few words."""
    words = [("▁", -2.0), ("▁a", -3.0), ("▁red", -4.0), ("▁circle", -4.0)]
    letters = [(chr(code), -6.0) for code in range(33, 127)]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*specials, *words, *letters], extra_ids=0, model_max_length=512)


_ModuleT = TypeVar("_ModuleT", bound=torch.nn.Module)


def _lively(module: _ModuleT) -> _ModuleT:
    """Return `module` with weights so large that every word, timestep and guidance scale shows in the image."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.1, 0.25)
    return module
