"""Owns how a scene looks: one flat illustration of 128x128 px, anti-aliased, the same for the same `Scene`.

Things have saturated colours and an outline in their own dark shade; backgrounds are pale or dull, so that the two
never meet. It writes no files and makes no captions.
"""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.scenes.words import Scene

SIDE_PX = 128
NUM_VARIANTS = 48  # drawings of each background
_FINE = 4  # supersampling

Rgb = tuple[int, int, int]
Points = list[tuple[float, float]]
Pixels = npt.NDArray[np.uint8]

THING_RGB: dict[str, Rgb] = {
    "red": (222, 36, 44),
    "orange": (250, 132, 16),
    "yellow": (255, 216, 24),
    "green": (22, 140, 60),
    "blue": (32, 78, 214),
    "purple": (132, 48, 184),
    "pink": (252, 128, 184),
    "white": (250, 250, 250),
    "black": (38, 36, 42),
}
TONES_OF_BACKGROUNDS: tuple[Rgb, ...] = (
    (158, 210, 240), (190, 226, 244), (226, 242, 248), (186, 218, 146), (164, 206, 122), (250, 253, 255),  # hills
    (176, 220, 244), (232, 246, 250), (112, 196, 208), (84, 172, 194), (243, 226, 182),  # sea
    (178, 194, 216), (198, 210, 228), (218, 226, 238), (222, 231, 242), (240, 245, 251),  # snow
    (22, 28, 70), (42, 50, 96), (62, 72, 124), (30, 46, 66), (240, 234, 196),  # night
    (138, 104, 160), (176, 130, 154), (214, 156, 146), (252, 182, 138), (255, 226, 176), (138, 96, 122), (112, 76, 104),
    (182, 222, 230), (214, 230, 224), (246, 240, 216), (255, 250, 226), (238, 212, 160), (226, 192, 136),  # desert
    (112, 178, 228), (148, 198, 236), (182, 218, 244),  # clouds
)  # fmt: skip
_OUTLINES: dict[str, Rgb] = {"white": (128, 136, 156), "black": (150, 152, 166)}
_SINGLE_PX = {"small": 34, "medium": 54, "big": 78}
_DOUBLE_PX = {"small": 30, "medium": 44, "big": 56}
_TRUNK: Rgb = (112, 74, 48)
_PANE: Rgb = (255, 240, 178)
_DOOR: Rgb = (84, 56, 48)


