"""What a run starts from: noise, a picture under noise, and with a mask what of the picture stays.

All that a run draws before its first call is drawn here, in the order of diffusers' text-to-image, img2img and inpaint
pipelines: samplers go on drawing from the same generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import interpolate

from farm.errors import RenderFailed
from worker.pipelines.pixels import image_tensor, mask_tensor
from worker.sampling import draw_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.jobs import Unit
    from worker.pipelines.base import Inputs, Pipeline
    from worker.sampling import Schedule


class Known(NamedTuple):
    """The part of a picture that inpainting keeps, for models that know nothing of masks.

    A mask is all or nothing, and samplers go number by number: what is painted anew is never edited, and what a sampler
    makes of the rest is always thrown away. So a table holds, even of samplers that remember what they made.
    """

    mask: torch.Tensor  # [1, 1, h/8, w/8], 1 where it is painted anew
    image: torch.Tensor  # [1, *latent_shape]
    noise: torch.Tensor  # [1, *latent_shape]

    def keep(self, latents: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
        """Return `latents` with the known part put back, as noisy as `weights` of (image, noise) make it."""
        image_weight, noise_weight = weights
        return (1 - self.mask) * (image_weight * self.image + noise_weight * self.noise) + self.mask * latents


class Start(NamedTuple):
    """The beginning of a run."""

    latents: torch.Tensor  # [1, *latent_shape]
    known: Known | None = None
    channels: torch.Tensor | None = None
    """[1, 1 + c, h/8, w/8], mask and masked picture, where the model takes them beside the latents."""


def start(pipeline: Pipeline, unit: Unit, inputs: Inputs, schedule: Schedule, generator: torch.Generator) -> Start:
    """Return where the run of `unit` begins.

    Raises RenderFailed when the model needs a mask and there is none.
    """
    if pipeline.takes_mask and inputs.mask is None:
        raise RenderFailed(f"{unit.model} is made for inpainting: name image and mask_image (and no hires)")
    shape = pipeline.latent_shape(unit.height, unit.width)
    if not inputs.has_start:
        return Start(draw_noise(generator, shape) * schedule.init_noise_sigma)
    device = pipeline.device
    image = None if inputs.image is None else image_tensor(inputs.image, unit.width, unit.height).to(device)
    # Inpainting at full strength begins with noise alone; img2img never does.
    is_pure = inputs.mask is not None and unit.strength == 1.0
    picture = inputs.latents
    if image is not None and not (is_pure and pipeline.takes_mask):
        picture = pipeline.encode_image(image, generator)
    noise = draw_noise(generator, shape).to(device)
    if picture is None or is_pure:
        latents = noise * schedule.init_noise_sigma
    else:
        image_weight, noise_weight = schedule.start
        latents = image_weight * picture + noise_weight * noise
    if inputs.mask is None:
        return Start(latents)
    mask = mask_tensor(inputs.mask, unit.width, unit.height).to(device)
    small = interpolate(mask, size=shape[-2:])
    if pipeline.takes_mask and image is not None:
        masked = pipeline.encode_image(image * (1 - mask), generator)
        return Start(latents, channels=torch.cat([small, masked], dim=1))
    assert picture is not None  # noqa: S101  a mask comes with a picture
    draw_noise(generator, shape)  # diffusers encodes the masked picture for these models too, and does not use it
    return Start(latents, known=Known(small, picture, noise))
