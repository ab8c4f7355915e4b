"""Owns drawings as arrays: pools of scenes drawn by all cores, grids to look at. It trains nothing."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.scenes.draw import NUM_VARIANTS, SIDE_PX, background, draw
from training.scenes.words import Scene, sample_scene

Pixels = npt.NDArray[np.uint8]


def sample_scenes(num: int, seed: int, *, held_out: bool = False) -> list[Scene]:
    """Draw lots for `num` scenes on one side of the split; the same for the same seed."""
    rng = random.Random(seed)
    return [sample_scene(rng, held_out=held_out) for _ in range(num)]


def pixels_of(scene: Scene) -> Pixels:
    """Draw a scene as an array, [128, 128, 3]."""
    return np.asarray(draw(scene))


def things_of(scene: Scene) -> Pixels:
    """Mark with 1 the pixels where a scene differs from its empty background, [128, 128]."""
    variant = random.Random(scene.seed).randrange(NUM_VARIANTS)
    empty = np.asarray(background(scene.background, variant)).astype(np.int16)
    found: Pixels = (np.abs(pixels_of(scene) - empty).max(axis=2) > 6).astype(np.uint8)
    return found


def draw_all(scenes: Sequence[Scene]) -> Pixels:
    """Draw many scenes on all cores, [scenes, 128, 128, 3]."""
    return _map(pixels_of, scenes, (SIDE_PX, SIDE_PX, 3))


def mark_all(scenes: Sequence[Scene]) -> Pixels:
    """Mark the things of many scenes on all cores, [scenes, 128, 128]."""
    return _map(things_of, scenes, (SIDE_PX, SIDE_PX))


def _map(act: Callable[[Scene], Pixels], scenes: Sequence[Scene], shape: tuple[int, ...]) -> Pixels:
    found = np.empty((len(scenes), *shape), np.uint8)
    with multiprocessing.get_context("fork").Pool() as pool:
        for number, pixels in enumerate(pool.imap(act, scenes, chunksize=64)):
            found[number] = pixels
    return found


def save_grid(images: Sequence[Pixels], path: Path, *, columns: int = 8) -> None:
    """Write images of one size as a grid, PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = images[0].shape[0] + 2
    grid = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), (255, 255, 255))
    for number, pixels in enumerate(images):
        grid.paste(Image.fromarray(pixels), (number % columns * side, number // columns * side))
    grid.save(path)
