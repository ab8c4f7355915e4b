"""Stable Diffusion 1.x: CLIP text encoder, UNet, VAE, computing what diffusers' StableDiffusionPipeline computes.

Knows no lanes and keeps no unit's state; the sampler is not here either (worker/sampling.py).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from farm.errors import RenderFailed
from worker.pipelines.base import Encoded, guide, pack, pad_rows
from worker.pipelines.pixels import to_pixels
from worker.sampling import TimestepOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from farm.jobs import Unit
    from farm.prompts import Lora
    from worker.pipelines.base import Inputs, Ride

_CACHED_PROMPTS: Final = 512
"""Text embeddings kept: 77 x 768 fp16 numbers each, 58 MiB in all."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """A unit's text embeddings, [1, 77, width] each; `negative` only when the unit is guided."""

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
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder.to(device).eval().requires_grad_(requires_grad=False)
        self._unet = unet.to(device, memory_format=layout).eval().requires_grad_(requires_grad=False)
        self._vae = vae.to(device, memory_format=layout).eval().requires_grad_(requires_grad=False)
        self._layout = layout
        self._embeddings: OrderedDict[str, tuple[torch.Tensor, tuple[str, ...]]] = OrderedDict()

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
        """Encode the prompt, and the negative one when the unit is guided. Says so when a prompt was too long."""
        prompt, warnings = self._embed(unit.prompt, "prompt")
        if not unit.guided:
            return Encoded(Conditioning(prompt, None), warnings=warnings)
        negative, more = self._embed(unit.negative_prompt, "negative_prompt")
        return Encoded(Conditioning(prompt, negative), warnings=warnings + more)

    def adapt(self, loras: tuple[Lora, ...]) -> None:
        """Refuse LoRAs."""
        if loras:
            raise RenderFailed("LoRAs cannot be put into this model yet")

    def encode_ahead(self, _units: Sequence[Unit]) -> None:
        """Do nothing: the text encoder is at hand."""

    def _embed(self, text: str, field_name: str) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Return the embedding of `text`, [1, 77, width], and a warning if its end was cut off."""
        if text in self._embeddings:
            self._embeddings.move_to_end(text)
        else:
            self._embeddings[text] = self._encode_text(text)
            if len(self._embeddings) > _CACHED_PROMPTS:
                self._embeddings.popitem(last=False)
        embedding, lost = self._embeddings[text]
        return embedding, tuple(f"{field_name} is too long for the model, ignored: {part!r}" for part in lost)

    def _encode_text(self, text: str) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Run the text encoder at batch 1: a cached embedding has the same bits as a fresh one."""
        limit = self._tokenizer.model_max_length
        tokens = self._tokenizer(text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        whole = self._tokenizer(text, return_tensors="pt", verbose=False).input_ids
        lost = () if whole.shape[1] <= limit else (self._tokenizer.decode(whole[0, limit - 1 : -1]),)
        has_mask = getattr(self._text_encoder.config, "use_attention_mask", False)
        embedding = self._text_encoder(
            tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device) if has_mask else None,
        )[0]
        return embedding, lost

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
