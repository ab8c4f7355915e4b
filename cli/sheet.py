"""A contact sheet: pictures in rows with their prompts under them, as one image. Pure Pillow, no files of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw, ImageFont

_PAPER: Final = "#fbfaf7"
_INK: Final = "#22252b"
_SOFT_INK: Final = "#6d717a"
_EDGE: Final = "#e3e0d8"

_MARGIN_PX: Final = 40
_GAP_PX: Final = 28
_CAPTION_GAP_PX: Final = 12
_CORNER_PX: Final = 10
_LINE_SPACING: Final = 1.32
_MAX_CAPTION_LINES: Final = 3

_TITLE_PX: Final = 30
_SUBTITLE_PX: Final = 16
_CAPTION_PX: Final = 16

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Cell:
    """A picture and what stands under it."""

    picture: Image.Image
    caption: str


def contact_sheet(
    cells: Sequence[Cell], *, title: str, subtitle: str = "", columns: int = 4, picture_px: int = 256
) -> Image.Image:
    """Return the sheet: `columns` pictures a row, each fitted into a square of `picture_px`."""
    if not cells:
        raise ValueError("a contact sheet needs a picture")
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    caption_font = ImageFont.load_default(_CAPTION_PX)
    captions = [[wrap(cell.caption, caption_font, picture_px) for cell in row] for row in rows]
    line_px = round(_CAPTION_PX * _LINE_SPACING)
    # A row is as high as its longest caption asks for.
    row_px = [picture_px + _CAPTION_GAP_PX + line_px * max(map(len, row)) for row in captions]
    header_px = round(_TITLE_PX * _LINE_SPACING) + (round(_SUBTITLE_PX * _LINE_SPACING) if subtitle else 0) + _GAP_PX
    width = 2 * _MARGIN_PX + columns * picture_px + (columns - 1) * _GAP_PX
    height = 2 * _MARGIN_PX + header_px + sum(row_px) + (len(rows) - 1) * _GAP_PX

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN_PX, _MARGIN_PX), title, font=ImageFont.load_default(_TITLE_PX), fill=_INK)
    if subtitle:
        top = _MARGIN_PX + round(_TITLE_PX * _LINE_SPACING)
        draw.text((_MARGIN_PX, top), subtitle, font=ImageFont.load_default(_SUBTITLE_PX), fill=_SOFT_INK)
    top = _MARGIN_PX + header_px
    for row, lines_of, height_px in zip(rows, captions, row_px, strict=True):
        for column, (cell, lines) in enumerate(zip(row, lines_of, strict=True)):
            left = _MARGIN_PX + column * (picture_px + _GAP_PX)
            place(sheet, cell.picture, left, top, picture_px)
            for number, line in enumerate(lines):
                y = top + picture_px + _CAPTION_GAP_PX + number * line_px
                draw.text((left, y), line, font=caption_font, fill=_INK)
        top += height_px + _GAP_PX
    return sheet


def place(sheet: Image.Image, picture: Image.Image, left: int, top: int, side_px: int) -> None:
    """Put a picture, fitted and with rounded corners, into a square of the sheet."""
    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    # The corners are drawn four times as large and shrunk: ImageDraw itself does not smooth edges.
    mask = Image.new("L", (size[0] * 4, size[1] * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), _CORNER_PX * 4, fill=255)
    x, y = left + (side_px - size[0]) // 2, top + (side_px - size[1]) // 2
    box = (x - 1, y - 1, x + size[0], y + size[1])
    ImageDraw.Draw(sheet).rounded_rectangle(box, _CORNER_PX, outline=_EDGE)
    sheet.paste(fitted, (x, y), mask.resize(size, Image.Resampling.LANCZOS))


def wrap(text: str, font: _Font, width_px: int, *, max_lines: int = _MAX_CAPTION_LINES) -> list[str]:
    """Break a text into at most `max_lines` lines of `width_px`; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    words = text.split()
    while words:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width_px:
            count += 1
        if len(lines) == max_lines - 1 and count < len(words):
            return [*lines, shorten(" ".join(words), font, width_px)]
        line, words = " ".join(words[:count]), words[count:]
        lines.append(line if font.getlength(line) <= width_px else shorten(line, font, width_px))
    return lines


def shorten(text: str, font: _Font, width_px: int) -> str:
    """Cut a text to `width_px`, ending in an ellipsis."""
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip(" ,.;:") + "…"
