"""Tests of what the shipped model's training can promise without training: words, split, drawings, the quick look."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.scenes.draw import SIDE_PX, boxes, draw
from training.scenes.look import dominant_thing_colour
from training.scenes.words import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    COLOURS,
    FILLERS,
    KINDS,
    PLACES,
    SIZES,
    Scene,
    Thing,
    known_words,
    noisy_caption,
    plain_caption,
    sample_scene,
)


def dice(seed: int | str) -> random.Random:
    """Make a generator that repeats; its lots only choose drawings."""
    return random.Random(seed)  # noqa: S311


SEEDS = st.integers(min_value=0, max_value=2**31)


def test_the_vocabulary_is_rich_enough() -> None:
    """There are at least eight kinds and colours, six backgrounds and forty words."""
    assert len(KINDS) >= 8
    assert len(COLOURS) >= 8
    assert len(BACKGROUNDS) >= 6
    assert len(known_words()) >= 40


def test_filler_never_names_what_a_scene_can_show() -> None:
    """Filler words are disjoint from kinds, colours and background words, so that they can mean nothing."""
    meaning = {*KINDS, *COLOURS, "ball"} | {
        word for said in BACKGROUND_WORDS.values() for one in said for word in one.split()[2:]
    }
    assert not meaning & set(FILLERS)


@given(seed=SEEDS, held_out=st.booleans())
@settings(max_examples=50)
def test_scenes_come_from_the_asked_side_of_the_split(seed: int, *, held_out: bool) -> None:
    """A scene asked for training is never held out, and the other way round."""
    assert sample_scene(dice(seed), held_out=held_out).is_held_out is held_out


def test_about_a_tenth_is_held_out() -> None:
    """The hash keeps about a tenth of the combinations of two things out of training."""
    rng = dice(1)
    scenes = [
        Scene(
            (Thing(rng.choice(KINDS), "red", place=""), Thing(rng.choice(KINDS), rng.choice(COLOURS), place="")),
            "left",
            place,
        )
        for _ in range(2000)
        for place in [rng.choice(BACKGROUNDS)]
    ]
    assert 0.05 < np.mean([scene.is_held_out for scene in scenes]) < 0.16


def test_the_split_ignores_size_and_seed() -> None:
    """The same combination in another size or drawing stays on its side."""
    small, big = (Scene((Thing("star", "blue", size),), "", "sea", seed) for size, seed in (("small", 1), ("big", 2)))
    assert small.combination == big.combination


@given(SEEDS)
def test_captions_name_every_thing(seed: int) -> None:
    """A whole caption names each thing's colour and kind and the background, in the order that it reports."""
    rng = dice(seed)
    scene = sample_scene(rng)
    caption = plain_caption(rng, scene, whole=True)
    assert any(said in caption.text for said in BACKGROUND_WORDS[scene.background])
    assert sorted(caption.things, key=str) == sorted(scene.things, key=str)
    for thing in caption.things:
        assert thing.colour in caption.text
        assert thing.kind in caption.text or (thing.kind == "circle" and "ball" in caption.text)


@given(SEEDS)
@settings(max_examples=30)
def test_drawings_repeat(seed: int) -> None:
    """The same scene is the same picture, of the size that the model learns."""
    scene = sample_scene(dice(seed))
    first, second = draw(scene), draw(scene)
    assert first.size == (SIDE_PX, SIDE_PX)
    assert first.tobytes() == second.tobytes()


@given(SEEDS)
def test_things_stand_where_the_scene_says(seed: int) -> None:
    """Of two things the first is left of or above the second, and every thing lies within the picture."""
    scene = sample_scene(dice(seed))
    found = boxes(scene)
    for x, y, side in found:
        assert min(x, y) >= side // 2 - 4
        assert max(x, y) <= SIDE_PX - side // 2 + 4
    if scene.relation:
        axis = 0 if scene.relation == "left" else 1
        assert found[0][axis] + 20 < found[1][axis]


@pytest.mark.parametrize(
    ("background", "colour", "half"),
    [
        # Every colour once, every background and kind at least once; all of each with all others in `make long`.
        pytest.param(
            background,
            colour,
            half,
            marks=[] if (i - j) % len(BACKGROUNDS) == 0 and half == j % 2 else pytest.mark.long,
        )
        for i, background in enumerate(BACKGROUNDS)
        for j, colour in enumerate(COLOURS)
        for half in (0, 1)
    ],
)
def test_look_names_the_colour_of_a_drawn_thing(colour: str, background: str, half: int) -> None:
    """The quick look is right for every kind, colour, size and background that can be drawn."""
    rng = dice(f"{colour} {background} {half}")
    for kind in KINDS[half::2]:
        thing = Thing(kind, colour, rng.choice(SIZES), rng.choice(PLACES))
        assert dominant_thing_colour(draw(Scene((thing,), "", background, rng.randrange(1000)))) == colour, thing


def test_filler_leaves_the_caption_whole() -> None:
    """Openings, praise and unknown words are added around or within a caption; its words stay, in order."""
    for seed in range(200):
        scene = sample_scene(dice(seed))
        plain = plain_caption(dice(seed), scene).text.replace(",", "").split()
        rest = iter(noisy_caption(dice(seed), scene).text.replace(",", "").split())
        assert all(word in rest for word in plain)
