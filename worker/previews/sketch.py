"""A VAE's decoder in one product: what its pictures look like small, learned from pictures that it has decoded.

Every number of a small picture is a weighted sum of its latents, their eight neighbours, and the products of its
latents with each other, by which small and fine-tuned VAEs come out half as blurred as without. The weights are the
least squares of what was seen so far, so that they are right for any VAE with any number of channels; they are
learned in milliseconds, and drawing takes less. Knows numbers alone: no tensors, no models, no seats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE: Final = 2
"""Pixels of a drawing along each side of a latent. More show nothing more: `bench/previews.py`."""

_MAX_SAMPLES: Final = 4096  # latents of one picture; of a large one some are as good as all
_RIDGE: Final = 1e-2  # of the number of samples: latents have about unit deviation
_FEW_CHANNELS: Final = 8
_NUM_OUTPUTS: Final = 3 * SCALE**2


class Sketch:
    """The decoder of one VAE with latents of `channels` numbers, as far as it has been learned."""

    def __init__(self, channels: int) -> None:
        self._seen = 0
        num_features = 9 * channels + channels * (channels + 1) // 2 + 1
        self._squares = np.zeros((num_features, num_features))
        self._products = np.zeros((num_features, _NUM_OUTPUTS))
        self._ridge = np.diag([_RIDGE] * (num_features - 1) + [0.0])  # the last is the mean
        self._weights: NDArray[np.float32] | None = None

    def learn(self, latents: NDArray[np.float32], pixels: NDArray[np.uint8]) -> None:
        """Learn that `latents` [c, h, w] are the picture `pixels` [H, W, 3]; of numbers that are none, nothing."""
        if not np.isfinite(latents).all():
            return
        _, height, width = latents.shape
        small = Image.fromarray(pixels).resize((width * SCALE, height * SCALE), Image.Resampling.BOX)
        wanted = np.asarray(small, np.float32) / 127.5 - 1
        wanted = wanted.reshape(height, SCALE, width, SCALE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, _NUM_OUTPUTS)
        features = _features(latents)
        every = -(-len(features) // _MAX_SAMPLES)
        features, wanted = features[::every], wanted[::every]
        self._squares += features.T @ features
        self._products += features.T @ wanted
        self._seen += len(features)
        self._weights = np.linalg.solve(self._squares + self._seen * self._ridge, self._products).astype(np.float32)

    def draw(self, latents: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """Return the small picture of `latents` [c, h, w], uint8 [2h, 2w, 3]; None before anything was learned."""
        if self._weights is None:
            return None
        _, height, width = latents.shape
        drawn = (_features(np.nan_to_num(latents)) @ self._weights).reshape(height, width, SCALE, SCALE, 3)
        drawn = drawn.transpose(0, 2, 1, 3, 4).reshape(height * SCALE, width * SCALE, 3)
        pixels: NDArray[np.uint8] = np.nan_to_num((drawn + 1) * 127.5).clip(0, 255).astype(np.uint8)
        return pixels


def sample_latents(channels: int) -> NDArray[np.float32]:
    """Return random latents [c, side, side] to begin with: areas as pictures have them, and some of what is fine.

    As many as it takes to tell all weights apart, so that a VAE decodes them in no time.
    """
    side = 32 if channels <= _FEW_CHANNELS else 40
    chance = np.random.default_rng(0)
    coarse = chance.standard_normal((channels, side // 4, side // 4)).astype(np.float32)
    areas = np.stack([_enlarged(each, side) for each in coarse])
    fine = chance.standard_normal(areas.shape).astype(np.float32)
    return 1.5 * areas + 0.35 * fine


def shrunk(latents: NDArray[np.float32], max_side: int) -> NDArray[np.float32]:
    """Return means of squares of `latents` [c, h, w], so large that no side is longer than `max_side`."""
    channels, height, width = latents.shape
    square = -(-max(height, width) // max_side)
    if square == 1:
        return latents
    rows, columns = height // square, width // square
    squares = latents[:, : rows * square, : columns * square].reshape(channels, rows, square, columns, square)
    means: NDArray[np.float32] = squares.mean(axis=(2, 4))
    return means


def _enlarged(plane: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC))


def _features(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the numbers of a drawing are sums of, [h * w, features]."""
    channels, height, width = latents.shape
    padded = np.pad(latents, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    first, second = np.triu_indices(channels)
    features = np.concatenate([*around, latents[first] * latents[second], np.ones((1, height, width), latents.dtype)])
    return features.reshape(len(features), -1).T
