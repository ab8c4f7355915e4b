"""What the flow-matching families have in common: a transformer over patches of latents, steered by text and its pool.

Owns rows, padding and guidance of their forwards, the shift of their schedules with the size of the image, and where
img2img begins. A family adds its text encoders and the one call of its transformer.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import torch

from farm.errors import RenderFailed
from worker.caching import cached_rows, phase_of
from worker.pipelines.base import Encoded, Sides, guide, pack
from worker.pipelines.latent import LatentModel
from worker.text.clip import ClipText
from worker.text.t5 import T5Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from farm.jobs import Unit
    from worker.caching import CachedRow
    from worker.pipelines.base import Inputs, Ride
    from worker.pipelines.latent import Loaded
    from worker.text.clip import ClipEncoding, Layer
    from worker.text.t5 import T5Encoding

PATCH: Final = 2
"""Latents on a side of what the transformer sees as one token."""


class Encode(Protocol):
    """One of a model's text encoders, with all that its results depend on beside the text."""

    def __call__(self, text: str, *, clip_skip: int) -> ClipEncoding | T5Encoding:
        """Encode `text`; from the cache, if it is there."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What the transformer reads of a text: `states` [1, tokens, width] and `pooled` [1, dim]."""

    states: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """A unit's texts; `negative` only when the unit is guided. `guidance_scale` is for models that take it as input."""

    prompt: Text
    negative: Text | None
    guidance_scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A forward's rows: `latents` [rows, c, h/8, w/8], one number each of `timesteps` and `guidance_scales`, texts."""

    latents: torch.Tensor
    timesteps: torch.Tensor  # float32
    guidance_scales: torch.Tensor  # float32
    states: torch.Tensor
    pooled: torch.Tensor
    cached: tuple[CachedRow | None, ...] = ()  # one for each row, where blocks may be skipped
    is_padded: bool = False


class FlowModel(LatentModel):
    """One flow-matching model on one device."""

    denoiser: ClassVar[str] = "transformer"

    max_shift: ClassVar[float]
    """The shift at the largest image, where the scheduler's config does not say."""

    encoders: Sequence[tuple[str, Encode]]
    """The text encoders by the names that users know, in the order in which `_join` takes what they make of a text."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return (channels, h/8, w/8); raises RenderFailed where the sides are no whole number of patches."""
        step = self.coder.factor * PATCH
        if height % step or width % step:
            raise RenderFailed(f"{self.name} makes images whose sides are multiples of {step}, not {width}x{height}")
        return self.coder.latent_shape(height, width)

    def first_step(self, num_inference_steps: int, strength: float) -> int:
        """Return where a run from a picture begins, rounded as diffusers' img2img pipelines for flow models do."""
        return int(num_inference_steps - min(num_inference_steps * strength, num_inference_steps))

    def encode(self, unit: Unit, _inputs: Inputs) -> Encoded:
        """Encode the prompt, and the negative one when the unit is guided; `clip_skip` holds for the prompt alone."""
        self.check_caches(unit)
        texts = {"prompt": (unit.prompt, unit.clip_skip)}
        if unit.guided:
            texts["negative_prompt"] = (unit.negative_prompt, 0)
        encodings: Mapping[str, list[ClipEncoding | T5Encoding]] = {field: [] for field in texts}
        warnings: dict[str, None] = {}  # in order, and once where two encoders of a name say the same
        # Both texts by one encoder, then by the next: each may have to come to the device.
        for name, encode in self.encoders:
            for field, (text, clip_skip) in texts.items():
                encoding = encode(text, clip_skip=clip_skip)
                encodings[field].append(encoding)
                # What is cut for one encoder may not be for another.
                warnings |= {f"{field}, as {name} reads it, {warning}": None for warning in encoding.warnings}
        prompt = self._join(encodings["prompt"])
        negative = self._join(encodings["negative_prompt"]) if unit.guided else None
        return Encoded(Conditioning(prompt, negative, unit.guidance_scale), warnings=tuple(warnings))

    def _clip_encoder(self, loaded: Loaded, suffix: str, *, part: str, layer: Layer) -> Encode:
        """Return the CLIP in `tokenizer` and `text_encoder` of this suffix; `part` is its name for the cache."""
        clip = ClipText(
            loaded.parts[f"tokenizer{suffix}"],
            loaded.parts[f"text_encoder{suffix}"],
            device=self.device,
            cache=self.text_cache,
            part=part,
            at_hand=self.at_hand(f"text_encoder{suffix}"),
        )

        def encode(text: str, *, clip_skip: int) -> ClipEncoding:
            return clip.encode(text, layer=layer, clip_skip=clip_skip, weighted=False, adapters=self.text_adapters)

        return encode

    def _t5_encoder(self, loaded: Loaded, suffix: str) -> Encode:
        """Return the T5 in `tokenizer` and `text_encoder` of this suffix."""
        t5 = T5Text(
            loaded.parts[f"tokenizer{suffix}"],
            loaded.parts[f"text_encoder{suffix}"],
            device=self.device,
            cache=self.text_cache,
            at_hand=self.at_hand(f"text_encoder{suffix}"),
        )

        def encode(text: str, *, clip_skip: int) -> T5Encoding:  # noqa: ARG001  nobody skips layers of T5
            return t5.encode(text, max_sequence_length=loaded.max_sequence_length, adapters=self.text_adapters)

        return encode

    @abstractmethod
    def _join(self, encodings: Sequence[Any]) -> Text:
        """Return what the transformer reads of one text: what `encoders` made of it, put together."""

    def predict(
        self, latents: torch.Tensor, rides: Sequence[Ride], *, guided: bool, batch_shape: int | None
    ) -> torch.Tensor:
        """Run the transformer once: rows [negatives of those who are guided, prompts of all]."""
        conditionings: list[Conditioning] = [ride.conditioning for ride in rides]
        sides = Sides.of(rides, guided=guided, batch_shape=batch_shape)
        negatives = [conditionings[place].negative for place in sides.without]
        texts = [text for text in negatives if text] + [conditionings[place].prompt for place in sides.toward]
        output = self._denoise(
            Rows(
                latents=sides.spread(latents.to(self.dtype)),
                timesteps=pack([rides[place].timestep for place in sides.rows], self.device),
                guidance_scales=pack([conditionings[place].guidance_scale for place in sides.rows], self.device),
                states=torch.cat([text.states for text in texts]),
                pooled=torch.cat([text.pooled for text in texts]),
                cached=cached_rows(rides, sides) if phase_of(rides[0], guided=guided).skips_blocks else (),
                is_padded=batch_shape is not None,
            )
        )
        return guide(output, sides, rides)

    @abstractmethod
    def _denoise(self, rows: Rows) -> torch.Tensor:
        """Return the transformer's prediction for every row, [rows, c, h/8, w/8]."""

    def _mu(self, height: int, width: int) -> float | None:
        """Return how far the schedule of an image of this size is shifted; None where the scheduler shifts all alike.

        Linear in the number of tokens, through two points that the scheduler's config names.
        """
        config = self.scheduler_config
        if not config.get("use_dynamic_shifting"):
            return None
        side_px = self.coder.factor * PATCH
        fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, greatest = config.get("base_shift", 0.5), config.get("max_shift", self.max_shift)
        slope = (greatest - least) / (most - fewest)
        return float((height // side_px) * (width // side_px) * slope + (least - slope * fewest))
