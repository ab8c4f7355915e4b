"""What the engine asks of a model: adapt, encode, predict, decode. A family is one class that answers.

A pipeline holds weights and computes; it keeps no unit's state and knows no lanes. All tensors it takes and gives
are on its own device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

import torch

from farm.jobs import EXACT
from worker.uploads import upload_numbers

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from farm.jobs import Acceleration, Unit
    from farm.prompts import Lora
    from worker.caching import Memory
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
    acceleration: Acceleration = EXACT
    memory: Memory | None = None  # what caches keep from call to call

    @property
    def is_guided(self) -> bool:
        """Whether its negative prompt is run as well, in a forward that is guided."""
        return self.acceleration.is_guiding(self.call, self.calls)


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
    def architecture(self) -> str:
        """What its steps cost by, beside their shapes: a name that it shares with all models of its build."""

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
    def fast_approximations(self) -> tuple[str, ...]:
        """What makes its steps fast changes in pictures beyond rounding, but for those of invariant lanes."""

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

        `latents` float32 [seats, *latent_shape], scaled for the model; all `rides` are of one form. Nobody is guided
        unless the forward is. With `batch_shape` it runs as if for that many seats, of which all or none are guided.
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


class Sides(NamedTuple):
    """Whose rows a forward has, as places among its rides: first the negatives of those who are guided, then prompts.

    Either is padded with its first, where a forward has a fixed shape.
    """

    without: tuple[int, ...]
    toward: tuple[int, ...]

    @classmethod
    def of(cls, rides: Sequence[Ride], *, guided: bool, batch_shape: int | None) -> Self:
        """Return the sides of a forward for `rides`."""
        without = [place for place, ride in enumerate(rides) if guided and ride.is_guided]
        return cls(_padded(without, batch_shape), _padded(range(len(rides)), batch_shape))

    @property
    def rows(self) -> tuple[int, ...]:
        """The place of every row's ride."""
        return (*self.without, *self.toward)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what is one row per ride, [rides, …], as the forward takes it, [rows, …]."""
        each = rows.split(1)
        return torch.cat([each[place] for place in self.rows])


def _padded(places: Sequence[int], num_rows: int | None) -> tuple[int, ...]:
    missing = num_rows - len(places) if places and num_rows is not None else 0
    return (*places, *[places[0]] * missing) if missing else tuple(places)


def pack(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Return one float32 number per seat, [seats], on `device`."""
    return upload_numbers(values, device)


def guide(output: torch.Tensor, sides: Sides, rides: Sequence[Ride]) -> torch.Tensor:
    """Combine a forward's rows to one float32 prediction per ride, [rides, …], each guided by its own scale."""
    toward = output[len(sides.without) :][: len(rides)].float()
    if not sides.without:
        return toward
    guided = [place for place, ride in enumerate(rides) if ride.is_guided]
    without = output[: len(guided)].float()
    if len(guided) < len(rides):
        # Others are their own negatives, which changes nothing: one product for all, and no index to send the device.
        negatives, own = dict(zip(guided, without.split(1), strict=True)), toward.split(1)
        without = torch.cat([negatives.get(place, own[place]) for place in range(len(rides))])
    scales = pack([ride.cfg_scale for ride in rides], toward.device).view(-1, *[1] * (toward.dim() - 1))
    return without + scales * (toward - without)
