"""Between pictures and latents: one AutoencoderKL, its scaling, and the types that its numbers need."""

from __future__ import annotations

from typing import Any

import torch

from worker.pipelines.base import conv_layout
from worker.pipelines.pixels import to_pixels
from worker.sampling import draw_noise


class ImageCoder:
    """Encodes and decodes one image at a time: batches of other sizes would change its last bits."""

    def __init__(self, vae: Any, *, device: torch.device) -> None:
        config = vae.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self._scale: float = config.scaling_factor
        self._shift: float = getattr(config, "shift_factor", None) or 0.0
        self._vae = vae
        self._device = device
        self._layout = conv_layout(device)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of an image's latents; sizes in pixels."""
        return (self.channels, height // self.factor, width // self.factor)

    def encode(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Encode [1, 3, h, w] of -1 to 1 to float32 latents [1, c, h/8, w/8].

        A sample of the VAE's distribution, drawn from `generator` as diffusers' pipelines draw it, but always in
        float32: a seed means the same noise in every precision.
        """
        distribution = self._vae.encode(self._ready(image)).latent_dist
        mean, deviation = distribution.mean.float(), distribution.std.float()
        latents: torch.Tensor = mean + deviation * draw_noise(generator, mean.shape[1:]).to(mean.device)
        return (latents - self._shift) * self._scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [1, c, h/8, w/8] to uint8 [h, w, 3], still on the device: a quarter of the bytes to copy."""
        return to_pixels(self.decode_image(latents))

    def decode_image(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [1, c, h/8, w/8] to an image [3, h, w] of numbers from 0 to 1."""
        image: torch.Tensor = self._vae.decode(self._ready(latents / self._scale + self._shift), return_dict=False)[0]
        return (image[0].float() / 2 + 0.5).clamp(0, 1)

    def _ready(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._vae.dtype).contiguous(memory_format=self._layout)
