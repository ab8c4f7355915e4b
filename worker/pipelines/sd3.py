"""Stable Diffusion 3 and 3.5: two CLIPs and a T5, computing what diffusers' StableDiffusion3Pipeline computes.

The T5 may be left out, as users do who are short of memory: zeros stand where its states would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from worker.pipelines.base import Encoded
from worker.pipelines.flow import Conditioning, FlowModel, Rows, Text, remarks
from worker.sampling import TimestepOptions
from worker.text.cache import EmbeddingCache
from worker.text.clip import ClipText
from worker.text.t5 import T5Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from farm.catalog import Family
    from farm.jobs import Unit
    from worker.pipelines.base import Inputs
    from worker.pipelines.latent import Loaded

_CACHE_BYTES: Final = 128 * 2**20
"""For encoded prompts: 256 x 4096 numbers of T5 in 16 bits are 2 MiB each, those of the CLIPs a sixth of that."""


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
        self._max_sequence_length = loaded.max_sequence_length
        self._width: int = self._transformer.config.joint_attention_dim
        cache = EmbeddingCache(_CACHE_BYTES)
        self._clips = [
            ClipText(parts["tokenizer"], parts["text_encoder"], device=self.device, cache=cache, part="clip_l"),
            ClipText(parts["tokenizer_2"], parts["text_encoder_2"], device=self.device, cache=cache, part="clip_g"),
        ]
        self._t5: T5Text | None = None
        if parts.get("text_encoder_3") is not None:
            self._t5 = T5Text(parts["tokenizer_3"], parts["text_encoder_3"], device=self.device, cache=cache)

    def timestep_options(self, _num_inference_steps: int, height: int, width: int) -> TimestepOptions:
        """Return the shift that goes with the size, where the scheduler's config asks for one; sigmas are its own."""
        return TimestepOptions(mu=self._mu(height, width))

    def encode(self, unit: Unit, _inputs: Inputs) -> Encoded:
        """Encode the prompt, and the negative one when the unit is guided; `clip_skip` holds for the prompt alone."""
        warnings: list[str] = []
        prompt = self._encode("prompt", unit.prompt, unit.clip_skip, warnings)
        negative = self._encode("negative_prompt", unit.negative_prompt, 0, warnings) if unit.guided else None
        return Encoded(Conditioning(prompt, negative, unit.guidance_scale), warnings=tuple(warnings))

    def _encode(self, field: str, text: str, clip_skip: int, warnings: list[str]) -> Text:
        """Return the CLIPs' states side by side, widened with zeros to T5's, and then T5's."""
        clips = [
            clip.encode(text, layer="penultimate", clip_skip=clip_skip, weighted=False, adapters=self.text_adapters)
            for clip in self._clips
        ]
        warnings += remarks(field, [("CLIP", clips[0])])  # both have the same vocabulary and length
        states = torch.cat([clip.states for clip in clips], dim=-1)
        states = pad(states, (0, self._width - states.shape[-1]))
        if self._t5 is None:
            t5_states = states.new_zeros(1, self._max_sequence_length, self._width)
        else:
            t5 = self._t5.encode(text, max_sequence_length=self._max_sequence_length)
            warnings += remarks(field, [("T5", t5)])
            t5_states = t5.states
        pooled = torch.cat([clip.pooled for clip in clips], dim=-1)
        return Text(torch.cat([states, t5_states], dim=-2), pooled)

    def _denoise(self, rows: Rows) -> torch.Tensor:
        output: torch.Tensor = self._transformer(
            hidden_states=rows.latents,
            timestep=rows.timesteps,
            encoder_hidden_states=rows.states,
            pooled_projections=rows.pooled,
            return_dict=False,
        )[0]
        return output
