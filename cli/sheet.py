"""A contact sheet: pictures in rows with their prompts under them, as one image. Pure Pillow, no files of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from farm.drawing import EDGE, INK, PAPER, SOFT_INK, font_of, line_px, paste_rounded, wrap

_MARGIN_PX: Final = 40
_GAP_PX: Final = 28
_CAPTION_GAP_PX: Final = 12
_CORNER_PX: Final = 10

_TITLE_PX: Final = 30
_SUBTITLE_PX: Final = 16
_CAPTION_PX: Final = 16


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
    caption_font = font_of(_CAPTION_PX)
    captions = [[wrap(cell.caption, caption_font, picture_px) for cell in row] for row in rows]
    step_px = line_px(_CAPTION_PX)
    # A row is as high as its longest caption asks for.
    row_px = [picture_px + _CAPTION_GAP_PX + step_px * max(map(len, row)) for row in captions]
    header_px = line_px(_TITLE_PX) + (line_px(_SUBTITLE_PX) if subtitle else 0) + _GAP_PX
    width = 2 * _MARGIN_PX + columns * picture_px + (columns - 1) * _GAP_PX
    height = 2 * _MARGIN_PX + header_px + sum(row_px) + (len(rows) - 1) * _GAP_PX

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN_PX, _MARGIN_PX), title, font=font_of(_TITLE_PX), fill=INK)
    if subtitle:
        top = _MARGIN_PX + line_px(_TITLE_PX)
        draw.text((_MARGIN_PX, top), subtitle, font=font_of(_SUBTITLE_PX), fill=SOFT_INK)
    top = _MARGIN_PX + header_px
    for row, lines_of, height_px in zip(rows, captions, row_px, strict=True):
        for column, (cell, lines) in enumerate(zip(row, lines_of, strict=True)):
            left = _MARGIN_PX + column * (picture_px + _GAP_PX)
            place(sheet, cell.picture, left, top, picture_px)
            for number, line in enumerate(lines):
                y = top + picture_px + _CAPTION_GAP_PX + number * step_px
                draw.text((left, y), line, font=caption_font, fill=INK)
        top += height_px + _GAP_PX
    return sheet


def place(sheet: Image.Image, picture: Image.Image, left: int, top: int, side_px: int) -> None:
    """Put a picture, fitted and with rounded corners, into a square of the sheet."""
    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    x, y = left + (side_px - size[0]) // 2, top + (side_px - size[1]) // 2
    box = (x - 1, y - 1, x + size[0], y + size[1])
    ImageDraw.Draw(sheet).rounded_rectangle(box, _CORNER_PX, outline=EDGE)
    paste_rounded(sheet, picture, size=size, at=(x, y), corner_px=_CORNER_PX)
