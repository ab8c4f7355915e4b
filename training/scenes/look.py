"""Owns a quick look at a picture by rule: which colour its one thing has. Needs Pillow and numpy, no torch.

For tests that must not load a model to judge one; `check` has the thorough reader.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.scenes.draw import THING_RGB, TONES_OF_BACKGROUNDS, mix

Reals = npt.NDArray[np.float64]
_MIN_SHARE = 0.016  # of the picture; the smallest thing covers 2.3%
_MAX_DISTANCE = 30.0


def dominant_thing_colour(image: Image.Image) -> str:
    """Name the colour of the thing in a picture of one thing, any size; of several, the one that covers most.

    White is what is answered when no other colour covers more; clouds and snow, in their tones, are not counted.
    """
    shares = thing_colour_shares(image)
    best = max((name for name in shares if name != "white"), key=lambda name: shares[name])
    return best if shares[best] >= max(_MIN_SHARE, shares["white"]) else "white"


def thing_colour_shares(image: Image.Image) -> dict[str, float]:
    """Tell what share of the picture has each colour of things, background colours left out."""
    pixels = np.asarray(image.convert("RGB").resize((128, 128), Image.Resampling.BOX), dtype=np.float64) / 255.0
    seen = _lab(pixels).reshape(-1, 1, 3)
    names = list(THING_RGB)
    shades = [[rgb, mix(rgb, (255, 255, 255), 0.12), mix(rgb, (16, 8, 24), 0.12)] for rgb in THING_RGB.values()]
    near = np.stack([_distance(seen, shade) for shade in shades], axis=1)  # [pixels, colours]
    behind = _distance(seen, list(TONES_OF_BACKGROUNDS))
    best = near.argmin(axis=1)
    counts = (near.min(axis=1) < _MAX_DISTANCE) & (near.min(axis=1) < behind)
    return {name: float((counts & (best == number)).mean()) for number, name in enumerate(names)}


def _distance(seen: Reals, shades: list[tuple[int, int, int]]) -> Reals:
    known = _lab(np.array(shades, dtype=np.float64) / 255.0)
    found: Reals = np.sqrt(((seen - known[None]) ** 2).sum(axis=2)).min(axis=1)
    return found


def _lab(rgb: Reals) -> Reals:
    """Turn sRGB in 0..1 into CIE L*a*b*, where distances are what eyes see."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * root[..., 1] - 16
    return np.stack([lightness, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1)
