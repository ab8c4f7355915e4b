"""Studios (tests/parity.py) for units that bring pictures along: diffusers' img2img and inpaint pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import diffusers
import numpy as np
from PIL import Image

from parity import Studio
from tiny_models import SIZE_PX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from farm.jobs import Unit
    from worker.pipelines.base import Inputs

_FROM_PICTURES: Final = {
    "StableDiffusionPipeline": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "StableDiffusionInpaintPipeline": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "StableDiffusionXLPipeline": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "FluxPipeline": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
}


class PictureStudio(Studio):
    """A studio that renders what brings a picture along by the pipeline for it, of the same parts."""

    def __init__(self, ours: Any, reference: Any) -> None:
        super().__init__(ours, reference)
        self._siblings: dict[str, Any] = {}

    def sibling(self, name: str) -> Any:
        """Return diffusers' pipeline `name`, made of the reference's parts."""
        if name not in self._siblings:
            cls = getattr(diffusers, name)
            pipeline = cls(**self.reference.components)
            pipeline.set_progress_bar_config(disable=True)
            self._siblings[name] = pipeline
        return self._siblings[name]

    def pipeline_for(self, _unit: Unit, inputs: Inputs) -> Any:
        """Return the inpaint pipeline where there is a mask, the img2img pipeline where there is a picture."""
        if inputs.image is None:
            return self.reference
        return self.sibling(_FROM_PICTURES[type(self.reference).__name__][inputs.mask is not None])

    def arguments_for(self, unit: Unit, inputs: Inputs) -> Mapping[str, Any]:
        """Return what text-to-image takes, and the pictures; img2img takes one of the right size."""
        arguments = dict(super().arguments_for(unit, inputs))
        if inputs.image is None:
            return arguments
        image = Image.fromarray(inputs.image)
        if inputs.mask is None:
            del arguments["width"], arguments["height"]
            image = image.resize((unit.width, unit.height), Image.Resampling.LANCZOS)
        else:
            arguments["mask_image"] = Image.fromarray(inputs.mask)
        return {**arguments, "image": image, "strength": unit.strength}


def control_arguments(unit: Unit, inputs: Inputs) -> Mapping[str, Any]:
    """Return what diffusers' ControlNet pipelines take beside what their siblings without ControlNets do."""
    return {
        "image" if inputs.image is None else "control_image": [Image.fromarray(pixels) for pixels in inputs.controls],
        "width": unit.width,
        "height": unit.height,
        "controlnet_conditioning_scale": [net.conditioning_scale for net in unit.controlnets],
        "control_guidance_start": [net.guidance_start for net in unit.controlnets],
        "control_guidance_end": [net.guidance_end for net in unit.controlnets],
    }


def picture(seed: int, width: int = SIZE_PX, height: int = SIZE_PX) -> NDArray[np.uint8]:
    """Return a random picture, uint8 [h, w, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(seed: int, width: int = SIZE_PX, height: int = SIZE_PX) -> NDArray[np.uint8]:
    """Return a random mask with all shades of grey, uint8 [h, w]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
