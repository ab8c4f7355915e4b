"""Pictures to start from as A1111 prepares them: fitted to a size, masked, cut out, and laid over the result again.

Pure, on Pillow's images. Rendering between the mask's edges is the worker's business.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from PIL import Image, ImageChops, ImageFilter, ImageOps

from farm.errors import Refused

JUST_RESIZE: Final = 0
CROP_AND_RESIZE: Final = 1
RESIZE_AND_FILL: Final = 2

_FILL: Final = 0  # inpainting_fill: what lies under the mask gives way to its surroundings
_SPREAD: Final = 4  # each finer layer of colours reaches a quarter as far

Box = tuple[int, int, int, int]


class MaskUse(NamedTuple):
    """How a mask is meant, by A1111's names."""

    blur_x: float = 4.0
    blur_y: float = 4.0
    invert: bool = False
    fill: int = _FILL
    full_res: bool = True
    full_res_padding: int = 0


class Masked(NamedTuple):
    """A picture with a mask, prepared."""

    image: Image.Image  # what is rendered from: RGB, of the size that is rendered
    mask: Image.Image  # L, of that size
    original: Image.Image  # what the result is laid over
    shown: Image.Image  # L, of the original's size: how much of the result shows
    box: Box | None  # where in the original the result belongs; None: all over it


def fit(image: Image.Image, width: int, height: int, resize_mode: int) -> Image.Image:
    """Return `image` at width x height: stretched, cut to shape, or whole with its edges drawn out to the sides."""
    if image.size == (width, height):
        return image
    if resize_mode == CROP_AND_RESIZE:
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if resize_mode != RESIZE_AND_FILL:
        return image.resize((width, height), Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    inner = (min(width, max(1, round(image.width * scale))), min(height, max(1, round(image.height * scale))))
    small = image.resize(inner, Image.Resampling.LANCZOS)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(small, (left, top))
    right, bottom = left + inner[0], top + inner[1]
    # One of the two pairs is empty: the picture touches two sides.
    for strip, box in (
        ((0, 0, 1, inner[1]), (0, top, left, bottom)),
        ((inner[0] - 1, 0, inner[0], inner[1]), (right, top, width, bottom)),
        ((0, 0, inner[0], 1), (left, 0, right, top)),
        ((0, inner[1] - 1, inner[0], inner[1]), (left, bottom, right, height)),
    ):
        size = (box[2] - box[0], box[3] - box[1])
        if all(size):
            canvas.paste(small.crop(strip).resize(size), box)
    return canvas


def mask_in(picture: Image.Image) -> Image.Image:
    """Return the mask that a picture holds, as L: its transparency where it has some, else its brightness."""
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha.point(lambda value: 255 if value > 128 else 0)  # noqa: PLR2004  half of 255
        return picture.convert("RGB").convert("L")
    return picture.convert("L")


def masked(
    original: Image.Image, mask: Image.Image, use: MaskUse, *, width: int, height: int, resize_mode: int
) -> Masked:
    """Prepare a picture (RGB) and its mask (L) for a rendering of width x height.

    Raises Refused for a mask under which nothing is painted anew.
    """
    mask = fit(mask, *original.size, JUST_RESIZE)
    if use.invert:
        mask = ImageOps.invert(mask)
    if mask.getbbox() is None:
        raise Refused("nothing of it is white: there is nothing to paint anew", field="mask")
    if use.full_res:
        mask = _blurred(mask, use)
        box = region_of(mask, width / height, padding=use.full_res_padding)
        image = fit(original.crop(box), width, height, RESIZE_AND_FILL)
        inner = fit(mask.crop(box), width, height, RESIZE_AND_FILL)
        shown = mask
    else:
        box = None
        original = image = fit(original, width, height, resize_mode)
        inner = _blurred(fit(mask, width, height, resize_mode), use)
        shown = inner.point(lambda value: min(255, 2 * value))  # the blur alone would let the old edge through
    if use.fill == _FILL:
        image = _filled(image, inner)
    return Masked(image, inner, original, shown, box)


def _blurred(mask: Image.Image, use: MaskUse) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur((use.blur_x, use.blur_y)))


def region_of(mask: Image.Image, aspect: float, *, padding: int) -> Box:
    """Return the box around all that is not black, padded, widened to `aspect` (width / height) if there is room."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, top = max(0, left - padding), max(0, top - padding)
    right, bottom = min(mask.width, right + padding), min(mask.height, bottom + padding)
    width, height = right - left, bottom - top
    if width < height * aspect:
        left, right = _widened(left, right, min(mask.width, round(height * aspect)), mask.width)
    else:
        top, bottom = _widened(top, bottom, min(mask.height, round(width / aspect)), mask.height)
    return left, top, right, bottom


def _widened(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """Return a stretch of `length` around `start` to `end`, within 0 to `limit`."""
    length = max(length, end - start)
    start = min(max(0, start - (length - (end - start)) // 2), limit - length)
    return start, start + length


def _filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the picture with the colours around the mask spread into it: from afar first, finer ones over them."""
    seen = image.convert("RGBA")
    seen.putalpha(ImageOps.invert(mask))
    seen = seen.convert("RGBa")  # colours by their weight: what is hidden lends none
    ground = Image.new("RGBA", image.size)
    radius = max(image.size) // 2
    while radius > 1:
        spread = seen.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        ground.alpha_composite(spread)
        ground.alpha_composite(spread)  # what is thin counts for more
        radius //= _SPREAD
    ground.alpha_composite(seen.convert("RGBA"))
    return ground.convert("RGB")


def laid_over(result: Image.Image, prepared: Masked) -> Image.Image:
    """Return the original with a result in its place, and nothing changed where the mask was black."""
    original, box = prepared.original, prepared.box
    if box is None:
        return Image.composite(result.convert("RGB"), original, prepared.shown)
    whole = original.copy()
    whole.paste(fit(result.convert("RGB"), box[2] - box[0], box[3] - box[1], CROP_AND_RESIZE), box[:2])
    only_here = Image.new("L", original.size)
    only_here.paste(255, box)
    return Image.composite(whole, original, ImageChops.multiply(prepared.shown, only_here))
