"""What a plan says: where each component lives, in which precision, and what the card holds in each phase.

Plans are data, made by choose.py and carried out by the worker. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Precision(StrEnum):
    """How numbers are kept."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"  # float8_e4m3fn in the blocks' weights; each layer is widened to 16 bits while it computes
    NF4 = "nf4"  # bitsandbytes' 4-bit floats with quantised scales, for the blocks' linear layers
    FP8_DYNAMIC = "fp8-dynamic"  # torchao: the blocks' linear layers compute in float8_e4m3fn, a scale for each row
    INT8_DYNAMIC = "int8-dynamic"  # torchao: they compute in int8, a scale for each row


class Where(StrEnum):
    """Where a component's weights live."""

    RESIDENT = "resident"  # on the device, always
    EVICTED = "evicted"  # in RAM; on the device as a whole while it is used
    STREAMED = "streamed"  # in RAM; on the device layer by layer while it is used


BYTES_PER_VALUE: Final = {
    Precision.FP32: 4.0,
    Precision.FP16: 2.0,
    Precision.BF16: 2.0,
    Precision.FP8: 1.0,
    # Half a byte, one byte of scale for 64 values, and four bytes of scale for 256 such scales.
    Precision.NF4: 0.5 + 1 / 64 + 4 / (64 * 256),
    # One byte, and four bytes of scale for each row of a matrix, of which 1024 is a short one.
    Precision.FP8_DYNAMIC: 1.0 + 4 / 1024,
    Precision.INT8_DYNAMIC: 1.0 + 4 / 1024,
}
DYNAMIC: Final = frozenset({Precision.FP8_DYNAMIC, Precision.INT8_DYNAMIC})
"""Precisions that activations lose bits in as well, and that products are computed in; made by torchao."""

QUANTISED: Final = frozenset({Precision.FP8, Precision.NF4}) | DYNAMIC
DENOISERS: Final = ("unet", "transformer")


@dataclass(frozen=True, slots=True)
class ComponentPlan:
    """One component under a plan; `name` is diffusers', `weight_bytes` what all of its weights take as stored."""

    name: str
    storage: Precision
    compute: Precision
    where: Where
    weight_bytes: int

    @property
    def is_lossy(self) -> bool:
        """Whether its weights lost bits that the published ones have."""
        return self.storage in QUANTISED


@dataclass(frozen=True, slots=True)
class Phase:
    """What the device holds at most in one phase: `encode`, `denoise` or `decode`.

    `parts` are labels with bytes: what is always there, largest first, then what comes and goes. `seat_bytes` is what
    each seat has of them.
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    seat_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """All parts together."""
        return sum(num_bytes for _, num_bytes in self.parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is laid out on a device, for images of `width` x `height` pixels.

    `max_batch` is the number of seats whose step fits. `vae_tile_px` is the side of the VAE's tiles, None when it
    decodes an image as a whole.
    """

    family: str
    width: int
    height: int
    guided: bool
    vram_bytes: int
    margin_bytes: int
    components: tuple[ComponentPlan, ...]
    vae_tile_px: int | None
    max_batch: int
    steady_bytes: int
    phases: tuple[Phase, ...]
    batch: int = 1

    @property
    def peak_bytes(self) -> int:
        """The most the device holds in any phase, at `batch` seats."""
        return self.peak_at(self.batch)

    def peak_at(self, num_seats: int) -> int:
        """Return the most the device holds in any phase, at so many seats."""
        return max(phase.peak_bytes + (num_seats - self.batch) * phase.seat_bytes for phase in self.phases)

    @property
    def headroom_bytes(self) -> int:
        """What stays free at the peak; a plan that was chosen leaves at least `margin_bytes`."""
        return self.vram_bytes - self.peak_bytes

    @property
    def is_lossy(self) -> bool:
        """Whether weights are kept in less than 16 bits. Tiles of the VAE are named in `approximations` only."""
        return any(component.is_lossy for component in self.components)

    @property
    def approximations(self) -> tuple[str, ...]:
        """What makes images differ from the 16-bit model's, for the recipe; empty when nothing does."""
        lossy = tuple(f"{part.name} in {part.storage}" for part in self.components if part.is_lossy)
        return lossy if self.vae_tile_px is None else (*lossy, f"vae in tiles of {self.vae_tile_px} px")

    def component(self, name: str) -> ComponentPlan:
        """Return the plan of one component; raises KeyError with the names that there are."""
        for part in self.components:
            if part.name == name:
                return part
        raise KeyError(f"the plan has no component {name!r}, only {', '.join(part.name for part in self.components)}")

    @property
    def summary(self) -> str:
        """The plan in a few words."""
        words = [
            f"{part.name} {part.storage if part.is_lossy else part.where}"
            for part in self.components
            if part.name in DENOISERS and (part.is_lossy or part.where is not Where.RESIDENT)
        ]
        text = {part.where for part in self.components if part.name.startswith("text_encoder")} - {Where.RESIDENT}
        words += [f"text encoders {where}" for where in sorted(text)]
        if self.vae_tile_px is not None:
            words.append(f"VAE in tiles of {self.vae_tile_px} px")
        return ", ".join(words) or "everything on the card"
