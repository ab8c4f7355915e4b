"""Pixels to bytes, with the recipe inside: what was asked, of which model, on what kind of device.

The bytes follow from request, pixels and recipe alone: no job, no attempt, no time stands in them, so a repeat of a
unit writes the same file. Two forms of the recipe go in: the text that AUTOMATIC1111 writes, which galleries read,
and JSON, which loses nothing. A PNG carries them as text chunks `parameters` and `farm`, JPEG and WebP in their EXIF
as UserComment and MakerNote.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from isal import isal_zlib
from PIL import ExifTags, Image

from farm.errors import Refused
from farm.jobs import Reproducibility, Unit
from farm.schedulers import find_scheduler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worker.seat import Rendered

RECIPE_VERSION: Final = 1

_PARAMETERS: Final = "parameters"
_RECIPE: Final = "farm"
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_AVERAGE_FILTER: Final = 3
_UNICODE_COMMENT: Final = b"UNICODE\x00"
_MAX_EXIF_BYTES: Final = 65_000  # a JPEG segment holds 65,533 with the tables around our two entries


def encode_image(unit: Unit, rendered: Rendered) -> bytes:
    """Return the file that `unit` asks for, made of `rendered.pixels` (uint8 [height, width, 3])."""
    text = infotext(unit, model_hash=rendered.model_hash)
    recipe = json.dumps(recipe_of(unit, rendered), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if unit.output.format == "png":
        exact = unit.reproducibility is Reproducibility.INVARIANT
        return _png(rendered.pixels, {_PARAMETERS: text, _RECIPE: recipe}, exact=exact)
    file = io.BytesIO()
    Image.fromarray(rendered.pixels).save(
        file, unit.output.format, quality=unit.output.quality, exif=_exif(text, recipe)
    )
    return file.getvalue()


def recipe_of(unit: Unit, rendered: Rendered) -> dict[str, Any]:
    """Return all that the image depends on, whichever job asked for it."""
    return {
        "version": RECIPE_VERSION,
        "prompt": unit.prompt,
        "negative_prompt": unit.negative_prompt,
        "seed": unit.seed,
        "num_inference_steps": unit.num_inference_steps,
        "guidance_scale": unit.guidance_scale,
        "scheduler": unit.scheduler,
        "width": unit.width,
        "height": unit.height,
        "model": unit.model,
        "model_sha256": rendered.model_hash,
        "reproducibility": str(unit.reproducibility),
        "device": rendered.device,
        "dtype": rendered.dtype,
        "farm_version": _farm_version(),
    }


def infotext(unit: Unit, *, model_hash: str) -> str:
    """Return the recipe as AUTOMATIC1111 writes it: prompt, negative prompt if any, one line of parameters."""
    scheduler = find_scheduler(unit.scheduler)
    parameters = {
        "Steps": unit.num_inference_steps,
        "Sampler": scheduler.a1111_sampler,
        "Schedule type": scheduler.a1111_schedule,
        "CFG scale": unit.guidance_scale,
        "Seed": unit.seed,
        "Size": f"{unit.width}x{unit.height}",
        "Model hash": model_hash[:10],
        "Model": unit.model,
        "Version": f"diffusion-farm {_farm_version()}",
    }
    negative = f"\nNegative prompt: {unit.negative_prompt}" if unit.negative_prompt else ""
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in parameters.items())
    return f"{unit.prompt}{negative}\n{line}"


def read_recipe(data: bytes) -> dict[str, Any]:
    """Return the recipe inside one of our images, of any format; raises Refused when there is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "PNG":
                recipe = image.info[_RECIPE]
            else:
                recipe = zlib.decompress(image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote])
        return cast("dict[str, Any]", json.loads(recipe))
    except (OSError, KeyError, ValueError, zlib.error) as error:
        raise Refused("this is no image with a recipe of the farm inside") from error


def _quoted(value: object) -> str:
    """Quote what would end the field early, as AUTOMATIC1111 does."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _png(pixels: NDArray[np.uint8], texts: dict[str, str], *, exact: bool) -> bytes:
    """Write a PNG: one filter for all rows, a fast compressor.

    isal compresses 1024 x 1024 in 9 ms of CPU (Pillow's fastest: 90), but its bytes depend on the kind of CPU.
    `exact` takes zlib's run-length strategy instead, 30 ms, which leaves a compressor nothing to choose.
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
            _chunk(b"IHDR", header),
            *(_text_chunk(keyword, text) for keyword, text in texts.items()),
            _chunk(b"IDAT", compressed),
            _chunk(b"IEND", b""),
        )
    )


def _filtered(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Apply PNG's filter 3, each byte less the mean of those left and above: smallest of the fast ones here."""
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * 3)
    left = np.zeros_like(rows)
    left[:, 3:] = rows[:, :-3]
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    mean = (left & above) + ((left ^ above) >> 1)  # floor((left + above) / 2) without a ninth bit
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = _AVERAGE_FILTER
    np.subtract(rows, mean, out=filtered[:, 1:])
    return filtered


def _text_chunk(keyword: str, text: str) -> bytes:
    """Write tEXt where Latin-1 suffices, iTXt elsewhere; a NUL would end either."""
    text = text.replace("\0", "")
    try:
        return _chunk(b"tEXt", keyword.encode() + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        uncompressed_any_language = b"\0\0\0\0\0"
        return _chunk(b"iTXt", keyword.encode() + uncompressed_any_language + text.encode("utf-8", errors="replace"))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _exif(text: str, recipe: str) -> Image.Exif:
    note = zlib.compress(recipe.encode("utf-8", errors="replace"))
    comment = _UNICODE_COMMENT + text.encode("utf-16-be", errors="replace")
    exif = Image.Exif()
    entries = exif.get_ifd(ExifTags.IFD.Exif)
    # Only prompts of some 8,000 rare characters come near the limit; the recipe stays whole, the text gives way.
    entries[ExifTags.Base.UserComment] = comment[: _MAX_EXIF_BYTES - len(note) & ~1]
    entries[ExifTags.Base.MakerNote] = note
    return exif


@cache
def _farm_version() -> str:
    return metadata.version("diffusion-farm")
