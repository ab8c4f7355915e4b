"""One unit's place in a running batch: how far it is, and what comes out in the end.

A Unit says what was asked and never changes; a Seat says how far it is and never leaves the engine; a Rendered is all
that leaves it. Nothing here computes.
"""

from __future__ import annotations

import math
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from farm.errors import FarmError, Transient
from farm.requests import Reproducibility
from worker.caching import Memory
from worker.pipelines.base import NO_INPUTS, Inputs

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from concurrent.futures import Future

    import numpy as np
    import torch

    from farm.jobs import Unit
    from farm.prompts import Lora
    from worker.sampling import NoiseSource, OwnSteps, Schedule
    from worker.starts import Known


class UnitCancelled(FarmError):
    """The unit was cancelled before its image was finished."""


class EngineStopped(Transient):
    """The engine stopped, or lost its device, before the image was finished; another worker may render it."""


class BatchKey(NamedTuple):
    """What units must share to sit in one lane.

    Guided and unguided units sit apart, although a forward could carry both: a lane's rows are then a fixed multiple
    of its seats, which `invariant` needs and which keeps the cost of a step predictable. Guidance scale, prompt, seed,
    steps and scheduler are free to differ.
    """

    model: str
    height: int
    width: int
    guided: bool
    reproducibility: Reproducibility
    loras: tuple[Lora, ...] = ()

    @classmethod
    def of(cls, unit: Unit) -> Self:
        """Return the key of the lane where `unit` may sit."""
        return cls(unit.model, unit.height, unit.width, unit.guided, unit.reproducibility, unit.loras)

    @property
    def is_invariant(self) -> bool:
        """Whether forwards of this lane always run at one padded shape."""
        return self.reproducibility is Reproducibility.INVARIANT

    def __str__(self) -> str:
        guidance = "guided" if self.guided else "unguided"
        loras = "".join(f" <{lora.name}:{lora.weight:g}>" for lora in self.loras)
        return f"{self.model} {self.width}x{self.height} {guidance} {self.reproducibility}{loras}"


class NextPass(NamedTuple):
    """The run that follows one's own, over its picture."""

    unit: Unit
    upscaler: str


def passes_of(unit: Unit) -> tuple[Unit, NextPass | None]:
    """Return the runs that make a unit's picture: one, or with hires fix a second one over the first one's picture."""
    if unit.hires is None:
        return unit, None
    first, hires = replace(unit, hires=None), unit.hires
    second = replace(
        first,
        width=hires.width,
        height=hires.height,
        strength=hires.strength,
        num_inference_steps=hires.num_inference_steps,
        mask_image="",
    )
    return first, NextPass(second, hires.upscaler)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one image went. Seconds of wall clock, except `gpu_s`."""

    queued_s: float  # from submit to a seat
    encode_s: float
    denoise_s: float  # of the steps it rode, whoever rode along
    decode_s: float
    gpu_s: float  # its share of the device's busy time; the shares of all images sum to that time
    steps: int  # model calls; samplers of second order take two per step asked for
    mean_batch: float  # seats taken in the steps it rode, on average
    batch_shape: int | None  # seats that every forward was padded to; None under `fast`

    @property
    def render_s(self) -> float:
        """From its seat's admission to its pixels."""
        return self.encode_s + self.denoise_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Rendered:
    """One finished image and what it owes itself to."""

    pixels: np.ndarray  # uint8 [h, w, 3]
    timings: Timings
    model_hash: str  # sha256 of the weights, hex
    device: str
    dtype: str
    warnings: tuple[str, ...]
    lora_hashes: Mapping[str, str] = field(default_factory=dict)  # sha256 of the files, hex, by name
    inversion_hashes: Mapping[str, str] = field(default_factory=dict)  # likewise, of textual inversions
    approximations: tuple[str, ...] = ()  # what the memory plan or the job changes in the picture
    upscaled: np.ndarray | None = None  # uint8 [factor * h, factor * w, 3], where a model enlarged it
    upscaler_hash: str = ""  # sha256 of that model's file, hex
    nsfw: bool | None = None  # what the safety checker said, where it was asked


@dataclass(slots=True, eq=False)
class Seat:
    """A unit in the engine, waiting (`slot` is -1) or seated. Owned by the engine's thread once it is seated."""

    unit: Unit  # of the pass that it is in
    future: Future[Rendered]
    key: BatchKey
    submitted_at_s: float
    inputs: Inputs = NO_INPUTS
    next_pass: NextPass | None = None
    arrived: int = 0  # the roster's step count when it came
    slot: int = -1
    cancelled: bool = False

    # -- the run: there once it has begun
    schedule: Schedule = field(init=False, repr=False)
    generator: torch.Generator = field(init=False, repr=False)
    conditioning: object = field(default=None, repr=False)
    form: Hashable = None
    inversion_hashes: Mapping[str, str] = field(default_factory=dict)
    noise: NoiseSource = field(init=False, repr=False)
    known: Known | None = field(default=None, repr=False)  # what inpainting keeps
    channels: torch.Tensor | None = field(default=None, repr=False)  # what the denoiser takes beside the latents
    own_steps: OwnSteps | None = field(default=None, repr=False)  # where the schedule is no table
    memory: Memory = field(default_factory=Memory, repr=False)  # what caches keep from call to call
    call: int = 0  # model calls made
    calls: int = 0  # and to make in all; 0 before the run has begun
    reruns: int = 0
    warnings: list[str] = field(default_factory=list)

    # -- the account
    queued_s: float = 0.0
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    gpu_s: float = 0.0
    earlier_calls: int = 0  # of the passes before this one
    calls_made: int = 0
    company: int = 0  # seats taken, summed over the calls made

    # -- what whoever watches has been told: times of the previews' clock
    told_at_s: float = -math.inf
    shown_step: int = 0  # that the latest picture showed

    @property
    def is_done(self) -> bool:
        """Whether only decoding is left."""
        return 0 < self.calls == self.call

    @property
    def names(self) -> dict[str, object]:
        """What a line of the log says about whose seat it is."""
        return {"job": self.unit.job, "index": self.unit.index, "model": self.unit.model}

    def settle(self, outcome: Rendered | Exception) -> None:
        """End the future, unless its owner has cancelled it."""
        with suppress(InvalidStateError):
            if isinstance(outcome, Rendered):
                self.future.set_result(outcome)
            else:
                self.future.set_exception(outcome)

    def timings(self, *, batch_shape: int | None) -> Timings:
        """Return the account so far."""
        return Timings(
            queued_s=self.queued_s,
            encode_s=self.encode_s,
            denoise_s=self.denoise_s,
            decode_s=self.decode_s,
            gpu_s=self.gpu_s,
            steps=self.earlier_calls + self.calls,
            mean_batch=self.company / max(1, self.calls_made),
            batch_shape=batch_shape,
        )
