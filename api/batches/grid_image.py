"""One labelled picture of a job's images: axes along the edges, what is missing said where it is missing. Pure Pillow.

Sizes are pixels. Images keep their sizes relative to each other: a grid over widths shows which one is wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from PIL import Image, ImageDraw

from farm.drawing import EDGE, INK, PAPER, SOFT_INK, font_of, line_px, paste_rounded, shorten, wrap

MAX_SIDE_PX: Final = 16_000
"""Of a grid; WebP ends at 16,383."""

MAX_PIXELS: Final = 40_000_000
"""Of a grid: some 120 MB while it is made."""

_LARGEST_CELL_PX: Final = 512
_USUAL_CELL_PX: Final = 192  # what smaller images are enlarged to: labels need room
_SMALLEST_CELL_PX: Final = 24
_MAX_COLUMNS_ALONE: Final = 8  # of a grid with one axis, before it goes on below
_MAX_COLUMNS: Final = 64
_MAX_ROWS: Final = 24

_BLANK: Final = "#f1eee7"

_MARGIN_PX: Final = 44
_GAP_PX: Final = 14
_BLOCK_GAP_PX: Final = 44
_TITLE_PX: Final = 30
_SUBTITLE_PX: Final = 16
_HEADING_PX: Final = 19
_NAME_PX: Final = 14
_LABEL_PX: Final = 17
_MAX_ROW_LABEL_PX: Final = 240
_CORNER_PX: Final = 8


@dataclass(frozen=True, slots=True)
class Dimension:
    """Something that varies: its name, its values in words, and how far apart in the job two neighbours are."""

    name: str
    labels: tuple[str, ...]
    stride: int


_ONE: Final = Dimension("", ("",), 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which image stands where: a block for each combination of what is neither along the top nor the side."""

    columns: Dimension
    rows: Dimension
    blocks: tuple[tuple[str, int], ...]  # heading, and index of the first image

    @classmethod
    def of(cls, dimensions: Sequence[Dimension]) -> Layout:
        """Return the layout of what varies: the first goes along the top, the second along the side, more in blocks.

        What would be too long for an edge is told in headings: blocks fill a page from left to right.
        """
        varying = [each for each in dimensions if len(each.labels) > 1]
        columns = _taken(varying, most=_MAX_COLUMNS if len(varying) > 1 else _MAX_COLUMNS_ALONE)
        rows = _ONE if columns is _ONE else _taken(varying, most=_MAX_ROWS)
        blocks = [("", 0)]
        for outer in varying:
            blocks = [
                (", ".join(filter(None, (heading, _told(outer, place)))), start + place * outer.stride)
                for heading, start in blocks
                for place in range(len(outer.labels))
            ]
        return cls(columns, rows, tuple(blocks))

    def index(self, block: int, row: int, column: int) -> int:
        """Return the index of the image that stands there."""
        return self.blocks[block][1] + row * self.rows.stride + column * self.columns.stride


def _taken(dimensions: list[Dimension], *, most: int) -> Dimension:
    """Take the first that is no longer than an edge allows, if there is one."""
    found = next((each for each in dimensions if len(each.labels) <= most), _ONE)
    if found is not _ONE:
        dimensions.remove(found)
    return found


def _told(dimension: Dimension, place: int) -> str:
    """Return a value with the name of what it is of; a prompt says by itself what it is."""
    label = dimension.labels[place]
    return label if dimension.name == "prompt" else f"{dimension.name} {label}"


