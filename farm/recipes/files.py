"""Where a recipe lies in an image file: what is written there, and how it is found again.

A PNG carries text chunks `parameters` (A1111's text) and `farm` (our JSON); JPEG, WebP and AVIF carry both in their
EXIF, as UserComment and, deflated, as MakerNote. Files come from anybody: what is read is bounded, and pixels are never
decoded.
"""

from __future__ import annotations

import io
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from PIL import ExifTags, Image

from farm.errors import Refused
from farm.recipes.infotext import Infotext, infotext, read_infotext
from farm.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARAMETERS: Final = "parameters"
_RECIPE: Final = "farm"
_UNICODE_COMMENT: Final = b"UNICODE\x00"
_ASCII_COMMENT: Final = b"ASCII\x00\x00\x00"
_MAX_EXIF_BYTES: Final = 65_000  # a JPEG segment holds 65,533 with the tables around our two entries
_MAX_RECIPE_BYTES: Final = 1 << 20


class NoRecipe(Refused):
    """This is no image, or none with a recipe inside."""


def text_chunks_of(recipe: Recipe) -> dict[str, str]:
    """Return what goes into a PNG, by keyword."""
    return {_PARAMETERS: infotext(recipe), _RECIPE: recipe.to_json()}


def exif_of(recipe: Recipe) -> bytes:
    """Return what goes into any other file, as an EXIF block."""
    note = zlib.compress(recipe.to_json().encode("utf-8", errors="replace"))
    comment = _UNICODE_COMMENT + infotext(recipe).encode("utf-16-be", errors="replace")
    exif = Image.Exif()
    entries = exif.get_ifd(ExifTags.IFD.Exif)
    # Only prompts of some 8,000 rare characters come near the limit; the recipe stays whole, the text gives way.
    entries[ExifTags.Base.UserComment] = comment[: _MAX_EXIF_BYTES - len(note) & ~1]
    entries[ExifTags.Base.MakerNote] = note
    return exif.tobytes()  # as an object, Pillow's AVIF takes it for empty


def read_recipe(data: bytes) -> Recipe:
    """Return the recipe inside one of our images; raises NoRecipe when there is none, Refused when it is damaged."""
    with _opened(data) as image:
        if image.format == "PNG":
            text = image.info.get(_RECIPE)
        else:
            note = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.MakerNote)
            text = _inflated(note) if isinstance(note, bytes) else None
        image_format = (image.format or "").lower()
    if not isinstance(text, str) or not text.startswith("{"):  # cameras leave notes of other kinds
        raise NoRecipe("this is no image with a recipe of the farm inside")
    return Recipe.from_json(text, image_format=image_format)


def read_infotext_of(data: bytes) -> Infotext:
    """Return what A1111, or a program that writes as it does, told of an image; raises NoRecipe if that is nothing."""
    text, _ = texts_in(data)
    if not text:
        raise NoRecipe("this image tells nothing of how it was made")
    return read_infotext(text)


def texts_in(data: bytes) -> tuple[str, dict[str, str]]:
    """Return A1111's text in an image, empty without one, and all other texts by their names; raises NoRecipe."""
    with _opened(data) as image:
        texts = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
        text = texts.pop(_PARAMETERS, None)
        if text is None:
            text = _comment(image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment))
    return text, texts


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image file without decoding its pixels."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except Refused:
        raise
    # What Pillow raises on broken files; of a file's metadata too, which it reads when they are asked for.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NoRecipe("this is no image with a recipe inside: it cannot be read as an image") from error


def _inflated(note: bytes) -> str | None:
    try:
        return zlib.decompressobj().decompress(note, _MAX_RECIPE_BYTES).decode("utf-8")
    except (zlib.error, UnicodeDecodeError):
        return None


def _comment(value: object) -> str:
    """Return the text of a UserComment; EXIF lets its first eight bytes tell the encoding."""
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else ""
    if value.startswith(_UNICODE_COMMENT):
        text = value.removeprefix(_UNICODE_COMMENT)
        # Of text that is mostly ASCII, whoever wrote the low byte first has the zeros in the odd places.
        is_little = text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if is_little else "utf-16-be", errors="replace")
    return value.removeprefix(_ASCII_COMMENT).decode("utf-8", errors="replace")
