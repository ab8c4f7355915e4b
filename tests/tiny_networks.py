"""Tiny random denoisers with lively weights, and inputs for them."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

WIDTH = 16


def tiny_unet(seed=0, **config):
    """Return a UNet with self and cross attention at one level, and convolutions at two."""
    torch.manual_seed(seed)
    return _ready(
        UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": WIDTH,
                "attention_head_dim": 4,
                "norm_num_groups": 4,
                **config,
            }
        )
    )


def tiny_flux(seed=0):
    """Return a Flux transformer with two blocks of each kind."""
    torch.manual_seed(seed)
    return _ready(
        FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    )


def tiny_sd3():
    """Return an SD 3.5 transformer, whose queries and keys have norms."""
    torch.manual_seed(0)
    return _ready(
        SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=8,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
    )


def unet_inputs(num_rows=2, *, tokens=77, size=8, seed=1, **more):
    """Return arguments for `tiny_unet`."""
    chance = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(num_rows, 4, size, size, generator=chance),
        "timestep": torch.rand(num_rows, generator=chance) * 999,
        "encoder_hidden_states": torch.randn(num_rows, tokens, WIDTH, generator=chance),
        "timestep_cond": None,
        "added_cond_kwargs": None,
        "down_block_additional_residuals": None,
        "mid_block_additional_residual": None,
        **more,
    }


def flux_inputs(num_rows=2, *, side=4, seed=1):
    """Return arguments for `tiny_flux`, of which the positions have no rows."""
    chance = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(num_rows, side * side, 16, generator=chance),
        "timestep": torch.rand(num_rows, generator=chance),
        "guidance": torch.full((num_rows,), 3.5),
        "pooled_projections": torch.randn(num_rows, 8, generator=chance),
        "encoder_hidden_states": torch.randn(num_rows, 6, WIDTH, generator=chance),
        "txt_ids": torch.zeros(6, 3),
        "img_ids": torch.cartesian_prod(torch.zeros(1), *[torch.arange(float(side))] * 2),
    }


UNBATCHED = ("txt_ids", "img_ids")


def _ready(module):
    """Return `module` with weights large enough that every input shows."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.1, 0.25)
    return module.eval().requires_grad_(requires_grad=False)