class Shown(NamedTuple):
    """An image, and the size it has in the job: what is at hand may be its thumbnail."""

    picture: Image.Image
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything stands, in pixels; a cell holds the largest image at `scale`."""

    layout: Layout
    scale: float
    cell: tuple[int, int]
    row_label_px: int
    heading_lines: int
    label_lines: int
    across: int  # blocks beside each other
    title_px: int
    size: tuple[int, int]

    @property
    def block(self) -> tuple[int, int]:
        """Width and height of a block, its heading and labels included."""
        columns, rows = len(self.layout.columns.labels), len(self.layout.rows.labels)
        width = self.row_label_px + columns * (self.cell[0] + _GAP_PX) - _GAP_PX
        return width, self.top_px + rows * (self.cell[1] + _GAP_PX) - _GAP_PX

    @property
    def top_px(self) -> int:
        """Height of what stands above a block's images."""
        name = line_px(_NAME_PX) if self.layout.columns.name else 0
        labels = self.label_lines * line_px(_LABEL_PX)
        return self.heading_lines * line_px(_HEADING_PX) + name + labels + (8 if name or self.heading_lines else 0)

    def corner(self, block: int) -> tuple[int, int]:
        """Return where a block begins."""
        down, right = divmod(block, self.across)
        width, height = self.block
        return (
            _MARGIN_PX + right * (width + _BLOCK_GAP_PX),
            _MARGIN_PX + self.title_px + down * (height + _BLOCK_GAP_PX),
        )


def geometry_of(layout: Layout, *, largest: tuple[int, int], has_subtitle: bool) -> Geometry:
    """Return where everything stands, as large as MAX_SIDE_PX and MAX_PIXELS allow; `largest` holds every image."""
    side = min(max(*largest, _USUAL_CELL_PX), _LARGEST_CELL_PX)
    title_px = line_px(_TITLE_PX) + (line_px(_SUBTITLE_PX) if has_subtitle else 0) + 26
    while True:
        found = _measured(layout, side / max(largest), largest, title_px)
        excess = max(max(found.size) / MAX_SIDE_PX, math.sqrt(found.size[0] * found.size[1] / MAX_PIXELS))
        if excess <= 1 or side <= _SMALLEST_CELL_PX:
            return found
        side = max(_SMALLEST_CELL_PX, math.floor(side * min(0.97, 1 / excess)))


def _measured(layout: Layout, scale: float, largest: tuple[int, int], title_px: int) -> Geometry:
    cell = (max(1, round(largest[0] * scale)), max(1, round(largest[1] * scale)))
    label_font = font_of(_LABEL_PX)
    columns, rows = layout.columns, layout.rows
    row_label_px = 0
    if rows.name:
        widest = max(*(label_font.getlength(label) for label in rows.labels), font_of(_NAME_PX).getlength(rows.name))
        row_label_px = min(_MAX_ROW_LABEL_PX, math.ceil(widest)) + _GAP_PX
    label_lines = max(len(wrap(label, label_font, cell[0])) for label in columns.labels) if columns.name else 0
    width = row_label_px + len(columns.labels) * (cell[0] + _GAP_PX) - _GAP_PX
    heading_font = font_of(_HEADING_PX)
    heading_lines = max(len(wrap(heading, heading_font, width)) for heading, _ in layout.blocks)
    found = Geometry(layout, scale, cell, row_label_px, heading_lines, label_lines, 1, title_px, (0, 0))
    # As many blocks beside each other as make the picture most like a square.
    sizes = [(_size(found, across), across) for across in range(1, len(layout.blocks) + 1)]
    size, across = min(sizes, key=lambda each: (max(each[0]), each[1]))
    return replace(found, across=across, size=size)


def _size(geometry: Geometry, across: int) -> tuple[int, int]:
    down = math.ceil(len(geometry.layout.blocks) / across)
    width, height = geometry.block
    return (
        2 * _MARGIN_PX + across * (width + _BLOCK_GAP_PX) - _BLOCK_GAP_PX,
        2 * _MARGIN_PX + geometry.title_px + down * (height + _BLOCK_GAP_PX) - _BLOCK_GAP_PX,
    )


