"""Pictures as A1111 prepares them: sizes, masks, the region that is rendered, the result laid over the original."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from api.a1111.inpainting import MaskUse, fit, laid_over, mask_in, masked, region_of
from api.a1111.pictures import base64_of, bytes_of, encoded, on_white, picture_in
from farm.errors import Refused
from farm.recipes import texts_in

GREEN, RED = (0, 128, 0), (255, 0, 0)


def rectangle(size, box) -> Image.Image:
    """Return a mask that is white in a box."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    width=st.integers(1, 80),
    height=st.integers(1, 80),
    mode=st.sampled_from([0, 1, 2]),
)
def test_every_way_to_resize_fills_the_size(size, width, height, mode):
    """Stretched, cut or drawn out: the size is the one asked for, and one colour stays one colour everywhere."""
    found = fit(Image.new("RGB", size, GREEN), width, height, mode)
    assert found.size == (width, height)
    assert found.getcolors() == [(width * height, GREEN)]


def test_what_is_cut_off_or_kept():
    """Crop keeps the middle, fill keeps all of it and draws out the edges."""
    picture = Image.new("RGB", (40, 20), GREEN)
    picture.paste(RED, (0, 0, 4, 20))
    assert fit(picture, 20, 20, 1).getpixel((0, 10)) == GREEN
    filled = fit(picture, 40, 40, 2)
    assert [filled.getpixel((0, y)) for y in (0, 20, 39)] == [RED] * 3
    assert filled.getpixel((39, 0)) == GREEN


@given(
    size=st.tuples(st.integers(8, 100), st.integers(8, 100)),
    corner=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    aspect=st.floats(0.2, 5),
    padding=st.integers(0, 50),
)
def test_the_region_holds_the_mask_and_lies_within_the_picture(size, corner, aspect, padding):
    """Whatever the padding and the shape that is rendered."""
    left, top = (int(share * side) for share, side in zip(corner, size, strict=True))
    box = (left, top, left + 1 + (size[0] - left) // 3, top + 1 + (size[1] - top) // 3)
    found = region_of(rectangle(size, box), aspect, padding=padding)
    assert found[0] <= box[0] < box[2] <= found[2] <= size[0]
    assert found[1] <= box[1] < box[3] <= found[3] <= size[1]
    assert found[0] >= 0 <= found[1]


def test_the_region_has_the_shape_that_is_rendered():
    """So that nothing is distorted, where the picture has room for it."""
    left, top, right, bottom = region_of(rectangle((200, 200), (90, 90, 110, 100)), 2.0, padding=10)
    assert (right - left, bottom - top) == (60, 30)
    assert (left, top) == (70, 80)


@pytest.mark.parametrize("full_res", [True, False])
@pytest.mark.parametrize("fill", [0, 1])
def test_the_result_shows_under_the_mask_alone(full_res, fill):
    """The rest of the original comes back to the bit, at its own size where only the region was rendered."""
    original = Image.effect_noise((120, 90), 64).convert("RGB")
    box = (30, 20, 60, 50)
    use = MaskUse(blur_x=0, blur_y=0, fill=fill, full_res=full_res)
    found = masked(original, rectangle(original.size, box), use, width=64, height=64, resize_mode=0)
    assert found.image.size == found.mask.size == (64, 64)
    whole = laid_over(Image.new("RGB", (64, 64), RED), found)
    assert whole.size == ((120, 90) if full_res else (64, 64))
    inside, outside = ((45, 35), (5, 5)) if full_res else ((24, 24), (3, 3))
    assert whole.getpixel(inside) == RED
    assert whole.getpixel(outside) == found.original.getpixel(outside)
    if full_res:
        assert whole.crop((0, 0, 120, 20)).tobytes() == original.crop((0, 0, 120, 20)).tobytes()


def test_fill_gives_what_is_hidden_the_colour_of_its_surroundings():
    """inpainting_fill 0: nothing of what lay under the mask is left; 1: it is."""
    original = Image.new("RGB", (64, 64), GREEN)
    original.paste(RED, (20, 20, 44, 44))
    mask = rectangle((64, 64), (16, 16, 48, 48))
    sizes = {"width": 64, "height": 64, "resize_mode": 0}
    hidden = masked(original, mask, MaskUse(0, 0, fill=0, full_res=False), **sizes).image
    assert all(abs(a - b) < 6 for a, b in zip(hidden.getpixel((32, 32)), GREEN, strict=True))
    assert masked(original, mask, MaskUse(0, 0, fill=1, full_res=False), **sizes).image.getpixel((32, 32)) == RED


def test_masks_may_be_inverted_blurred_or_transparent():
    """Black and white swapped; an edge that fades; the hole in a picture with transparency."""
    mask = rectangle((64, 64), (0, 0, 32, 64))
    original = Image.new("RGB", (64, 64), GREEN)
    sizes = {"width": 64, "height": 64, "resize_mode": 0}
    inverted = masked(original, mask, MaskUse(0, 0, invert=True, full_res=False), **sizes)
    assert (inverted.mask.getpixel((5, 5)), inverted.mask.getpixel((60, 5))) == (0, 255)
    blurred = masked(original, mask, MaskUse(4, 4, full_res=False), **sizes)
    assert 0 < blurred.mask.getpixel((34, 32)) < 128
    hole = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    hole.putpixel((1, 1), (0, 0, 0, 0))
    assert (mask_in(hole).getpixel((0, 0)), mask_in(hole).getpixel((1, 1))) == (255, 0)
    assert mask_in(Image.new("RGB", (4, 4), "white")).getpixel((0, 0)) == 255


def test_a_mask_without_white_is_refused():
    """There would be nothing to paint."""
    black = Image.new("L", (8, 8))
    with pytest.raises(Refused) as refused:
        masked(Image.new("RGB", (8, 8)), black, MaskUse(), width=8, height=8, resize_mode=0)
    assert refused.value.field == "mask"


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/png;name=a.png;base64,"])
def test_pictures_come_in_base64_with_a_prefix_or_without(prefix):
    """Line breaks and missing padding do no harm."""
    text = base64_of(encoded(Image.new("RGB", (5, 4), RED), "png"))
    found = picture_in(prefix + text[:40] + "\n" + text[40:].rstrip("="), field="x", max_pixels=100)
    assert (found.size, found.getpixel((0, 0))) == ((5, 4), RED)
    with pytest.raises(Refused, match="more than a picture may have"):
        picture_in(text, field="x", max_pixels=19)


@pytest.mark.parametrize("text", ["https://example.com/a.png", "é", "AAAA", "data:image/png;base64,", "a" * 5])
def test_what_is_no_picture_is_refused(text):
    """A URL is not fetched, and what does not decode is named."""
    with pytest.raises(Refused) as refused:
        picture_in(text, field="init_images.0", max_pixels=100)
    assert refused.value.field == "init_images.0"


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_composed_picture_keeps_its_text(image_format):
    """What A1111 tells of a picture lies in the file that the client gets, in every format."""
    text = "a fox, ünïcode\nSteps: 1, Sampler: Euler, Seed: 3"
    data = encoded(Image.new("RGB", (8, 8), GREEN), image_format, text=text)
    assert texts_in(data)[0] == text
    assert Image.open(io.BytesIO(data)).format == image_format.upper()


def test_transparency_lies_on_white():
    """As in A1111, and as the farm's workers have it."""
    assert on_white(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert bytes_of("AAAA", field="x") == b"\0\0\0"
