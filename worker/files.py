"""Which files become of a finished image: itself, and the thumbnail and the enlarged version that a job may ask for.

Everything here runs on the threads that deliver, never on the engine's: scaling by Lanczos and encoding are the CPU's
work. A version that a model enlarged comes from the engine.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from PIL import Image

from farm.jobs import Picture
from farm.recipes import Recipe
from farm.requests import Output
from farm.storage import CONTENT_TYPES, object_key, thumbnail_key, upscaled_key
from worker.images import encode_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from farm.jobs import Unit
    from farm.recipes import FileKind
    from worker.seat import Rendered

_THUMBNAIL: Final = Output(format="webp", quality=80)


class File(NamedTuple):
    """One object to put."""

    key: str
    data: bytes
    content_type: str


def files_of(unit: Unit, rendered: Rendered) -> Iterator[File]:
    """Yield the files of a unit, each encoded when it is asked for; the image comes last, when all else is there.

    A repeat of the unit yields the same bytes under the same keys. Raises RenderFailed.
    """
    output = unit.output
    if (longest_px := output.thumbnail_px) is not None:
        pixels = shrink(rendered.pixels, longest_px)
        data = encode_image(pixels, recipe_of(unit, rendered, "thumbnail"), _THUMBNAIL)
        yield File(thumbnail_key(unit.job, unit.index), data, CONTENT_TYPES[_THUMBNAIL.format])
    content_type = CONTENT_TYPES[output.format]
    if (factor := output.upscale) is not None:
        pixels = enlarge(rendered.pixels, factor) if rendered.upscaled is None else rendered.upscaled
        data = encode_image(pixels, recipe_of(unit, rendered, "upscaled"), output)
        yield File(upscaled_key(unit.job, unit.index, output.format, factor), data, content_type)
    data = encode_image(rendered.pixels, recipe_of(unit, rendered), output)
    yield File(object_key(unit.job, unit.index, output.format), data, content_type)


def recipe_of(unit: Unit, rendered: Rendered, file: FileKind = "image") -> Recipe:
    """Return all that one file of a unit depends on, whichever job asked for it."""
    asked: dict[FileKind, set[str]] = {
        "image": set(),
        "thumbnail": {"thumbnail_px"},
        "upscaled": {"upscale", "upscaler"},
    }
    output = unit.output.model_dump(include={"format", "quality", "safety_checker"} | asked[file])
    return Recipe(
        **{name: getattr(unit, name) for name in Picture.__dataclass_fields__},
        model=unit.model,
        reproducibility=unit.reproducibility,
        output=Output.model_validate(output),
        file=file,
        model_sha256=rendered.model_hash,
        lora_sha256=dict(rendered.lora_hashes),
        inversion_sha256=dict(rendered.inversion_hashes),
        device=rendered.device,
        dtype=rendered.dtype,
        upscaler_sha256=rendered.upscaler_hash if file == "upscaled" else "",
        approximations=rendered.approximations,
        batch_shape=rendered.timings.batch_shape,
        nsfw=rendered.nsfw,
        farm_version=_farm_version(),
    )


def shrink(pixels: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    """Return a picture, uint8 [h, w, 3], whose longer side has at most `longest_px` pixels (Lanczos)."""
    height, width, _ = pixels.shape
    share = min(1.0, longest_px / max(height, width))
    return _resized(pixels, max(1, round(width * share)), max(1, round(height * share)))


def enlarge(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return a picture, uint8 [h, w, 3], `factor` times as large (Lanczos)."""
    height, width, _ = pixels.shape
    return _resized(pixels, width * factor, height * factor)


def _resized(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


@cache
def _farm_version() -> str:
    return metadata.version("diffusion-farm")
