"""What all families have in common: a denoiser of latents, a VAE around it, and a name in the catalog.

A family adds its text encoders and its denoiser: `encode` and `predict` (worker/pipelines/base.py says what they owe).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from farm.errors import RenderFailed
from farm.plans import Where
from worker.forward import Forward
from worker.lora import LoraLibrary, LoraPatch
from worker.pipelines.base import NO_INPUTS
from worker.pipelines.vae import ImageCoder
from worker.pipelines.visits import Visits, encode_ahead
from worker.sampling import TimestepOptions
from worker.text.cache import EmbeddingCache
from worker.tuning.cost import architecture_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from farm.catalog import Family
    from farm.jobs import Unit
    from farm.prompts import Lora
    from worker.forward import Toolbox
    from worker.pipelines.base import Encoded, Inputs, Ride
    from worker.pipelines.controlnet import ControlNets
    from worker.pipelines.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A model's weights in memory, and where they came from: what a family is built of."""

    name: str  # in the catalog
    parts: Mapping[str, Any]  # by diffusers' names: tokenizer, text_encoder, unet, vae, …
    placement: Placement | None = None  # where they live; None: all on the device
    scheduler_config: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)  # the pipeline's own settings in model_index.json
    model_hash: str  # sha256 of the weights, hex
    device: torch.device
    device_name: str
    dtype: torch.dtype
    max_batch: int | None = None
    max_sequence_length: int = 512  # tokens of T5
    embeddings_dir: Path | None = None  # where textual inversions lie
    loras: LoraLibrary | None = None
    controlnets: ControlNets | None = None
    toolbox: Toolbox | None = None  # what makes forwards fast; None: they run as they are
    allow_lossy: bool = True  # whether it may change pictures beyond rounding