def mix(one: Rgb, other: Rgb, share: float) -> Rgb:
    """Blend two colours; `share` is how much of the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def draw(scene: Scene) -> Image.Image:
    """Draw the scene, RGB, 128x128 px."""
    rng = random.Random(scene.seed)
    image = background(scene.background, rng.randrange(NUM_VARIANTS)).copy()
    for thing, (x, y, side) in zip(scene.things, boxes(scene), strict=True):
        tile, alpha = _thing(thing.kind, thing.colour, side)
        image.paste(tile, (x - tile.width // 2, y - tile.height // 2), alpha)
    return image


def boxes(scene: Scene) -> list[tuple[int, int, int]]:
    """Place each thing: its middle x, y and its side, in pixels, with a little play from the scene's seed."""
    rng = random.Random(scene.seed ^ 0x5EED)
    found: list[tuple[int, int, int]] = []
    for number, thing in enumerate(scene.things):
        two = len(scene.things) == 2
        side = (_DOUBLE_PX if two else _SINGLE_PX)[thing.size] + rng.randint(-2, 2)
        if two:
            sign = -1 if number == 0 else 1
            x, y = (64 + sign * 30, 68) if scene.relation == "left" else (64, 64 + sign * 30)
            play = 3
        else:
            reach = min(34, 60 - side // 2)
            x = 64 + reach * (("right" in thing.place) - ("left" in thing.place))
            y = 64 + reach * (("bottom" in thing.place) - ("top" in thing.place))
            play = 3
        found.append((x + rng.randint(-play, play), y + rng.randint(-play, play), side))
    return found


def _thing(kind: str, colour: str, side: int) -> tuple[Image.Image, Image.Image]:
    """Draw one thing on a tile of its own; returns the colours and the alpha."""
    half = side * _FINE / 2
    whole = (side + 6) * _FINE
    rgb = THING_RGB[colour]
    outline = _OUTLINES.get(colour, mix(rgb, (16, 8, 24), 0.5))
    light = mix(rgb, (255, 255, 255), 0.14)
    dark = mix(rgb, (110, 116, 140), 0.4) if colour in ("white", "black") else mix(rgb, (16, 8, 24), 0.28)
    heart = (246, 178, 40) if colour in ("white", "pink") else (255, 246, 214)
    eye: Rgb = (250, 250, 250) if colour != "white" else (60, 60, 70)
    pupil: Rgb = (30, 30, 36) if colour != "white" else (250, 250, 250)
    tones: dict[str, Rgb] = {
        "dark": dark, "trunk": _TRUNK, "pane": _PANE, "door": _DOOR, "core": heart,
        "eye": eye, "pupil": pupil,
    }  # fmt: skip
    slope = np.linspace(0.0, 1.0, whole)[:, None, None]
    shades = (np.array(light) * (1 - slope) + np.array(mix(rgb, dark, 0.25)) * slope).astype(np.uint8)
    fill = Image.fromarray(np.ascontiguousarray(np.broadcast_to(shades, (whole, whole, 3))))
    tile, alpha = Image.new("RGB", (whole, whole), outline), Image.new("L", (whole, whole), 0)
    pen, alpha_pen = ImageDraw.Draw(tile), ImageDraw.Draw(alpha)
    shapes = [
        ([(whole / 2 + x * half, whole / 2 + y * half) for x, y in points], tone) for points, tone in _shapes()[kind]
    ]
    for points, tone in shapes:
        if tone in ("fill", "dark", "trunk"):
            alpha_pen.polygon(points, fill=255)
            alpha_pen.line([*points, points[0], points[1]], fill=255, width=3 * _FINE, joint="curve")
    for points, tone in shapes:
        if tone == "fill":
            mask = Image.new("L", (whole, whole), 0)
            ImageDraw.Draw(mask).polygon(points, fill=255)
            tile.paste(fill, (0, 0), mask)
        else:
            pen.polygon(points, fill=tones[tone])
    return tile.reduce(_FINE), alpha.reduce(_FINE)


@functools.cache
def _shapes() -> dict[str, tuple[tuple[Points, str], ...]]:
    """List the polygons of each kind, back to front, in units of half its side, y downwards, each with its tone."""
    whole = 2 * math.pi
    rays = [(0.44 if ray % 2 else 1.02, whole * ray / 10) for ray in range(10)]
    star = [(reach * math.sin(turn), 0.06 - reach * math.cos(turn)) for reach, turn in rays]
    heart = [
        (
            0.96 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5 - 0.1,
        )
        for t in (whole * part / 48 for part in range(48))
    ]
    petals = [_oval(0.56 * math.sin(t), -0.56 * math.cos(t), 0.4, 0.4) for t in (whole * part / 6 for part in range(6))]
    return {
        "circle": ((_oval(0, 0, 0.92, 0.92), "fill"),),
        "square": (([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)], "fill"),),
        "triangle": (([(0, -0.92), (0.98, 0.8), (-0.98, 0.8)], "fill"),),
        "star": ((star, "fill"),),
        "heart": ((heart, "fill"),),
        "flower": (*((petal, "fill") for petal in petals), (_oval(0, 0, 0.3, 0.3), "core")),
        "house": (
            ([(-0.72, -0.15), (0.72, -0.15), (0.72, 0.9), (-0.72, 0.9)], "fill"),
            ([(0, -0.95), (0.98, -0.1), (-0.98, -0.1)], "dark"),
            ([(-0.5, 0.12), (-0.12, 0.12), (-0.12, 0.5), (-0.5, 0.5)], "pane"),
            ([(0.12, 0.2), (0.5, 0.2), (0.5, 0.9), (0.12, 0.9)], "door"),
        ),
        "tree": (
            ([(-0.16, 0.2), (0.16, 0.2), (0.2, 0.98), (-0.2, 0.98)], "trunk"),
            (_oval(-0.48, 0.02, 0.44, 0.42), "fill"),
            (_oval(0.48, 0.02, 0.44, 0.42), "fill"),
            (_oval(0, -0.4, 0.56, 0.54), "fill"),
        ),
        "fish": (
            ([(0.4, 0), (0.98, -0.5), (0.98, 0.5)], "dark"),
            (_oval(-0.2, 0, 0.76, 0.52), "fill"),
            (_oval(-0.55, -0.12, 0.15, 0.15), "eye"),
            (_oval(-0.58, -0.12, 0.07, 0.07), "pupil"),
        ),
        "boat": (
            ([(-0.05, -0.95), (0.06, -0.95), (0.06, 0.4), (-0.05, 0.4)], "trunk"),
            ([(0.14, -0.85), (0.8, 0.26), (0.14, 0.26)], "fill"),
            ([(-0.14, -0.55), (-0.14, 0.26), (-0.66, 0.26)], "fill"),
            ([(-0.98, 0.38), (0.98, 0.38), (0.62, 0.86), (-0.62, 0.86)], "dark"),
        ),
    }


def _oval(x: float, y: float, wide: float, high: float) -> Points:
    turns = [2 * math.pi * part / 40 for part in range(40)]
    return [(x + wide * math.cos(t), y + high * math.sin(t)) for t in turns]


