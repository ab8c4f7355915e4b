"""Stable Diffusion XL: two CLIP text encoders and a UNet that is told sizes, as StableDiffusionXLPipeline computes it.

Turbo, Lightning and LCM are the same computation with other weights, schedules and guidance: rows of the catalog.
Knows no lanes and keeps no unit's state; the forward is worker/pipelines/unet.py's, the sampler worker/sampling's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from worker.pipelines.base import Encoded
from worker.pipelines.unet import Conditioning, UnetModel, Words, form_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.catalog import Family
    from farm.jobs import Unit
    from worker.pipelines.base import Inputs
    from worker.pipelines.latent import Loaded
    from worker.text.clip import ClipEncoding


class SdxlPipeline(UnetModel):
    """One SDXL model on one device."""

    family: ClassVar[Family] = "sdxl"
    component_types: ClassVar[Mapping[str, Any]] = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
    }
    text_encoders: ClassVar[Mapping[str, str]] = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    heeds_force_upcast: ClassVar[bool] = True

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        kind = self._unet.config.addition_embed_type
        if kind != "text_time":
            raise ValueError(f"its UNet is told {kind or 'nothing'} beside the prompt, where SDXL's is told text_time")
        projected = loaded.parts["text_encoder_2"].config.projection_dim
        sizes = (self._unet.add_embedding.linear_1.in_features - projected) / self._unet.config.addition_time_embed_dim
        if sizes != len(_time_ids(0, 0)):
            raise ValueError(f"its UNet is told {sizes:g} numbers of sizes; only SDXL's base with 6 is supported")
        self._zeros_for_no_negative: bool = loaded.options.get("force_zeros_for_empty_prompt", True)

    def encode(self, unit: Unit, inputs: Inputs) -> Encoded:
        """Encode the prompt, and the negative one when the unit is guided; rows of as many chunks go together.

        No negative prompt is diffusers' None and not its empty text: where the model's settings say so, as those of
        SDXL do, zeros take its place.
        """
        zeros = not unit.negative_prompt and self._zeros_for_no_negative
        texts = self.encode_texts(unit, None if zeros else unit.negative_prompt, layer="penultimate")
        sizes = torch.tensor([_time_ids(unit.height, unit.width)], dtype=self.dtype, device=self.device)
        prompt = _join(texts.prompt, sizes)
        negative = None
        if texts.negative:
            negative = _join(texts.negative, sizes)
        elif unit.guided:
            pooled = torch.zeros_like(prompt.added["text_embeds"])
            negative = Words(torch.zeros_like(prompt.states), {**prompt.added, "text_embeds": pooled})
        conditioning = Conditioning(prompt, negative, self.controls_of(unit, inputs))
        return Encoded(conditioning, form_of(texts, conditioning), texts.warnings, texts.inversion_hashes)


def _time_ids(height: int, width: int) -> tuple[int, ...]:
    """Return what an image of this size is said to be: as large before, not cropped, as large after."""
    return (height, width, 0, 0, height, width)


def _join(encodings: Sequence[ClipEncoding], sizes: torch.Tensor) -> Words:
    """Return one text by both encoders, side by side; the second one's pooled state says what the whole is about."""
    states = torch.cat([encoding.states for encoding in encodings], dim=-1)
    return Words(states, {"text_embeds": encodings[-1].pooled, "time_ids": sizes})
