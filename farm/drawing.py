"""What the farm's drawn sheets have in common: the contact sheet of the command, the grid of a job. Pure Pillow."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw, ImageFont

PAPER: Final = "#fbfaf7"
INK: Final = "#22252b"
SOFT_INK: Final = "#6d717a"
EDGE: Final = "#e3e0d8"

_MAX_LINES: Final = 3
_LINE: Final = 1.3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=16)
def font_of(size_px: int) -> Font:
    """Return the font at a size."""
    return ImageFont.load_default(size_px)


def line_px(size_px: int) -> int:
    """Return the height of a line of a font's size."""
    return round(size_px * _LINE)


def wrap(text: str, font: Font, width_px: float, *, max_lines: int = _MAX_LINES) -> list[str]:
    """Break a text into a few lines of `width_px`; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    words = text.split()
    while words:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width_px:
            count += 1
        if len(lines) == max_lines - 1:
            return [*lines, shorten(" ".join(words), font, width_px)]
        lines.append(shorten(" ".join(words[:count]), font, width_px))
        words = words[count:]
    return lines


def shorten(text: str, font: Font, width_px: float) -> str:
    """Cut a text to `width_px`, ending in an ellipsis if it was longer."""
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip(" ,.;:") + "…"


def paste_rounded(
    sheet: Image.Image, picture: Image.Image, *, size: tuple[int, int], at: tuple[int, int], corner_px: int
) -> None:
    """Put a picture on a sheet, at a size in pixels and with rounded corners."""
    fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    # The corners are drawn four times as large and shrunk: ImageDraw itself does not smooth edges.
    mask = Image.new("L", (size[0] * 4, size[1] * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), corner_px * 4, fill=255)
    sheet.paste(fitted, at, mask.resize(size, Image.Resampling.LANCZOS))