@functools.cache
def background(name: str, variant: int) -> Image.Image:  # noqa: C901 - a list of seven pictures
    """Draw an empty background; a caller that paints on it copies it first."""
    rng = random.Random(f"{name} {variant}")
    fine = 3
    whole = SIDE_PX * fine
    image = _sky(_SKIES[name], whole)
    pen = ImageDraw.Draw(image)

    def ridge(level: float, swing: float, rgb: Rgb, waves: float = 1.0) -> None:
        shift = rng.random() * 6.3
        steps = range(0, whole + 8, 8)
        line = [(x, (level + swing * math.sin(shift + waves * 6.3 * x / whole)) * whole) for x in steps]
        pen.polygon([(0, whole), *line, (whole, whole)], fill=rgb)

    def spot(x: float, y: float, wide: float, high: float, rgb: Rgb) -> None:
        pen.ellipse([(x - wide) * whole, (y - high) * whole, (x + wide) * whole, (y + high) * whole], fill=rgb)

    def cloud(x: float, y: float, size: float, rgb: Rgb) -> None:
        for along, up, radius in ((-0.9, 0.1, 0.55), (-0.2, -0.25, 0.75), (0.6, 0.0, 0.65), (1.2, 0.2, 0.4)):
            spot(x + along * size, y + up * size, radius * size * 1.2, radius * size * 0.75, rgb)

    if name == "hills":
        cloud(rng.uniform(0.15, 0.35), rng.uniform(0.12, 0.2), 0.07, (250, 253, 255))
        cloud(rng.uniform(0.65, 0.85), rng.uniform(0.1, 0.24), 0.06, (250, 253, 255))
        ridge(0.62, 0.05, (186, 218, 146))
        ridge(0.76, 0.05, (164, 206, 122))
    elif name == "sea":
        cloud(rng.uniform(0.2, 0.8), rng.uniform(0.12, 0.2), 0.07, (252, 254, 255))
        image.paste(_sky(((112, 196, 208), (84, 172, 194)), whole), (0, int(0.56 * whole)))
        pen = ImageDraw.Draw(image)
        ridge(0.86, 0.02, (243, 226, 182))
    elif name == "snow":
        ridge(0.6, 0.05, (222, 231, 242))
        ridge(0.76, 0.04, (240, 245, 251))
        for _ in range(14):
            spot(rng.random(), rng.uniform(0.04, 0.55), 0.011, 0.011, (248, 251, 255))
    elif name == "night":
        for _ in range(16):
            spot(rng.random(), rng.uniform(0.03, 0.6), 0.009, 0.009, (232, 232, 208))
        x, y = rng.uniform(0.8, 0.88), rng.uniform(0.12, 0.16)
        spot(x, y, 0.075, 0.075, (240, 234, 196))
        spot(x - 0.035, y - 0.02, 0.065, 0.065, (30, 38, 82))
        ridge(0.76, 0.04, (30, 46, 66))
    elif name == "sunset":
        spot(rng.uniform(0.4, 0.6), 0.72, 0.2, 0.2, (255, 226, 176))
        ridge(0.74, 0.02, (138, 96, 122))
        ridge(0.86, 0.03, (112, 76, 104))
    elif name == "desert":
        spot(rng.uniform(0.15, 0.25), rng.uniform(0.14, 0.2), 0.07, 0.07, (255, 250, 226))
        ridge(0.64, 0.06, (238, 212, 160))
        ridge(0.78, 0.05, (226, 192, 136))
    elif name == "clouds":
        for x, y in ((0.2, 0.2), (0.78, 0.34), (0.25, 0.66), (0.75, 0.84)):
            cloud(x + rng.uniform(-0.08, 0.08), y + rng.uniform(-0.05, 0.05), 0.09, (246, 250, 254))
    return image.reduce(fine)


_SKIES: dict[str, tuple[Rgb, Rgb]] = {
    "hills": (((158, 210, 240)), (226, 242, 248)),
    "sea": ((176, 220, 244), (232, 246, 250)),
    "snow": ((178, 194, 216), (218, 226, 238)),
    "night": ((22, 28, 70), (62, 72, 124)),
    "sunset": ((138, 104, 160), (252, 182, 138)),
    "desert": ((182, 222, 230), (246, 240, 216)),
    "clouds": ((112, 178, 228), (182, 218, 244)),
}


def _sky(ends: tuple[Rgb, Rgb], whole: int) -> Image.Image:
    slope = np.linspace(0.0, 1.0, whole)[:, None, None] ** 0.9
    rows = np.array(ends[0]) * (1 - slope) + np.array(ends[1]) * slope
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows.astype(np.uint8), (whole, whole, 3))))
