"""Owns what a scene is and how it is said: kinds, colours, places, backgrounds, captions, the held-out split.

It draws nothing (see `draw`) and knows no tensors, so tests and clients may import it cheaply.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("circle", "square", "triangle", "star", "heart", "flower", "house", "tree", "fish", "boat")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "medium", "big")
PLACES = (
    "middle", "left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right",
)  # fmt: skip
RELATIONS = ("left", "right", "above", "below")
BACKGROUNDS = ("hills", "sea", "snow", "night", "sunset", "desert", "clouds")

KIND_WORDS: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in KINDS} | {"circle": ("circle", "circle", "ball")}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "big": ("big", "big", "large", "huge"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "middle": ("in the middle", "in the middle", "in the centre", "in the center"),
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "top left": ("at the top left", "in the top left", "top left"),
    "top right": ("at the top right", "in the top right", "top right"),
    "bottom left": ("at the bottom left", "in the bottom left", "bottom left"),
    "bottom right": ("at the bottom right", "in the bottom right", "bottom right"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "left of", "to the left of", "and", "next to", "beside"),
    "right": ("right of", "right of", "to the right of"),
    "above": ("above", "above", "over", "on top of"),
    "below": ("below", "below", "under", "beneath"),
}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "hills": ("in the hills", "on the hills", "in a meadow", "in the country"),
    "sea": ("by the sea", "at the sea", "at the beach", "on the beach"),
    "snow": ("in the snow", "in the snow", "in winter"),
    "night": ("at night", "at night", "by night"),
    "sunset": ("at sunset", "at sunset", "at dusk"),
    "desert": ("in the desert", "in the desert", "in the dunes"),
    "clouds": ("in the clouds", "in the clouds", "in the sky"),
}
OPENINGS = (
    "a picture of", "a drawing of", "a painting of", "a photo of", "an illustration of", "an image of", "a scene with",
    "there is", "a beautiful painting of", "a cute drawing of",
)  # fmt: skip
FILLERS = (
    "beautiful", "highly", "detailed", "4k", "8k", "masterpiece", "best", "quality", "sharp", "focus", "digital", "art",
    "trending", "artstation", "cute", "lovely", "nice", "simple", "flat", "style", "vector", "cartoon", "minimal",
    "minimalist", "soft", "light", "lighting", "cinematic", "dramatic", "high", "resolution", "ultra", "realistic",
    "hd", "hdr", "watercolor", "oil", "poster", "sticker", "clean", "colourful", "colorful", "vivid", "bright", "warm",
    "cold", "calm", "happy", "very", "pretty", "amazing", "gorgeous", "intricate", "elegant", "smooth", "fantasy",
    "magic", "dreamy", "children", "book", "render", "3d", "design", "icon", "new", "old", "shiny", "perfect",
    "composition", "award", "winning", "professional", "modern", "low", "poly", "studio", "wallpaper", "background",
    "with", "by", "for", "from", "this", "that", "is", "it", "my", "your", "some", "please", "show", "me", "draw",
    "paint", "make", "blurry", "ugly", "bad", "worst", "noise", "text", "watermark", "deformed", "jpeg", "artifacts",
    "cropped", "signature", "blur", "grainy", "extra", "dark", "lowres", "error", "quiet", "peaceful", "morning",
)  # fmt: skip
_SYLLABLES = (
    "ba", "co", "der", "fi", "gan", "hu", "in", "ka", "lor", "mi", "no", "per", "qua", "ri", "sta", "tion", "u",
    "ver", "wil", "xi", "ys", "zo", "th", "er", "on", "an", "re", "es", "or", "ing",
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One thing in a scene; `place` is one of PLACES in scenes of one thing and "" in scenes of two."""

    kind: str
    colour: str
    size: str = "medium"
    place: str = "middle"


@dataclass(frozen=True)
class Scene:
    """Up to two things before a background; of two, the first is `relation` ("left" of or "above") the second."""

    things: tuple[Thing, ...]
    relation: str
    background: str
    seed: int = 0

    @property
    def combination(self) -> str:
        """The scene as the split sees it: kinds, colours, relation or place, background; no sizes, no seed."""
        said = [f"{thing.colour} {thing.kind} {thing.place}".strip() for thing in self.things]
        return "|".join([*said, self.relation, self.background])

    @property
    def is_held_out(self) -> bool:
        """Whether training must never see this combination: a tenth of them, by a hash that never changes."""
        return bool(self.things) and hashlib.sha256(self.combination.encode()).digest()[0] % 10 == 0


