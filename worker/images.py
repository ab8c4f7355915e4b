"""Pixels to bytes of an image file, with the recipe inside.

The bytes follow from pixels and recipe alone. What a recipe says and where it lies in a file is farm.recipes' business,
which files become of a unit that of worker/files.py.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from isal import isal_zlib
from PIL import Image, features

from farm.errors import RenderFailed
from farm.recipes import exif_of, text_chunks_of
from farm.requests import Reproducibility

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from farm.recipes import Recipe
    from farm.requests import Output

FULL_COLOUR_QUALITY: Final = 95
"""From this quality on, JPEG and AVIF keep colours at full resolution (4:4:4)."""

LOSSLESS_QUALITY: Final = 100
"""WebP of this quality loses nothing."""

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_AVERAGE_FILTER: Final = 3
_BAND: Final = 64
"""Rows that are filtered at a time."""


def encode_image(pixels: NDArray[np.uint8], recipe: Recipe, output: Output) -> bytes:
    """Return the file that `output` asks for, made of `pixels` (uint8 [height, width, 3]).

    Raises RenderFailed when the format cannot hold so many pixels, or this machine cannot write it.
    """
    if output.format == "png":
        exact = recipe.reproducibility is Reproducibility.INVARIANT
        return _png(pixels, text_chunks_of(recipe), exact=exact)
    if output.format == "avif" and not features.check("avif"):
        raise RenderFailed("output.format: this worker's Pillow was built without AVIF; png, jpeg and webp work")
    file = io.BytesIO()
    try:
        Image.fromarray(pixels).save(file, output.format, exif=exif_of(recipe), **_settings(output))
    except (OSError, ValueError) as error:
        height, width, _ = pixels.shape
        raise RenderFailed(f"{width}x{height} pixels do not fit into a {output.format} file: {error}") from error
    return file.getvalue()


def _settings(output: Output) -> dict[str, Any]:
    """Return Pillow's settings for a quality; its defaults depend on version and machine where they are not named."""
    full_colour = output.quality >= FULL_COLOUR_QUALITY
    match output.format:
        case "jpeg":
            return {"quality": output.quality, "subsampling": "4:4:4" if full_colour else "4:2:0"}
        case "webp":
            return {"quality": output.quality, "lossless": output.quality >= LOSSLESS_QUALITY, "method": 4}
        case _:
            return {
                "quality": output.quality,
                "subsampling": "4:4:4" if full_colour else "4:2:0",
                "codec": "aom",
                "speed": 6,
                "max_threads": 1,  # others encode beside us; and nothing is left to how threads share the work
            }


def _png(pixels: NDArray[np.uint8], texts: dict[str, str], *, exact: bool) -> bytes:
    """Write a PNG: one filter for all rows, a fast compressor.

    isal compresses 1024 x 1024 in 10 ms of CPU (Pillow's fastest: 90), but its bytes depend on the kind of CPU.
    `exact` takes zlib's run-length strategy instead, 33 ms, which leaves a compressor nothing to choose. All else takes
    2 ms (bench/engine_overhead.py).
    """
    height, width, _ = pixels.shape
    filtered = _filtered(pixels).data
    if exact:
        deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
        compressed = deflate.compress(filtered) + deflate.flush()
    else:
        compressed = isal_zlib.compress(filtered, 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    return b"".join(
        (
            _PNG_SIGNATURE,
            *_chunk(b"IHDR", header),
            *(part for keyword, text in texts.items() for part in _text_chunk(keyword, text)),
            *_chunk(b"IDAT", compressed),
            *_chunk(b"IEND", b""),
        )
    )


def _filtered(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Apply PNG's filter 3, each byte less the mean of those left and above: smallest of the fast ones here."""
    height, width, _ = pixels.shape
    padded = np.zeros((1 + height, 3 + width * 3), np.uint8)  # nothing lies above the first row, and left of it
    padded[1:, 3:] = pixels.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = _AVERAGE_FILTER
    for top in range(0, height, _BAND):  # what is done to a band is done in the CPU's caches: half the time
        rows, over = padded[1 + top :][:_BAND], padded[top:height][:_BAND]
        left, above = rows[:, :-3], over[:, 3:]
        mean = (left & above) + ((left ^ above) >> 1)  # floor((left + above) / 2) without a ninth bit
        np.subtract(rows[:, 3:], mean, out=filtered[top : top + _BAND, 1:])
    return filtered


def _text_chunk(keyword: str, text: str) -> tuple[bytes, ...]:
    """Write tEXt where Latin-1 suffices, iTXt elsewhere; a NUL would end either."""
    text = text.replace("\0", "")
    try:
        return _chunk(b"tEXt", keyword.encode() + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        uncompressed_any_language = b"\0\0\0\0\0"
        return _chunk(b"iTXt", keyword.encode() + uncompressed_any_language + text.encode("utf-8", errors="replace"))


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    """Return a chunk in parts: the one of the pixels is too large to be copied for nothing."""
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind)))
