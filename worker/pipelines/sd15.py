"""Stable Diffusion 1.x: CLIP text encoder, UNet, VAE, computing what diffusers' StableDiffusionPipeline computes.

Knows no lanes and keeps no unit's state; the sampler is not here either (worker/sampling.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from farm.errors import RenderFailed
from worker.pipelines.base import Encoded, guide, pack, pad_rows
from worker.pipelines.pixels import to_pixels
from worker.sampling import TimestepOptions
from worker.text.cache import EmbeddingCache
from worker.text.clip import ClipText, encode_texts
from worker.text.inversion import Inversions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from farm.jobs import Unit
    from farm.prompts import Lora
    from worker.pipelines.base import Inputs, Ride

_CACHE_BYTES: Final = 64 * 2**20
"""For encoded prompts: 77 x 768 fp16 numbers each, so some five hundred of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """A unit's text embeddings, [1, 77 * chunks, width] each; `negative` only when the unit is guided."""

    prompt: torch.Tensor
    negative: torch.Tensor | None


class Sd15Pipeline:
    """One SD 1.x model on one device; its parts are given in `dtype`."""

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        vae: Any,
        scheduler_config: Mapping[str, Any],
        model_hash: str,
        device: torch.device,
        device_name: str,
        dtype: torch.dtype,
        max_batch: int | None = None,
        embeddings_dir: Path | None = None,
    ) -> None:
        self.name = name
        self.model_hash = model_hash
        self.device = device
        self.device_name = device_name
        self.dtype = dtype
        self.max_batch = max_batch
        # As StableDiffusionPipeline does to every scheduler it is given: old configs lack both.
        self.scheduler_config = {**scheduler_config, "steps_offset": 1, "clip_sample": False}
        self._channels: int = vae.config.latent_channels
        self._factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        if unet.config.in_channels != self._channels or unet.config.time_cond_proj_dim is not None:
            raise ValueError(
                f"its UNet takes {unet.config.in_channels} channels"
                f" and time condition {unet.config.time_cond_proj_dim}; only text-to-image UNets"
                f" of {self._channels} channels without guidance embedding are supported"
            )
        # Convolutions of UNet and VAE run on tensor cores without a transpose in this layout; CPUs gain nothing.
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        text_encoder = text_encoder.to(device).eval().requires_grad_(requires_grad=False)
        widths = {"clip_l": text_encoder.config.hidden_size}
        self._clip = ClipText(
            tokenizer,
            text_encoder,
            device=device,
            cache=EmbeddingCache(_CACHE_BYTES),
            inversions=Inversions(embeddings_dir, widths) if embeddings_dir else None,
        )
        self._unet = unet.to(device, memory_format=layout).eval().requires_grad_(requires_grad=False)
        self._vae = vae.to(device, memory_format=layout).eval().requires_grad_(requires_grad=False)
        self._layout = layout

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (4, h/8, w/8)."""
        return (self._channels, height // self._factor, width // self._factor)

    def timestep_options(self, _num_inference_steps: int, _height: int, _width: int) -> TimestepOptions:
        """Return nothing: the number of steps says it all."""
        return TimestepOptions()

    def first_step(self, num_inference_steps: int, strength: float) -> int:
        """Return where img2img begins, rounded as StableDiffusionImg2ImgPipeline does."""
        return num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)

    def encode(self, unit: Unit, _inputs: Inputs) -> Encoded:
        """Encode the prompt, and the negative one when the unit is guided; rows of as many chunks go together."""
        texts = encode_texts(
            [self._clip],
            unit.prompt,
            unit.negative_prompt if unit.guided else None,
            layer="last",
            clip_skip=unit.clip_skip,
            adapters=unit.loras,
        )
        conditioning = Conditioning(texts.prompt[0].states, texts.negative[0].states if texts.negative else None)
        return Encoded(conditioning, form=texts.num_chunks, warnings=texts.warnings)

    def adapt(self, loras: tuple[Lora, ...]) -> None:
        """Refuse LoRAs."""
        if loras:
            raise RenderFailed("LoRAs cannot be put into this model yet")

    def encode_ahead(self, _units: Sequence[Unit]) -> None:
        """Do nothing: the text encoder is at hand."""

    def predict(
        self, latents: torch.Tensor, rides: Sequence[Ride], *, guided: bool, batch_shape: int | None
    ) -> torch.Tensor:
        """Run the UNet once: rows [negative of all seats, prompt of all seats] when guided, else [prompt of all]."""
        latents = pad_rows(latents.to(self.dtype), batch_shape)
        timesteps = pad_rows(pack([ride.timestep for ride in rides], self.device), batch_shape)
        states = pad_rows(torch.cat([ride.conditioning.prompt for ride in rides]), batch_shape)
        if guided:
            negatives = pad_rows(torch.cat([ride.conditioning.negative for ride in rides]), batch_shape)
            states = torch.cat([negatives, states])
            latents = torch.cat([latents, latents])
            timesteps = torch.cat([timesteps, timesteps])
        latents = latents.contiguous(memory_format=self._layout)
        output: torch.Tensor = self._unet(latents, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        if not guided:
            return output[: len(rides)].float()
        without, toward = output.chunk(2)
        return guide(without, toward, rides)

    def encode_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Encode [1, 3, h, w] of -1 to 1, with a sample of the VAE's distribution as diffusers draws it."""
        moments = self._vae.encode(image.to(self.dtype).contiguous(memory_format=self._layout)).latent_dist
        latents: torch.Tensor = moments.sample(generator).float() * self._vae.config.scaling_factor
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [1, 4, h/8, w/8] to uint8 [h, w, 3], still on the device: a quarter of the bytes to copy."""
        return to_pixels(self.decode_image(latents))

    def decode_image(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [1, 4, h/8, w/8] to an image [3, h, w] of numbers from 0 to 1."""
        scaled = (latents / self._vae.config.scaling_factor).to(self.dtype)
        scaled = scaled.contiguous(memory_format=self._layout)
        image: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0][0].float()
        return (image / 2 + 0.5).clamp(0, 1)
