"""Working memory: what a forward pass holds beside its weights, by formula.

Each formula is linear in the size of the work because attention runs fused: its matrix of scores never exists (T5,
which computes it, is the exception). The factors were read off the full-size networks, run on the meta device with
every tensor's birth and death followed, and a test does so again. What that cannot see is an allowance, marked below:
kernels' workspaces, the allocator's fragments, the CUDA context. The allowances wait to be measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from farm.plans.plan import BYTES_PER_VALUE, Precision

if TYPE_CHECKING:
    from farm.catalog import Family
    from farm.plans.published import ComponentSize

MIB: Final = 1 << 20

# -- allowances, not yet measured
CONTEXT_BYTES: Final = 512 * MIB
"""The CUDA context with the libraries' handles."""
WORKSPACE_BYTES: Final = 256 * MIB
"""What cuBLAS and cuDNN take to compute with."""
EMBEDDINGS_BYTES: Final = 256 * MIB
"""Text embeddings that are kept on the device; a cache must stay below this."""
FRAGMENTS: Final = 1.1
"""Blocks of the caching allocator that working memory leaves half used."""
_MARGIN_SHARE: Final = 0.03
_MIN_MARGIN_BYTES: Final = 256 * MIB

STREAMED_LAYERS: Final = 3
"""Layers of a streamed component on the device at once: one computes, one arrives, one is on its way out."""
DYNAMIC_SHARE: Final = 0.65
"""Of the weights of a transformer's blocks, what dynamic precisions narrow: modulation stays in 16 bits."""
SEAT_HISTORY: Final = 10
"""float32 tensors of latents that a seat keeps: four latents, four predictions, noise and the next one."""

TILE_PX: Final = 512
"""Side of the VAE's tiles."""
_VAE_FACTOR: Final = 8
_VAE_VALUES: Final = 6.0
"""Values per pixel and channel at full resolution: three tensors of the last block, at twice the last width."""
_IMAGE_CHANNELS: Final = 3
_CLIP_TOKENS: Final = 77
_CLIP_VALUES: Final = 16.0
"""Values per token and hidden width: queries, keys and values beside the widest layer of the MLP."""
_T5_VALUES: Final = 18.0
"""Likewise, for T5's gated MLP."""
_T5_SCORES: Final = 3
"""Copies of the matrix of attention scores that T5 holds."""
_T5_HEAD: Final = 64


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """What working memory depends on, by family.

    A position is what the denoiser attends over: a latent pixel for UNets, a patch of 2 x 2 for transformers, so
    `position_px` pixels wide. `values_per_position` and `values_per_token` are in units of the denoiser's width.
    """

    precision: Precision
    position_px: int
    values_per_position: float
    values_per_token: float
    latent_channels: int
    clip_tokens: int
    text_width: int


FACTS: Final[dict[Family, FamilyFacts]] = {
    # The gated MLP at full resolution (18 widths) while the skip connections wait (5) beside the block's own (3).
    "sd15": FamilyFacts(Precision.FP16, 8, 26.05, 0.0, 4, _CLIP_TOKENS, 1024),
    # No attention at full resolution: the last up block's convolution is the peak, beside the skip connections.
    "sdxl": FamilyFacts(Precision.FP16, 8, 15.8, 0.0, 4, _CLIP_TOKENS, 2048),
    # 16 bits overflow in fp16. Single block: queries, keys, values, MLP, their concatenation; rotation in float32.
    "flux": FamilyFacts(Precision.BF16, 16, 17.2, 17.2, 16, 0, 4096),
    # Double block of image and text; Medium attends twice in half of its blocks.
    "sd3": FamilyFacts(Precision.BF16, 16, 14.1, 6.0, 16, _CLIP_TOKENS, 4096),
}


def margin_bytes(vram_bytes: int) -> int:
    """Return what a plan leaves free on a card of this size."""
    return max(_MIN_MARGIN_BYTES, round(_MARGIN_SHARE * vram_bytes))


def denoise_bytes(
    family: Family,
    denoiser: ComponentSize,
    precision: Precision,
    *,
    width: int,
    height: int,
    num_tokens: int,
    rows: int,
) -> int:
    """Return what one step holds for `rows` images of `width` x `height` pixels; a guided seat is two rows."""
    facts = FACTS[family]
    positions = (width // facts.position_px) * (height // facts.position_px)
    per_row = positions * facts.values_per_position + num_tokens * facts.values_per_token
    return _to_bytes(rows * denoiser.width * per_row, precision)


def seat_bytes(family: Family, *, width: int, height: int, num_tokens: int, guided: bool) -> int:
    """Return what a seat holds between steps: its latents and predictions in float32, its text in 16 bits."""
    facts = FACTS[family]
    latents = facts.latent_channels * (width // _VAE_FACTOR) * (height // _VAE_FACTOR) * SEAT_HISTORY * 4
    text = num_tokens * facts.text_width * 2 * (2 if guided else 1)
    return latents + text


def decode_bytes(vae: ComponentSize, precision: Precision, *, width: int, height: int, tile_px: int | None) -> int:
    """Return what decoding one image holds; in tiles it is one tile, and the finished ones until they are joined."""
    if tile_px is None or (width <= tile_px and height <= tile_px):
        return _to_bytes(_VAE_VALUES * vae.width * width * height, precision)
    tiles = 2.5 * _IMAGE_CHANNELS * width * height  # tiles overlap by a quarter each way, and are joined by a copy
    one = _VAE_VALUES * vae.width * min(width, tile_px) * min(height, tile_px)
    return _to_bytes(one + tiles, precision)


def encode_bytes(encoder: ComponentSize, precision: Precision, *, num_t5_tokens: int) -> int:
    """Return what encoding one prompt holds."""
    if encoder.role != "t5":
        return _to_bytes(_CLIP_VALUES * _CLIP_TOKENS * encoder.width, precision)
    scores = _T5_SCORES * (encoder.width // _T5_HEAD) * num_t5_tokens**2
    return _to_bytes(max(scores, _T5_VALUES * encoder.width * num_t5_tokens), precision)


def text_tokens(family: Family, *, num_t5_tokens: int, has_t5: bool) -> int:
    """Return how many tokens of text the denoiser attends to."""
    return FACTS[family].clip_tokens + (num_t5_tokens if has_t5 else 0)


def _to_bytes(num_values: float, precision: Precision) -> int:
    return round(num_values * BYTES_PER_VALUE[precision])