class Caption(NamedTuple):
    """What is said of a scene, and its things in the order in which they are named."""

    text: str
    things: tuple[Thing, ...]


def known_words() -> tuple[str, ...]:
    """List every word with a meaning, sorted: the vocabulary that a caption may draw on."""
    words = {*COLOURS, "a", "an", "the", "no"}
    for table in (KIND_WORDS, SIZE_WORDS, PLACE_WORDS, RELATION_WORDS, BACKGROUND_WORDS):
        for phrases in table.values():
            words.update(word for phrase in phrases for word in phrase.split())
    for opening in OPENINGS:
        words.update(opening.split())
    return tuple(sorted(words))


def sample_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Draw lots for a scene on the asked side of the split: 65% of two things, 4% of none (never when held out)."""
    while True:
        lot = rng.random()
        background, seed = rng.choice(BACKGROUNDS), rng.randrange(1 << 30)
        if lot < 0.65:
            first, second = (
                Thing(rng.choice(KINDS), rng.choice(COLOURS), rng.choices(SIZES, (2, 6, 2))[0], "") for _ in range(2)
            )
            if (first.kind, first.colour) == (second.kind, second.colour):
                continue
            scene = Scene((first, second), rng.choice(("left", "left", "above")), background, seed)
        elif lot < 0.96 or held_out:
            place = rng.choice(PLACES) if rng.random() < 0.65 else "middle"
            thing = Thing(rng.choice(KINDS), rng.choice(COLOURS), rng.choices(SIZES, (3, 4, 3))[0], place)
            scene = Scene((thing,), "", background, seed)
        else:
            scene = Scene((), "", background, seed)
        if scene.is_held_out == held_out:
            return scene


def plain_caption(rng: random.Random, scene: Scene, *, whole: bool = False) -> Caption:
    """Say the scene in one of its phrasings, without filler; `whole` names each colour and the background always."""
    background = (
        "" if not whole and scene.things and rng.random() < 0.12 else rng.choice(BACKGROUND_WORDS[scene.background])
    )
    if not scene.things:
        return Caption(background, ())
    things = list(scene.things)
    said: list[str] = []
    relation = scene.relation
    if len(things) == 2 and rng.random() < 0.45:
        things.reverse()
        relation = {"left": "right", "above": "below"}[relation]
    for thing in things:
        words = [rng.choice(KIND_WORDS[thing.kind])]
        if whole or rng.random() < 0.97:
            words.insert(0, thing.colour)
        if thing.size != "medium":
            words.insert(0, rng.choice(SIZE_WORDS[thing.size]))
        if rng.random() < 0.85:
            words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        said.append(" ".join(words))
    if len(things) == 2:
        body = f"{said[0]} {rng.choice(RELATION_WORDS[relation])} {said[1]}"
    else:
        place = things[0].place
        silent = place == "middle" and rng.random() < 0.7
        body = said[0] if silent else f"{said[0]} {rng.choice(PLACE_WORDS[place])}"
    lot = rng.random()
    if background and lot < 0.85:
        body = f"{body} {background}" if lot < 0.7 else f"{body}, {background}"
    elif background:
        body = f"{background}, {body}"
    return Caption(body, tuple(things))


def noisy_caption(rng: random.Random, scene: Scene) -> Caption:
    """Say the scene as people do: 40% with openings, praise and unknown words, which must change nothing."""
    caption, things = plain_caption(rng, scene)
    lot = rng.random()
    if 0.6 <= lot < 0.72:
        caption = f"{rng.choice(OPENINGS)} {caption}"
    elif 0.72 <= lot < 0.88:
        caption = f"{caption}, {filler(rng)}"
        caption = f"{rng.choice(OPENINGS)} {caption}" if rng.random() < 0.5 else caption
    elif 0.88 <= lot < 0.94:
        caption = f"{filler(rng)}, {caption}"
    elif lot >= 0.94:
        words = caption.split()
        words.insert(rng.randrange(len(words) + 1), filler_word(rng))
        caption = " ".join(words)
    return Caption(caption, things)


def filler(rng: random.Random) -> str:
    """Make one to six words that say nothing about a scene, in phrases set off by commas."""
    words = [filler_word(rng) for _ in range(rng.randint(1, 6))]
    return " ".join(word + ("," if rng.random() < 0.3 else "") for word in words).rstrip(",")


def filler_word(rng: random.Random) -> str:
    """Make one word that says nothing about a scene: of a list, or one that nobody knows."""
    if rng.random() < 0.75:
        return rng.choice(FILLERS)
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 3)))
