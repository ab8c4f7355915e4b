"""Flux transformers in the layout that Black Forest Labs publish them in, brought to diffusers' names.

diffusers has a converter too, but one that knows no width other than the published one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_RENAMED: Final = (
    (r"time_in\.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    (r"time_in\.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    (r"vector_in\.in_layer", "time_text_embed.text_embedder.linear_1"),
    (r"vector_in\.out_layer", "time_text_embed.text_embedder.linear_2"),
    (r"guidance_in\.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    (r"guidance_in\.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    (r"txt_in", "context_embedder"),
    (r"img_in", "x_embedder"),
    (r"final_layer\.linear", "proj_out"),
    (r"final_layer\.adaLN_modulation\.1", "norm_out.linear"),
    (r"double_blocks\.(\d+)\.img_mod\.lin", r"transformer_blocks.\1.norm1.linear"),
    (r"double_blocks\.(\d+)\.txt_mod\.lin", r"transformer_blocks.\1.norm1_context.linear"),
    (r"double_blocks\.(\d+)\.img_attn\.norm\.query_norm", r"transformer_blocks.\1.attn.norm_q"),
    (r"double_blocks\.(\d+)\.img_attn\.norm\.key_norm", r"transformer_blocks.\1.attn.norm_k"),
    (r"double_blocks\.(\d+)\.txt_attn\.norm\.query_norm", r"transformer_blocks.\1.attn.norm_added_q"),
    (r"double_blocks\.(\d+)\.txt_attn\.norm\.key_norm", r"transformer_blocks.\1.attn.norm_added_k"),
    (r"double_blocks\.(\d+)\.img_attn\.proj", r"transformer_blocks.\1.attn.to_out.0"),
    (r"double_blocks\.(\d+)\.txt_attn\.proj", r"transformer_blocks.\1.attn.to_add_out"),
    (r"double_blocks\.(\d+)\.img_mlp\.0", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"double_blocks\.(\d+)\.img_mlp\.2", r"transformer_blocks.\1.ff.net.2"),
    (r"double_blocks\.(\d+)\.txt_mlp\.0", r"transformer_blocks.\1.ff_context.net.0.proj"),
    (r"double_blocks\.(\d+)\.txt_mlp\.2", r"transformer_blocks.\1.ff_context.net.2"),
    (r"single_blocks\.(\d+)\.modulation\.lin", r"single_transformer_blocks.\1.norm.linear"),
    (r"single_blocks\.(\d+)\.norm\.query_norm", r"single_transformer_blocks.\1.attn.norm_q"),
    (r"single_blocks\.(\d+)\.norm\.key_norm", r"single_transformer_blocks.\1.attn.norm_k"),
    (r"single_blocks\.(\d+)\.linear2", r"single_transformer_blocks.\1.proj_out"),
)
"""Modules that only have another name."""

_FUSED: Final = (
    (r"double_blocks\.(\d+)\.img_attn\.qkv", r"transformer_blocks.\1.attn.", ("to_q", "to_k", "to_v")),
    (
        r"double_blocks\.(\d+)\.txt_attn\.qkv",
        r"transformer_blocks.\1.attn.",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
    ),
    (
        r"single_blocks\.(\d+)\.linear1",
        r"single_transformer_blocks.\1.",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ),
)
"""Modules that are several in diffusers, one below the other: three as wide as the model, then what is left."""


def convert_bfl(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a transformer's tensors by diffusers' names, as views where it can be; what has none is left out."""
    width = tensors["img_in.weight"].shape[0]
    return {name: tensor for old, held in tensors.items() for name, tensor in _convert(old, held, width)}


def _convert(old: str, tensor: torch.Tensor, width: int) -> Iterator[tuple[str, torch.Tensor]]:
    module, _, leaf = old.rpartition(".")
    leaf = "weight" if leaf == "scale" else leaf
    for pattern, new in _RENAMED:
        if match := re.fullmatch(pattern, module):
            # The last modulation has shift before scale, diffusers' has scale before shift.
            held = tensor.roll(width, dims=0) if new == "norm_out.linear" else tensor
            yield f"{match.expand(new)}.{leaf}", held
            return
    for pattern, new, parts in _FUSED:
        if match := re.fullmatch(pattern, module):
            heights = [width] * 3 + [tensor.shape[0] - 3 * width] * (len(parts) - 3)
            for part, piece in zip(parts, tensor.split(heights), strict=True):
                yield f"{match.expand(new)}{part}.{leaf}", piece
            return
