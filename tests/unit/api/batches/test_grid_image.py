"""The picture of all images: every image once, where its labels say, and never too large."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from api.batches.grid_image import MAX_PIXELS, MAX_SIDE_PX, Dimension, Layout, Shown, compose, geometry_of


def dimensions_of(*lengths):
    """Return dimensions of these lengths, the first slowest in the job."""
    strides = [math.prod(lengths[place + 1 :]) for place in range(len(lengths))]
    return [
        Dimension(f"axis{place}", tuple(f"value {number}" for number in range(length)), stride)
        for place, (length, stride) in enumerate(zip(lengths, strides, strict=True))
    ]


def places_of(layout):
    """Return the indices of the images in the order in which they stand."""
    return [
        layout.index(block, row, column)
        for block in range(len(layout.blocks))
        for row in range(len(layout.rows.labels))
        for column in range(len(layout.columns.labels))
    ]


@given(st.lists(st.integers(1, 12), max_size=4).filter(lambda lengths: math.prod(lengths) <= 1_000))
def test_every_image_stands_on_the_grid_once(lengths):
    """Whatever varies, no image is missing and none is shown twice."""
    assert sorted(places_of(Layout.of(dimensions_of(*lengths)))) == list(range(math.prod(lengths)))


@given(
    st.lists(st.integers(1, 12), max_size=4).filter(lambda lengths: math.prod(lengths) <= 1_000), st.integers(8, 9_000)
)
def test_a_grid_has_bounded_sides_and_pixels(lengths, side):
    """A thousand images of any size are a picture that can be opened."""
    geometry = geometry_of(Layout.of(dimensions_of(*lengths)), largest=(side, max(8, side // 2)), has_subtitle=True)
    assert max(geometry.size) <= MAX_SIDE_PX
    assert math.prod(geometry.size) <= MAX_PIXELS


@pytest.mark.parametrize("lengths", [(1_000,), (500, 2), (2, 500), (64, 15), (2, 2, 250), (10, 10, 10), (4, 4, 4, 15)])
def test_the_worst_grids_fit(lengths):
    """Long lists fold, and blocks fill the page."""
    geometry = geometry_of(Layout.of(dimensions_of(*lengths)), largest=(1024, 1024), has_subtitle=True)
    assert max(geometry.size) <= MAX_SIDE_PX
    assert math.prod(geometry.size) <= MAX_PIXELS


def test_the_first_axis_goes_along_the_top_and_the_second_down_the_side():
    """As people who know X/Y plots expect; a third makes blocks, each with its value above it."""
    layout = Layout.of(dimensions_of(3, 2, 2))
    assert (layout.columns.name, layout.rows.name) == ("axis0", "axis1")
    assert [heading for heading, _ in layout.blocks] == ["axis2 value 0", "axis2 value 1"]
    assert (layout.index(0, 0, 1), layout.index(0, 1, 0), layout.index(1, 0, 0)) == (4, 2, 1)


def test_images_stand_in_their_cells_and_the_missing_are_told():
    """Each cell shows its own image, at the size it has beside the others; a blank takes the place of what failed."""
    colours = {0: (200, 0, 0), 1: (0, 200, 0), 2: (0, 0, 200)}
    layout = Layout.of(dimensions_of(2, 2))
    geometry = geometry_of(layout, largest=(64, 64), has_subtitle=False)

    def fetch(index):
        # The second is there as a thumbnail only, of half the size that it has.
        side = 32 if index == 1 else 64
        return (
            "failed"
            if index == 3
            else Shown(Image.new("RGB", (side, side), colours[index]), 64, 32 if index == 2 else 64)
        )

    sheet = compose(geometry, fetch, title="a title that is much longer than the whole picture is wide" * 3)
    left, top = geometry.corner(0)

    def pixel(row, column, y_share=0.5):
        x = left + geometry.row_label_px + column * (geometry.cell[0] + 14) + geometry.cell[0] // 4
        return sheet.getpixel(
            (x, top + geometry.top_px + row * (geometry.cell[1] + 14) + int(geometry.cell[1] * y_share))
        )

    assert (pixel(0, 0), pixel(1, 0), pixel(0, 1)) == (colours[0], colours[1], colours[2])
    assert pixel(1, 0, 0.05) == colours[1]  # enlarged to its cell
    assert pixel(0, 1, 0.1) not in colours.values()  # half as high as the others
    assert len(set(pixel(1, 1))) > 1  # paper, no picture
    assert pixel(1, 1) not in colours.values()
