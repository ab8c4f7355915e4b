"""The contact sheet: every picture is on it, nothing overlaps, long prompts are broken and cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from cli.sheet import Cell, contact_sheet
from farm.drawing import wrap

COLOURS = ["#ff0000", "#00aa00", "#0000ff", "#ff00ff", "#00aaaa"]


def cells(count, caption="a red circle", size=(128, 128)):
    """Return plain pictures, each of another colour."""
    return [Cell(Image.new("RGB", size, COLOURS[i % len(COLOURS)]), caption) for i in range(count)]


def test_every_picture_is_on_the_sheet_in_order():
    """Five pictures in rows of four: the colours stand where the layout says."""
    sheet = contact_sheet(cells(5), title="t", columns=4, picture_px=100)
    found = [colour for _, colour in sorted(_centres(sheet), key=lambda hit: (hit[0][1] // 60, hit[0][0]))]
    assert found == COLOURS


def _centres(sheet):
    for colour in COLOURS:
        rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        mask = sheet.point(lambda value: value).convert("RGB")
        box = Image.frombytes(
            "L", sheet.size, bytes(255 if pixel == rgb else 0 for pixel in mask.get_flattened_data())
        ).getbbox()
        assert box, f"{colour} is missing"
        yield ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2), colour


def test_fewer_pictures_make_a_narrower_sheet():
    """Two pictures leave no empty columns."""
    assert contact_sheet(cells(2), title="t").width < contact_sheet(cells(4), title="t").width


def test_longer_captions_make_a_taller_sheet():
    """A row is as high as its longest caption."""
    long = contact_sheet(cells(4, "a big purple fish below a small pink heart in the clouds at dusk"), title="t")
    assert long.height > contact_sheet(cells(4), title="t").height


def test_wide_pictures_keep_their_shape():
    """A 2:1 picture is fitted into its square, not stretched."""
    sheet = contact_sheet(cells(1, size=(200, 100)), title="t", picture_px=100)
    red = [p == (255, 0, 0) for p in sheet.get_flattened_data()]
    assert 4500 < sum(red) <= 5000


def test_an_empty_sheet_is_refused():
    """Nothing to show is the caller's mistake."""
    with pytest.raises(ValueError, match="needs a picture"):
        contact_sheet([], title="t")


@given(st.text(max_size=300), st.integers(40, 400))
def test_lines_fit_and_are_few(text, width_px):
    """Whatever the text: at most three lines, none wider than its column."""
    font = ImageFont.load_default(16)
    lines = wrap(text, font, width_px)
    assert len(lines) <= 3
    assert all(font.getlength(line) <= width_px for line in lines)


def test_short_text_is_kept_whole():
    """No word is lost as long as there is room."""
    font = ImageFont.load_default(16)
    text = "a red heart left of a green house at night"
    assert " ".join(wrap(text, font, 256)) == text
    assert wrap("word " * 100, font, 256)[-1].endswith("…")
