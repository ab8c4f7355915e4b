"""Stable Diffusion 3 and 3.5: two CLIPs and a T5, computing what diffusers' StableDiffusion3Pipeline computes.

The T5 may be left out, as users do who are short of memory: zeros stand where its states would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from worker.pipelines.flow import FlowModel, Rows, Text
from worker.sampling import TimestepOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from farm.catalog import Family
    from worker.pipelines.latent import Loaded


class Sd3Pipeline(FlowModel):
    """One SD 3 model on one device."""

    family: ClassVar[Family] = "sd3"
    component_types: ClassVar[Mapping[str, Any]] = {
        "tokenizer": CLIPTokenizer,
        "text_encoder": CLIPTextModelWithProjection,
        "tokenizer_2": CLIPTokenizer,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer_3": T5Tokenizer,
        "text_encoder_3": T5EncoderModel,
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
    }
    cache_bytes: ClassVar[int] = 128 * 2**20  # 256 x 4096 numbers of T5 in 16 bits are 2 MiB
    max_shift: ClassVar[float] = 1.16

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        parts = loaded.parts
        self._transformer = parts["transformer"]
        channels = self._transformer.config.in_channels
        if channels != self.coder.channels:
            raise ValueError(
                f"its transformer takes {channels} channels; only text-to-image models of the {self.coder.channels}"
                " that its VAE makes are supported"
            )
        self._t5_shape = (1, loaded.max_sequence_length, self._transformer.config.joint_attention_dim)
        self.encoders = [
            ("CLIP", self._clip_encoder(loaded, "", part="clip_l", layer="penultimate")),
            ("CLIP", self._clip_encoder(loaded, "_2", part="clip_g", layer="penultimate")),
        ]
        if parts.get("text_encoder_3") is not None:
            self.encoders.append(("T5", self._t5_encoder(loaded, "_3")))

    def timestep_options(self, _num_inference_steps: int, height: int, width: int) -> TimestepOptions:
        """Return the shift that goes with the size, where the scheduler's config asks for one; sigmas are its own."""
        return TimestepOptions(mu=self._mu(height, width))

    def _join(self, encodings: Sequence[Any]) -> Text:
        """Return the CLIPs' states side by side, widened with zeros to T5's, and then T5's."""
        clip_l, clip_g, *t5 = encodings
        states = torch.cat([clip_l.states, clip_g.states], dim=-1)
        states = pad(states, (0, self._t5_shape[-1] - states.shape[-1]))
        t5_states = t5[0].states if t5 else states.new_zeros(self._t5_shape)
        return Text(torch.cat([states, t5_states], dim=-2), torch.cat([clip_l.pooled, clip_g.pooled], dim=-1))

    def _denoise(self, rows: Rows) -> torch.Tensor:
        return self.forward(
            exact=rows.is_padded,
            hidden_states=rows.latents,
            timestep=rows.timesteps,
            encoder_hidden_states=rows.states,
            pooled_projections=rows.pooled,
        )
