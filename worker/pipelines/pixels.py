"""Pictures as pixels and as tensors: the steps of diffusers' VaeImageProcessor, one image at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HALF: Final = 128
"""The darkest grey of a mask that counts as white."""


def resize(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return `pixels`, uint8 [h, w] or [h, w, 3], at another size (Lanczos)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def image_tensor(pixels: NDArray[np.uint8], width: int, height: int) -> torch.Tensor:
    """Return `pixels`, uint8 [h, w, 3], as float32 [1, 3, height, width] of -1 to 1."""
    return control_tensor(pixels, width, height) * 2 - 1


def control_tensor(pixels: NDArray[np.uint8], width: int, height: int) -> torch.Tensor:
    """Return `pixels`, uint8 [h, w, 3], as float32 [1, 3, height, width] of 0 to 1."""
    image = resize(pixels, width, height).astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def mask_tensor(mask: NDArray[np.uint8], width: int, height: int) -> torch.Tensor:
    """Return `mask`, uint8 [h, w], as float32 [1, 1, height, width] of 0 and 1: half and brighter is 1."""
    is_new = resize(mask, width, height) >= _HALF
    return torch.from_numpy(is_new.astype(np.float32))[None, None]


def to_pixels(image: torch.Tensor) -> torch.Tensor:
    """Round [3, h, w] of 0 to 1 to uint8 [h, w, 3], as diffusers' image processor does."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
