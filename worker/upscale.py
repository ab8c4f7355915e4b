"""Enlarging a finished picture by a model: which there are, and how a picture of any size goes through one.

Models are ESRGANs (worker/esrgan.py) in `upscalers/` of FARM_MODELS_DIR. `lanczos` needs no model and no device, and is
not made here.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import pad

from farm.errors import ModelBroken, RenderFailed
from worker.esrgan import RRDBNet

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LANCZOS: Final = "lanczos"
TILE_PX: Final = 256
OVERLAP_PX: Final = 32
"""How far a tile sees beyond its edges. A deep network sees further, but what lies there hardly acts on a pixel."""

_SUFFIX: Final = ".safetensors"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WHOLE_PX: Final = 4  # sides that every network takes: some fold squares of up to 4 pixels into channels


class Upscalers:
    """The models in `upscalers/`; the one used last stays on the device."""

    def __init__(self, models_dir: Path | None, device: torch.device) -> None:
        self._folder = None if models_dir is None else models_dir / "upscalers"
        self._device = device
        self._loaded: tuple[Path, RRDBNet, str] | None = None

    @property
    def names(self) -> list[str]:
        """What `upscaler` may be."""
        found = [] if self._folder is None else sorted(self._folder.glob(f"*{_SUFFIX}"))
        return [LANCZOS, *(path.stem for path in found)]

    def find(self, name: str) -> Path | None:
        """Return the file of an upscaler, None for Lanczos; raises RenderFailed with the choices."""
        if name == LANCZOS:
            return None
        if self._folder is not None and _NAME.fullmatch(name) and (path := self._folder / f"{name}{_SUFFIX}").is_file():
            return path
        raise RenderFailed(f"output.upscaler: there is no upscaler {name!r}; there are: {', '.join(self.names)}")

    def enlarge(self, name: str, pixels: NDArray[np.uint8], factor: int) -> tuple[NDArray[np.uint8], str]:
        """Return `pixels`, uint8 [h, w, 3], `factor` times as large, and the sha256 of the model's file.

        A model of a smaller factor is applied again, a larger result is brought down by Lanczos. Raises RenderFailed
        for an unknown name and ModelBroken, with the reason, for a file that is no such model.
        """
        path = self.find(name)
        assert path is not None  # noqa: S101  Lanczos is not made here
        network, digest = self._load(path)
        if network.scale == 1:
            raise ModelBroken(f"upscaler {name}: it restores pictures and does not enlarge them")
        height, width, _ = pixels.shape
        while pixels.shape[0] < height * factor:
            pixels = enlarge_in_tiles(network, pixels)
        if pixels.shape[0] > height * factor:
            size = (width * factor, height * factor)
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        return pixels, digest

    def _load(self, path: Path) -> tuple[RRDBNet, str]:
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None  # before the next one takes memory
            dtype = torch.float16 if self._device.type == "cuda" else torch.float32
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                network = RRDBNet.of(load_file(path)).to(self._device, dtype)
            except (OSError, ValueError, SafetensorError) as error:
                raise ModelBroken(f"upscaler {path.stem}: {error}") from error
            self._loaded = (path, network, digest)
        return self._loaded[1:]


def enlarge_in_tiles(
    network: RRDBNet, pixels: NDArray[np.uint8], *, tile_px: int = TILE_PX, overlap_px: int = OVERLAP_PX
) -> NDArray[np.uint8]:
    """Return `pixels`, uint8 [h, w, 3], `network.scale` times as large, computed tile by tile.

    Each tile is computed with `overlap_px` of its surroundings, which are cut off again; both are multiples of 4.
    """
    height, width, _ = pixels.shape
    weight = network.conv_first.weight
    image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))[None].to(weight.device, weight.dtype) / 255
    image = pad(image, (0, -width % _WHOLE_PX, 0, -height % _WHOLE_PX), mode="replicate")
    scale = network.scale
    enlarged = np.empty((image.shape[2] * scale, image.shape[3] * scale, 3), np.uint8)
    for top in range(0, image.shape[2], tile_px):
        for left in range(0, image.shape[3], tile_px):
            above, before = min(overlap_px, top), min(overlap_px, left)
            tile = image[:, :, top - above : top + tile_px + overlap_px, left - before : left + tile_px + overlap_px]
            made = network(tile)[0, :, above * scale :, before * scale :][:, : tile_px * scale, : tile_px * scale]
            made = (made.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            rows, columns, _ = made.shape
            enlarged[top * scale : top * scale + rows, left * scale : left * scale + columns] = made
    return enlarged[: height * scale, : width * scale]
