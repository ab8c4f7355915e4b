"""Flux.1 (schnell, dev): T5 and the pool of a CLIP, computing what diffusers' FluxPipeline computes.

Latents are kept as the VAE has them, [16, h/8, w/8]; the transformer's patches exist within a forward only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from worker.caching import FirstBlockCache
from worker.pipelines.flow import PATCH, FlowModel, Rows, Text
from worker.sampling import TimestepOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from farm.catalog import Family
    from farm.jobs import Unit
    from worker.pipelines.base import Encoded, Inputs
    from worker.pipelines.latent import Loaded


class FluxPipeline(FlowModel):
    """One Flux.1 model on one device."""

    family: ClassVar[Family] = "flux"
    component_types: ClassVar[Mapping[str, Any]] = {
        "tokenizer": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "tokenizer_2": T5Tokenizer,
        "text_encoder_2": T5EncoderModel,
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
    }
    unbatched: ClassVar[tuple[str, ...]] = ("txt_ids", "img_ids")
    cache_bytes: ClassVar[int] = 192 * 2**20  # 512 x 4096 numbers of T5 in 16 bits are 4 MiB
    max_shift: ClassVar[float] = 1.15

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        parts = loaded.parts
        self._transformer = parts["transformer"]
        self._first_block_cache = FirstBlockCache(self._transformer)
        channels = self._transformer.config.in_channels
        if channels != self.coder.channels * PATCH**2:
            raise ValueError(
                f"its transformer takes {channels} channels; only text-to-image models of"
                f" {self.coder.channels * PATCH**2} are supported"
            )
        self._takes_guidance: bool = self._transformer.config.guidance_embeds
        self.encoders = (
            ("CLIP", self._clip_encoder(loaded, "", part="clip_l", layer="last")),
            ("T5", self._t5_encoder(loaded, "_2")),
        )

    def timestep_options(self, num_inference_steps: int, height: int, width: int) -> TimestepOptions:
        """Return even sigmas from 1 to 1/steps, and the shift that goes with the size."""
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        return TimestepOptions(sigmas=tuple(sigmas.tolist()), mu=self._mu(height, width))

    def encode(self, unit: Unit, inputs: Inputs) -> Encoded:
        """Encode the prompt, and the negative one when the unit is guided."""
        encoded = super().encode(replace(unit, clip_skip=0), inputs)
        if not unit.clip_skip:
            return encoded
        ignored = "clip_skip is ignored: of CLIP this model reads what is made of all layers"
        return encoded._replace(warnings=(*encoded.warnings, ignored))

    def _join(self, encodings: Sequence[Any]) -> Text:
        clip, t5 = encodings
        return Text(t5.states, clip.pooled)

    def _denoise(self, rows: Rows) -> torch.Tensor:
        height, width = rows.latents.shape[-2] // PATCH, rows.latents.shape[-1] // PATCH
        inputs: dict[str, Any] = {
            "hidden_states": pixel_unshuffle(rows.latents, PATCH).flatten(2).transpose(1, 2),
            # Rounded before it is divided, as in diffusers: at 16 bits the last digits of the image depend on it.
            "timestep": rows.timesteps.to(self.dtype) / 1000,
            "guidance": rows.guidance_scales if self._takes_guidance else None,
            "pooled_projections": rows.pooled,
            "encoder_hidden_states": rows.states,
            "txt_ids": torch.zeros(rows.states.shape[1], 3, device=self.device),
            "img_ids": _image_ids(height, width, self.device),
        }
        if rows.cached:
            with self.forward.directly(exact=rows.is_padded):
                output = self._first_block_cache(rows.cached, one_by_one=rows.is_padded, **inputs)
        else:
            output = self.forward(exact=rows.is_padded, **inputs)
        return pixel_shuffle(output.transpose(1, 2).unflatten(2, (height, width)), PATCH)


def _image_ids(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return where each patch is, [height * width, 3]: nothing, row, column."""
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in (height, width))
    return pad(torch.cartesian_prod(rows, columns), (1, 0))
