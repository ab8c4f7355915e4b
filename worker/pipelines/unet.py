"""What the UNet families share: from encoded words on, SD 1.x, SD 2.x and SDXL are one computation.

Owns the text encoders' set-up and the UNet's forward. What is made of a text, and what a UNet is told beside it, is
each family's own (`encode`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from diffusers.models.embeddings import get_timestep_embedding

from farm.errors import RenderFailed
from worker.caching import DeepCache, cached_rows, phase_of
from worker.pipelines.base import Sides, conv_layout, guide, pack
from worker.pipelines.controlnet import Residuals
from worker.pipelines.latent import LatentModel, Loaded
from worker.text.clip import ClipText, EncodedTexts, Layer, encode_texts
from worker.text.inversion import Inversions

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from farm.jobs import Unit
    from worker.pipelines.base import Inputs, Ride
    from worker.pipelines.controlnet import Control


class Words(NamedTuple):
    """One text as a UNet takes it: `encoder_hidden_states` and `added_cond_kwargs`."""

    states: torch.Tensor  # [1, 77 * chunks, width]
    added: Mapping[str, torch.Tensor] = {}  # [1, …] each


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What steers a unit's run; `negative` only when the unit is guided."""

    prompt: Words
    negative: Words | None
    controls: tuple[Control, ...] = ()


class UnetModel(LatentModel):
    """One model with a UNet2DConditionModel."""

    text_encoders: ClassVar[Mapping[str, str]] = {"clip_l": "text_encoder"}
    """Which part is which encoder, by the encoders' names in worker/text."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._unet = loaded.parts["unet"]
        self._deep_cache = DeepCache(self._unet)
        channels = self._unet.config.in_channels
        latents = self.coder.channels
        self.takes_mask = channels == 2 * latents + 1
        if channels != latents and not self.takes_mask:
            raise ValueError(
                f"its UNet takes {channels} channels; only UNets of the {latents} that its VAE makes are supported, and"
                f" inpainting ones of {2 * latents + 1}"
            )
        self._controlnets = loaded.controlnets
        # UNets that LCM distilled take the guidance scale as an input, of so many numbers.
        self._guidance_dim: int | None = self._unet.config.time_cond_proj_dim
        self._layout = conv_layout(loaded.device)
        self._clips = self._clip_texts(loaded)

    def _clip_texts(self, loaded: Loaded) -> list[ClipText]:
        models = {name: loaded.parts[part] for name, part in self.text_encoders.items()}
        inversions = None
        if loaded.embeddings_dir:
            widths = {name: model.config.hidden_size for name, model in models.items()}
            inversions = Inversions(loaded.embeddings_dir, widths)
        return [
            ClipText(
                loaded.parts[self.text_encoders[name].replace("text_encoder", "tokenizer")],
                model,
                device=loaded.device,
                cache=self.text_cache,
                part=name,
                inversions=inversions,
                at_hand=self.at_hand(self.text_encoders[name]),
            )
            for name, model in models.items()
        ]

    def encode_texts(self, unit: Unit, negative_prompt: str | None, *, layer: Layer) -> EncodedTexts:
        """Encode the prompt of `unit` and, where it is guided, `negative_prompt` by each text encoder.

        Raises RenderFailed when a unit is guided whose UNet takes the guidance scale as an input, or asks for a cache
        that cannot be had.
        """
        self.check_caches(unit)
        if unit.guided and self._guidance_dim is not None:
            raise RenderFailed(f"{self.name} takes guidance_scale as an input; its row must say guidance: embedded")
        return encode_texts(
            self._clips,
            unit.prompt,
            negative_prompt if unit.guided else None,
            layer=layer,
            clip_skip=unit.clip_skip,
            adapters=self.text_adapters,
        )

    def controls_of(self, unit: Unit, inputs: Inputs) -> tuple[Control, ...]:
        """Return what steers a unit beside its words; raises RenderFailed where a ControlNet cannot be had."""
        if not unit.controlnets:
            return ()
        if self._controlnets is None:
            raise RenderFailed(f"this worker has no ControlNets, {unit.controlnets[0].model!r} was asked for")
        return self._controlnets.controls(unit, inputs, unet=self._unet, device=self.device, dtype=self.dtype)

    def predict(
        self, latents: torch.Tensor, rides: Sequence[Ride], *, guided: bool, batch_shape: int | None
    ) -> torch.Tensor:
        """Run the UNet once: rows [negatives of those who are guided, prompts of all]."""
        sides = Sides.of(rides, guided=guided, batch_shape=batch_shape)
        latents = sides.spread(latents.to(self.dtype))
        timesteps = pack([rides[place].timestep for place in sides.rows], self.device)
        words = _stack(
            [rides[place].conditioning.negative for place in sides.without]
            + [rides[place].conditioning.prompt for place in sides.toward]
        )
        steered = Residuals()
        if self._controlnets is not None:
            steered = self._controlnets.residuals(
                rides,
                sides.rows,
                latents,
                timesteps,
                encoder_hidden_states=words.states,
                added_cond_kwargs=words.added or None,
            )
        if self.takes_mask:
            channels = torch.cat([ride.channels for ride in rides if ride.channels is not None])
            latents = torch.cat([latents, sides.spread(channels.to(self.dtype))], dim=1)
        inputs: dict[str, Any] = {
            "sample": latents.contiguous(memory_format=self._layout),
            "timestep": timesteps,
            "encoder_hidden_states": words.states,
            "timestep_cond": self._embed_guidance([rides[place].cfg_scale for place in sides.rows]),
            "added_cond_kwargs": words.added or None,
            "down_block_additional_residuals": steered.down,
            "mid_block_additional_residual": steered.middle,
        }
        rows = cached_rows(rides, sides)
        exact = batch_shape is not None
        if not any(rows):
            return guide(self.forward(exact=exact, **inputs), sides, rides)
        with self.forward.directly(exact=exact):
            if phase_of(rides[0], guided=guided).is_shallow:
                output = self._deep_cache.shallow(rows, **inputs)
            else:
                output = self._deep_cache.whole(rows, **inputs)
        return guide(output, sides, rides)

    def _embed_guidance(self, scales: Sequence[float]) -> torch.Tensor | None:
        """Return one guidance scale per row as a distilled UNet takes them, [rows, dim]; None for other UNets."""
        if self._guidance_dim is None:
            return None
        less_one = pack([scale - 1 for scale in scales], self.device)
        embedding: torch.Tensor = get_timestep_embedding(less_one * 1000, self._guidance_dim)
        return embedding.to(self.dtype)


def form_of(texts: EncodedTexts, conditioning: Conditioning) -> Hashable:
    """Return what rows must have in common to share a forward: the length of their texts, and their ControlNets."""
    return (texts.num_chunks, *(control.spec.model for control in conditioning.controls))


def _stack(rows: Sequence[Words]) -> Words:
    """Join `rows`, which have the same additions, to one with a batch dimension."""
    return Words(
        torch.cat([row.states for row in rows]),
        {name: torch.cat([row.added[name] for row in rows]) for name in rows[0].added},
    )
