"""What the cost of a model's steps depends on, as keys of measurements: few, so that little is measured twice.

Weights are not among it: all fine-tunes of an architecture cost the same, and LoRAs are patched into the weights. Nor
are texts: 77 tokens more or less move a UNet's step by a percent. Sizes count by their pixels, in half octaves.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Final

from worker.tuning.store import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from worker.pipelines.base import Pipeline
    from worker.seat import Seat

_DIGITS: Final = 16


def architecture_of(family: str, denoiser: nn.Module, *, kept: str) -> str:
    """Return a name for what `denoiser` computes with; equal where weights have the same names, sizes and types.

    `kept` says in which precision and where: those that travel to the device at each step cost more, and of layers that
    compute in eight bits not every type tells.
    """
    lines = [f"{name} {tuple(each.shape)} {each.dtype}" for name, each in sorted(denoiser.state_dict().items())]
    digest = hashlib.sha256("\n".join([type(denoiser).__name__, *lines]).encode()).hexdigest()
    return f"{family}-{digest[:_DIGITS]}-{kept}"


def cost_facts(pipeline: Pipeline, seat: Seat) -> dict[str, str | int | bool]:
    """Return what a step of seats like `seat` costs by; what differs in none of these costs about the same.

    Pixels are rounded to half octaves, so within a fifth: 512 x 768 is 768 x 512 and 640 x 640. Seats of twice the size
    want half the batch, so that a curve says for all of its bucket how many are within a few percent of the best.
    A guided seat is two rows of a forward, and counted as one seat. ControlNets are networks of their own: how many.
    """
    *_, height, width = pipeline.latent_shape(seat.unit.height, seat.unit.width)
    return {
        "model": pipeline.architecture,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "latent_pixels": _bucket(height * width),
        "guided": seat.key.guided,
        "controlnets": len(seat.unit.controlnets),
    }


def _bucket(pixels: int) -> int:
    """Return the power of the square root of two that is nearest to `pixels`, rounded to a whole number."""
    return round(2 ** (round(2 * math.log2(pixels)) / 2))


def curve_key(facts: Mapping[str, str | int | bool]) -> str:
    """Return the key of the curve of steps."""
    return key_of("steps", **facts)


def memory_key(facts: Mapping[str, str | int | bool]) -> str:
    """Return the key of what a lack of memory has taught."""
    return key_of("memory", **facts)
