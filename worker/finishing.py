"""What is done on the device to a picture that is decoded: the safety check, and enlarging by a model.

The engine calls it, on its own thread, for nothing else may touch the device; the seconds count as the unit's. The
check comes after the engine has looked for broken pictures, for what it flags is black on purpose. Lanczos and encoding
are the delivering threads' work (worker/files.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worker.safety import SafetyChecker
from worker.upscale import LANCZOS, Upscalers

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from farm.jobs import Unit


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture as it goes to the store, uint8 [h, w, 3]."""

    pixels: NDArray[np.uint8]
    upscaled: NDArray[np.uint8] | None = None  # where a model enlarged it
    upscaler_hash: str = ""  # sha256 of that model's file, hex
    nsfw: bool | None = None  # None where nobody asked
    warnings: tuple[str, ...] = ()


class Finishing:
    """The safety checker and the upscalers in `models_dir`; without one there are none."""

    def __init__(self, models_dir: Path | None = None, device: torch.device | None = None) -> None:
        device = device or torch.device("cpu")
        self._checker = SafetyChecker(models_dir, device)
        self._upscalers = Upscalers(models_dir, device)

    def prepare(self, unit: Unit) -> None:
        """See to it that what `unit` asks for is there, downloading it if need be; for the threads that wait anyway.

        Raises RenderFailed for an upscaler that is not there, with the choices, and ModelBroken for a checker.
        """
        if unit.output.upscale is not None:
            self._upscalers.find(unit.output.upscaler)
        if unit.output.safety_checker:
            self._checker.find()

    def finish(self, unit: Unit, pixels: NDArray[np.uint8]) -> Finished:
        """Do to `pixels`, uint8 [h, w, 3], what `unit` asks for. Raises ModelBroken when a model cannot be loaded."""
        nsfw = self._checker.flags(pixels) if unit.output.safety_checker else None
        warnings: tuple[str, ...] = ()
        if nsfw:
            pixels = np.zeros_like(pixels)
            warnings = ("the safety checker flagged the picture, so it is black",)
        upscaled, upscaler_hash = None, ""
        if unit.output.upscale is not None and unit.output.upscaler != LANCZOS:
            upscaled, upscaler_hash = self._upscalers.enlarge(unit.output.upscaler, pixels, unit.output.upscale)
        return Finished(pixels, upscaled, upscaler_hash, nsfw, warnings)
