"""Pictures as models make them, for encoding: drawings of the one that ships, enlarged, with a photograph's grain."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SHEET: Final = Path(__file__).resolve().parents[2] / "docs/images/contact-sheet.png"
_DRAWING_PX: Final = 128
GRAIN: Final = 3.0
"""Standard deviation of the noise, in levels of 256: a clean photograph's."""


def picture(size_px: int, number: int = 0, *, grain: float = GRAIN) -> NDArray[np.uint8]:
    """Return a picture, uint8 [size, size, 3]; another for every number."""
    with Image.open(_SHEET) as sheet:
        left = 8 + number % 8 * (_DRAWING_PX + 16)
        drawing = sheet.convert("RGB").crop((left, 8, left + _DRAWING_PX, 8 + _DRAWING_PX))
    large = np.asarray(drawing.resize((size_px, size_px), Image.Resampling.LANCZOS), dtype=np.float32)
    random = np.random.default_rng(number)
    of_light = random.normal(0, grain, (size_px, size_px, 1))
    of_colour = random.normal(0, grain / 2, large.shape)
    return (large + of_light + of_colour).clip(0, 255).astype(np.uint8)