def compose(geometry: Geometry, fetch: Callable[[int], Shown | str], *, title: str, subtitle: str = "") -> Image.Image:
    """Return the picture; `fetch` gives the image at an index, one at a time, or says in a word why there is none."""
    layout = geometry.layout
    sheet = Image.new("RGB", geometry.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    room = geometry.size[0] - 2 * _MARGIN_PX
    draw.text((_MARGIN_PX, _MARGIN_PX), shorten(title, font_of(_TITLE_PX), room), font=font_of(_TITLE_PX), fill=INK)
    if subtitle:
        at = (_MARGIN_PX, _MARGIN_PX + line_px(_TITLE_PX))
        draw.text(at, shorten(subtitle, font_of(_SUBTITLE_PX), room), font=font_of(_SUBTITLE_PX), fill=SOFT_INK)
    for block, (heading, _) in enumerate(layout.blocks):
        left, top = geometry.corner(block)
        _draw_edges(draw, geometry, heading, left, top)
        for row in range(len(layout.rows.labels)):
            for column in range(len(layout.columns.labels)):
                x = left + geometry.row_label_px + column * (geometry.cell[0] + _GAP_PX)
                y = top + geometry.top_px + row * (geometry.cell[1] + _GAP_PX)
                _draw_cell(sheet, geometry, fetch(layout.index(block, row, column)), (x, y))
    return sheet


def _draw_edges(draw: ImageDraw.ImageDraw, geometry: Geometry, heading: str, left: int, top: int) -> None:
    """Write a block's heading, the labels of its columns and those of its rows."""
    columns, rows = geometry.layout.columns, geometry.layout.rows
    y = top
    for line in wrap(heading, font_of(_HEADING_PX), geometry.block[0]):
        draw.text((left, y), line, font=font_of(_HEADING_PX), fill=INK)
        y += line_px(_HEADING_PX)
    y = top + geometry.heading_lines * line_px(_HEADING_PX)
    first = left + geometry.row_label_px
    if columns.name:
        draw.text((first, y), columns.name, font=font_of(_NAME_PX), fill=SOFT_INK)
        y += line_px(_NAME_PX)
        for place, label in enumerate(columns.labels):
            x = first + place * (geometry.cell[0] + _GAP_PX) + geometry.cell[0] / 2
            _write_lines(draw, label, geometry.cell[0], (x, y), anchor="ma")
    if not rows.name:
        return
    right = left + geometry.row_label_px - _GAP_PX
    y = top + geometry.top_px - line_px(_NAME_PX) - 6
    draw.text(
        (right, y),
        shorten(rows.name, font_of(_NAME_PX), right - left),
        font=font_of(_NAME_PX),
        fill=SOFT_INK,
        anchor="ra",
    )
    for place, label in enumerate(rows.labels):
        middle = top + geometry.top_px + place * (geometry.cell[1] + _GAP_PX) + geometry.cell[1] / 2
        num_lines = len(wrap(label, font_of(_LABEL_PX), right - left))
        _write_lines(draw, label, right - left, (right, middle - num_lines * line_px(_LABEL_PX) / 2), anchor="ra")


def _write_lines(draw: ImageDraw.ImageDraw, text: str, width_px: int, at: tuple[float, float], *, anchor: str) -> None:
    for number, line in enumerate(wrap(text, font_of(_LABEL_PX), width_px)):
        y = at[1] + number * line_px(_LABEL_PX)
        draw.text((at[0], y), line, font=font_of(_LABEL_PX), fill=INK, anchor=anchor)


def _draw_cell(sheet: Image.Image, geometry: Geometry, found: Shown | str, corner: tuple[int, int]) -> None:
    """Put an image into the middle of its cell, or say why there is none."""
    cell, (x, y) = geometry.cell, corner
    if isinstance(found, str):
        draw = ImageDraw.Draw(sheet)
        draw.rounded_rectangle((x, y, x + cell[0] - 1, y + cell[1] - 1), _CORNER_PX, fill=_BLANK, outline=EDGE)
        word = shorten(found, font_of(_NAME_PX), cell[0])
        draw.text((x + cell[0] / 2, y + cell[1] / 2), word, font=font_of(_NAME_PX), fill=SOFT_INK, anchor="mm")
        return
    fitting = min(geometry.scale, cell[0] / found.width, cell[1] / found.height)
    size = (max(1, round(found.width * fitting)), max(1, round(found.height * fitting)))
    at = (x + (cell[0] - size[0]) // 2, y + (cell[1] - size[1]) // 2)
    paste_rounded(sheet, found.picture, size=size, at=at, corner_px=_CORNER_PX)
