"""A VAE's decoder as one product."""

from __future__ import annotations

import numpy as np
import pytest

from worker.previews.sketch import SCALE, Sketch, sample_latents, shrunk


def decode(latents):
    """Return a picture of eight pixels a latent, as a VAE of few curves would: uint8 [8h, 8w, 3]."""
    red = latents[0] * 60 + 128
    green = latents[1] * latents[2] * 30 + 128
    blue = latents[3] * 40 - latents[0] * 30 + 100
    small = np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
    return small.repeat(8, axis=0).repeat(8, axis=1)


def latents_of(seed, *, height=12, width=20, channels=4):
    """Return smooth random latents."""
    coarse = np.random.default_rng(seed).standard_normal((channels, height // 4, width // 4)).astype(np.float32)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def error_of(sketch, latents):
    """Return by how much a drawing is off, on average, in steps of 256."""
    truth = decode(latents)[:: 8 // SCALE, :: 8 // SCALE].astype(float)
    return np.abs(sketch.draw(latents) - truth).mean()


def test_it_draws_what_the_decoder_would():
    """Learned from noise alone it knows pictures it has never seen: sums, and products of two numbers."""
    sketch = Sketch(4)
    sample = sample_latents(4)
    sketch.learn(sample, decode(sample))
    drawn = sketch.draw(latents_of(1))
    assert drawn.shape == (12 * SCALE, 20 * SCALE, 3)
    assert drawn.dtype == np.uint8
    assert error_of(sketch, latents_of(1)) < 8


def test_it_gets_better_by_pictures():
    """What pictures are like counts for more the more of them it has seen."""
    sketch = Sketch(4)
    sample = sample_latents(4)
    sketch.learn(sample, decode(sample))
    before = error_of(sketch, latents_of(9))
    for seed in range(4):
        sketch.learn(latents_of(seed), decode(latents_of(seed)))
    assert error_of(sketch, latents_of(9)) < before


@pytest.mark.parametrize("channels", [4, 16])
def test_one_lesson_tells_all_weights_apart(channels):
    """The sample has more latents than there are weights, of few channels and of many."""
    sample = sample_latents(channels)
    sketch = Sketch(channels)
    assert sample.shape[0] == channels
    assert sample[0].size > 3 * len(sketch._squares)
    assert sample.std() == pytest.approx(1.2, abs=0.3)
    assert np.array_equal(sample, sample_latents(channels))


def test_before_the_first_lesson_there_is_nothing_to_draw():
    """No picture is better than a wrong one."""
    assert Sketch(4).draw(latents_of(0)) is None


def test_numbers_that_are_none_teach_nothing_and_are_drawn_as_something():
    """A broken picture spoils neither the sketch nor the thread."""
    sketch, broken = Sketch(4), latents_of(3)
    broken[0, 0, 0] = np.nan
    sketch.learn(broken, decode(latents_of(3)))
    assert sketch.draw(broken) is None
    sketch.learn(latents_of(3), decode(latents_of(3)))
    good = sketch.draw(latents_of(3))
    assert (sketch.draw(broken)[2 * SCALE :] == good[2 * SCALE :]).all()


def test_large_latents_are_drawn_from_their_means():
    """No side is longer than asked for, and what is small enough stays."""
    latents = latents_of(0, height=40, width=72)
    small = shrunk(latents, 32)
    assert small.shape == (4, 13, 24)
    assert small[:, 1, 1] == pytest.approx(latents[:, 3:6, 3:6].mean(axis=(1, 2)))
    assert shrunk(latents, 72) is latents
