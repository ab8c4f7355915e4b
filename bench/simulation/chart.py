"""One picture of the report: the share of GPU time that is lost, over the load. Drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 900, 520
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 70, 40, 80
_LIMIT: Final = 0.02
_IDLE, _LOST, _INK, _FAINT, _WARN = "#1f6f8b", "#d1793f", "#222222", "#d8d8d8", "#b03030"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw lost and idle GPU time of each row over the images per second that its cards ask for."""
    rows = sorted(rows, key=lambda row: row["gpu"]["offered_images_per_s"])
    offered = [row["gpu"]["offered_images_per_s"] for row in rows]
    highest = max(*(row["gpu"]["lost_share"] for row in rows), 2 * _LIMIT)
    top, right = _rounded_up(highest), _rounded_up(max(offered))
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    small, large = ImageFont.load_default(13), ImageFont.load_default(18)

    def at(images_per_s: float, share: float) -> tuple[float, float]:
        x = _LEFT + images_per_s / right * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - share / top * (_HEIGHT - _TOP - _BOTTOM)

    for tick in range(6):
        share, load = top * tick / 5, right * tick / 5
        pen.line([at(0, share), at(right, share)], fill=_FAINT)
        pen.text((_LEFT - 10, at(0, share)[1]), f"{share:.1%}", _INK, small, anchor="rm")
        pen.text((at(load, 0)[0], _HEIGHT - _BOTTOM + 10), f"{load:g}", _INK, small, anchor="mt")
    pen.line([at(0, _LIMIT), at(right, _LIMIT)], fill=_WARN, width=1)
    pen.text((at(right, _LIMIT)[0], at(right, _LIMIT)[1] - 4), "2%", _WARN, small, anchor="rb")
    for name, colour, radius in (("lost_share", _LOST, 6), ("idle_share", _IDLE, 4)):
        points = [at(load, row["gpu"][name]) for load, row in zip(offered, rows, strict=True)]
        for (x, y), row in zip(points, rows, strict=True):
            # Hollow: the machine's cores were full, so that the point tells of the machine.
            is_full = row["machine_cpu_share"] > 0.95  # noqa: PLR2004
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), "white" if is_full else colour, colour, 2)
    for number, (load, row) in enumerate(zip(offered, rows, strict=True)):
        x, y = at(load, row["gpu"]["lost_share"])
        label_y = y - 20 - 20 * (number % 4)  # neighbours at different heights, for names are wide
        pen.line([(x, y - 8), (x, label_y)], fill=_FAINT)
        pen.text((x, label_y), f"{row['gpus']} x {row['card']} {row['model']}", _INK, small, anchor="mb")
    pen.text((_LEFT, 14), "GPU time that the farm loses, over the load (simulated cards)", _INK, large)
    pen.text((_LEFT, 42), "no seat taken", _IDLE, small)
    pen.text((_LEFT + 110, 42), "no seat, or a step not full", _LOST, small)
    pen.text((_LEFT + 300, 42), "hollow: all cores of this machine busy", _INK, small)
    pen.text((_WIDTH / 2, _HEIGHT - 30), "images per second that the cards ask for", _INK, small, anchor="mm")
    picture.save(path)


def _rounded_up(value: float) -> float:
    """Return the next round number."""
    power: float = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 10) if step * power >= value)
