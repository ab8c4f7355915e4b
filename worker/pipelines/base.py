"""What the engine asks of a model: adapt, encode, predict, decode. A family is one class that answers.

A pipeline holds weights and computes; it keeps no unit's state and knows no lanes. All tensors it takes and gives
are on its own device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from farm.jobs import Unit
    from farm.prompts import Lora
    from worker.sampling import TimestepOptions


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a unit brings along beside words. Pictures have the size they came in; resizing is the pipeline's part."""

    image: NDArray[np.uint8] | None = None  # [h, w, 3]: where to start from
    mask: NDArray[np.uint8] | None = None  # [h, w]: white is painted anew
    controls: tuple[NDArray[np.uint8], ...] = ()  # [h, w, 3] each, in the order of the unit's ControlNets
    latents: torch.Tensor | None = None  # [1, *latent_shape]: where to start from, instead of `image`

    @property
    def has_start(self) -> bool:
        """Whether the run starts from a picture and not from pure noise."""
        return self.image is not None or self.latents is not None


NO_INPUTS: Final = Inputs()


class Encoded(NamedTuple):
    """What a unit's words and pictures have become."""

    conditioning: object  # the engine only carries it
    form: Hashable = None  # what rows must have in common, beyond the batch key, to share a forward
    warnings: tuple[str, ...] = ()  # remarks for the user
    inversion_hashes: Mapping[str, str] = {}  # sha256 of the textual inversions that the words named, hex, by name


class Ride(NamedTuple):
    """One seat's part in a forward."""

    conditioning: Any
    timestep: float
    cfg_scale: float  # of no account where nobody is guided
    call: int  # model calls made before, of `calls` in all
    calls: int
    channels: torch.Tensor | None = None  # [1, c, h/8, w/8], what the denoiser takes beside the latents


class Pipeline(Protocol):
    """One loaded model on one device."""

    @property
    def name(self) -> str:
        """Its name in the catalog."""

    @property
    def model_hash(self) -> str:
        """The sha256 of its weights, hex."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def device_name(self) -> str:
        """The kind of device, as a recipe names it."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    @property
    def max_batch(self) -> int | None:
        """A cap on seats of a lane, from the catalog or the memory plan."""

    @property
    def takes_mask(self) -> bool:
        """Whether its denoiser takes mask and masked picture as further channels, and renders nothing without."""

    @property
    def lora_hashes(self) -> Mapping[str, str]:
        """The sha256 of each LoRA file that is in the weights now, hex, by name."""

    @property
    def approximations(self) -> tuple[str, ...]:
        """What its memory plan changes in pictures, for their recipes."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The config that came with the model: its betas and what it predicts."""

    def timestep_options(self, num_inference_steps: int, height: int, width: int) -> TimestepOptions:
        """Return what the family tells a scheduler beside the number of steps."""

    def first_step(self, num_inference_steps: int, strength: float) -> int:
        """Return the step at which a run that starts from a picture begins (diffusers' `t_start`)."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one image's latents, without a batch dimension; sizes in pixels."""

    def adapt(self, loras: tuple[Lora, ...]) -> None:
        """Put exactly these LoRAs into the weights; nothing to do when they are in already.

        Raises RenderFailed, naming the LoRA and the reason, with the weights as they were.
        """

    def encode_ahead(self, units: Sequence[Unit]) -> None:
        """Encode the words of `units` into the cache, where going back for each would be dear; else nothing."""

    def encode(self, unit: Unit, inputs: Inputs) -> Encoded:
        """Encode a unit's words and pictures, one unit at a time: the result never depends on company."""

    def predict(
        self, latents: torch.Tensor, rides: Sequence[Ride], *, guided: bool, batch_shape: int | None
    ) -> torch.Tensor:
        """Return the guided prediction of every seat, float32 [seats, *latent_shape].

        `latents` float32 [seats, *latent_shape], scaled for the model; all `rides` are of one form. With `batch_shape`
        the forward runs as if for that many seats.
        """

    def encode_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Encode [1, 3, h, w] of -1 to 1 to latents [1, *latent_shape], float32, drawing once from `generator`."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one image's latents [1, *latent_shape] to pixels, uint8 [h, w, 3]."""


def conv_layout(device: torch.device) -> torch.memory_format:
    """Return how tensors that go through convolutions should lie on `device`.

    Channels last runs on tensor cores without a transpose; CPUs gain nothing.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def pad_rows(rows: torch.Tensor, num_rows: int | None) -> torch.Tensor:
    """Return `rows` [n, …] with its first row repeated at the end until there are `num_rows` (None: as they are)."""
    if num_rows is None or len(rows) == num_rows:
        return rows
    return torch.cat([rows, rows[:1].expand(num_rows - len(rows), *rows.shape[1:])])


def pack(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Return one float32 number per seat, [seats], on `device`."""
    return torch.tensor(values, dtype=torch.float32).to(device)


def guide(without: torch.Tensor, toward: torch.Tensor, rides: Sequence[Ride]) -> torch.Tensor:
    """Combine predictions for negative prompt and prompt, [>= seats, …] each, by each ride's own scale."""
    scales = pack([ride.cfg_scale for ride in rides], toward.device).view(-1, *[1] * (toward.dim() - 1))
    without, toward = without[: len(rides)].float(), toward[: len(rides)].float()
    return without + scales * (toward - without)