class LatentModel(ABC):
    """One latent diffusion model on one device."""

    family: ClassVar[Family]

    component_types: ClassVar[Mapping[str, Any]]
    """The class of every part, by diffusers' name for it: what a loader must bring."""

    denoiser: ClassVar[str] = "unet"
    """Which part is the denoiser."""

    unbatched: ClassVar[tuple[str, ...]] = ()
    """Arguments of its forward that all rows share."""

    heeds_force_upcast: ClassVar[bool] = False
    """Whether the VAE of this family overflows in fp16 unless its config says that it does not."""

    cache_bytes: ClassVar[int] = 64 * 2**20
    """How much encoded text is kept on the device; memory plans count on less than farm.plans' EMBEDDINGS_BYTES."""

    takes_mask = False
    """Whether the denoiser takes mask and masked picture as further channels, and renders nothing without."""

    def __init__(self, loaded: Loaded) -> None:
        self.name = loaded.name
        self.model_hash = loaded.model_hash
        self.device = loaded.device
        self.device_name = loaded.device_name
        self.dtype = loaded.dtype
        self.max_batch = loaded.max_batch
        planned = loaded.placement.plan.component(self.denoiser) if loaded.placement else None
        kept = Where.RESIDENT if planned is None else f"{planned.storage}-{planned.where}"
        self.architecture = architecture_of(self.family, loaded.parts[self.denoiser], kept=kept)
        self._is_streamed = planned is not None and planned.where is Where.STREAMED
        self.forward = self._forward_of(loaded)
        # What a step costs depends on how it is computed as well.
        self.architecture = "-".join([self.architecture, *self.forward.optimisations])
        lossy = loaded.placement.plan.approximations if loaded.placement else ()
        self.approximations: tuple[str, ...] = lossy
        self.fast_approximations = self.forward.approximations
        self.scheduler_config: Mapping[str, Any] = loaded.scheduler_config
        adaptable = {
            name: part for name, part in loaded.parts.items() if isinstance(part, torch.nn.Module) and name != "vae"
        }
        self._patch = None if loaded.loras is None else LoraPatch(loaded.loras, self.family, adaptable)
        self.coder = ImageCoder(loaded.parts["vae"], device=loaded.device)
        self.text_cache = EmbeddingCache(self.cache_bytes)
        encoders = [name for name, part in adaptable.items() if name.startswith("text_encoder")]
        self._visits = Visits(loaded.placement, encoders)

    def _forward_of(self, loaded: Loaded) -> Forward:
        module = loaded.parts[self.denoiser]
        if loaded.toolbox is None:
            return Forward(module)
        return loaded.toolbox.forward(
            module,
            name=loaded.name,
            denoiser=self.denoiser,
            plan=loaded.placement.plan if loaded.placement else None,
            dtype=loaded.dtype,
            max_batch=loaded.max_batch,
            allow_lossy=loaded.allow_lossy,
            unbatched=self.unbatched,
        )

    def timestep_options(self, _num_inference_steps: int, _height: int, _width: int) -> TimestepOptions:
        """Return nothing: the number of steps says it all."""
        return TimestepOptions()

    def first_step(self, num_inference_steps: int, strength: float) -> int:
        """Return where a run from a picture begins, rounded as diffusers' img2img pipelines for UNets do."""
        return num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return (channels, h/8, w/8)."""
        return self.coder.latent_shape(height, width)

    def adapt(self, loras: tuple[Lora, ...]) -> None:
        """Put exactly these LoRAs into the weights; raises RenderFailed with none in them."""
        if self._patch is not None:
            try:
                self._patch.apply(loras)
            finally:
                self.forward.have_hooks(has_hooks=self._patch.is_beside)
        elif loras:
            raise RenderFailed(f"this worker has no LoRAs, {loras[0].name!r} was asked for")

    @property
    def lora_hashes(self) -> Mapping[str, str]:
        """The sha256 of each LoRA that is in the weights now, by name."""
        return {} if self._patch is None else self._patch.hashes

    @property
    def text_adapters(self) -> Hashable:
        """The LoRAs that change what words become at the moment: a part of any key that embeddings are kept under."""
        return () if self._patch is None else self._patch.text_key

    def at_hand(self, text_encoder: str) -> Callable[[], AbstractContextManager[None]]:
        """Return the context in which this part is on the device, as encoders in worker/text want it."""
        return partial(self._visits.at_hand, text_encoder)

    def encode_ahead(self, units: Sequence[Unit]) -> None:
        """Encode the words of `units`, as many as the cache holds, if text encoders must come to the device for it."""

        def encode(unit: Unit) -> Encoded:
            return self.encode(replace(unit, controlnets=()), NO_INPUTS)  # pictures are not there yet

        encode_ahead(units, encode, self._visits, self.text_cache)

    def check_caches(self, unit: Unit) -> None:
        """Raise RenderFailed where a unit asks for a cache whose skipped layers are waited for by the ones after."""
        if unit.acceleration.has_cache and self._is_streamed:
            raise RenderFailed(
                f"on this worker's {self.device_name} the {self.denoiser} of {self.name} comes to the device layer by"
                " layer, each fetching the next, so that none can be skipped: leave out first_block_cache and"
                " deep_cache_interval"
            )

    @abstractmethod
    def encode(self, unit: Unit, inputs: Inputs) -> Encoded:
        """Encode a unit's words and pictures, one unit at a time: the result never depends on company."""

    @abstractmethod
    def predict(
        self, latents: torch.Tensor, rides: Sequence[Ride], *, guided: bool, batch_shape: int | None
    ) -> torch.Tensor:
        """Return the guided prediction of every seat, float32 [seats, *latent_shape], as Pipeline says."""

    def encode_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Encode [1, 3, h, w] of -1 to 1 to latents [1, *latent_shape], float32, drawing once from `generator`."""
        state = generator.get_state()
        try:
            return self.coder.encode(image, generator)
        except torch.OutOfMemoryError:
            if not self.forward.give_up_memory():
                raise
        generator.set_state(state)
        return self.coder.encode(image, generator)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one image's latents [1, *latent_shape] to pixels, uint8 [h, w, 3]."""
        try:
            return self.coder.decode(latents)
        except torch.OutOfMemoryError:
            if not self.forward.give_up_memory():
                raise
        return self.coder.decode(latents)
