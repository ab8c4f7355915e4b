"""Stable Diffusion 1.x and 2.x: a CLIP text encoder and a UNet, computing what StableDiffusionPipeline computes.

Knows no lanes and keeps no unit's state; the forward is worker/pipelines/unet.py's, the sampler worker/sampling's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from worker.pipelines.base import Encoded
from worker.pipelines.unet import Conditioning, UnetModel, Words, form_of

if TYPE_CHECKING:
    from farm.catalog import Family
    from farm.jobs import Unit
    from worker.pipelines.base import Inputs
    from worker.pipelines.latent import Loaded


class Sd15Pipeline(UnetModel):
    """One SD 1.x or 2.x model on one device. What it predicts, noise or velocity, is the scheduler config's affair."""

    family: ClassVar[Family] = "sd15"
    component_types: ClassVar[Mapping[str, Any]] = {
        "tokenizer": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
    }

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        # As StableDiffusionPipeline does to every scheduler it is given: old configs lack both.
        self.scheduler_config = {**loaded.scheduler_config, "steps_offset": 1, "clip_sample": False}

    def encode(self, unit: Unit, inputs: Inputs) -> Encoded:
        """Encode the prompt, and the negative one when the unit is guided; rows of as many chunks go together."""
        texts = self.encode_texts(unit, unit.negative_prompt, layer="last")
        conditioning = Conditioning(
            prompt=Words(texts.prompt[0].states),
            negative=Words(texts.negative[0].states) if texts.negative else None,
            controls=self.controls_of(unit, inputs),
        )
        return Encoded(conditioning, form_of(texts, conditioning), texts.warnings, texts.inversion_hashes)
