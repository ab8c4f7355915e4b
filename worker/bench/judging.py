"""From what was measured to what the file says: rates beside the work they are of, refused above the card's ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from farm.plans import Precision
from worker.bench.ceilings import FP8, FP16_ACCUMULATION, INT8
from worker.forward import Optimisation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from farm.plans import Plan
    from worker.bench.ceilings import Ceilings
    from worker.bench.sweep import MixedRate, Rate
    from worker.bench.work import Work
    from worker.pipelines.latent import LatentModel

_GIB: Final = 1 << 30
_EIGHT_BITS: Final = {Precision.FP8_DYNAMIC: FP8, Precision.INT8_DYNAMIC: INT8}


class Judge:
    """Knows what one model can reach on one card."""

    def __init__(self, ceilings: Ceilings, pipeline: LatentModel, plan: Plan, work: Work, *, guided: bool) -> None:
        self._ceilings = ceilings
        self._dtype = pipeline.dtype
        self._work = work
        self._guided = guided
        storages = {part.storage for part in plan.components}
        self._also = [name for precision, name in _EIGHT_BITS.items() if precision in storages]
        if Optimisation.FP16_ACCUMULATION in pipeline.forward.optimisations:
            self._also.append(FP16_ACCUMULATION)

    def share(self, tflops: float) -> float:
        """Return the share of what the card can do in the ways that the model computes in. Raises AboveCeilingError."""
        return self._ceilings.share(tflops, self._dtype, also=self._also)

    def rate(self, rate: Rate, *, skips_work: bool) -> dict[str, Any]:
        """Return a rate as the file has it. Raises AboveCeilingError.

        Of images that `skips_work`, less is computed than can be counted: their rate is no share of anything.
        """
        tflop = self._work.image(calls=rate.calls, guided=self._guided)
        return {
            "images_per_s": digits(rate.images_per_s),
            "step_ms": digits(rate.step_ms),
            "decode_ms": digits(rate.decode_ms),
            "tflop_per_image": digits(tflop),
            "share_of_ceiling": None if skips_work else digits(self.share(tflop * rate.images_per_s)),
            "peak_memory_gib": None if rate.peak_bytes is None else digits(rate.peak_bytes / _GIB),
            "joules_per_image": None if rate.energy is None else digits(rate.energy.joules / rate.images),
            "energy_source": None if rate.energy is None else rate.energy.source,
            "images": rate.images,
            "seconds": digits(rate.seconds),
        }

    def mixed(self, mixed: MixedRate, uniform: Mapping[str, Any]) -> dict[str, Any]:
        """Return a mixed load as the file has it: work a second, beside that of `uniform`, the best batch of one kind.

        Raises AboveCeilingError.
        """
        self.share(mixed.tflops)
        return {
            "images_per_s": digits(mixed.images / mixed.seconds),
            "tflop_per_s": digits(mixed.tflops),
            "share_of_uniform": digits(mixed.tflops / (uniform["images_per_s"] * uniform["tflop_per_image"])),
            "images": mixed.images,
            "seconds": digits(mixed.seconds),
        }


def digits(value: float) -> float:
    """Return a number with as many digits as a measurement may have."""
    return float(f"{value:.5g}")


def in_words(found: Mapping[str, Any]) -> str:
    """Return a rate of the file in words."""
    words = [f"{found['images_per_s']:.3f} images/s"]
    if found["share_of_ceiling"] is not None:
        words.append(f"{found['share_of_ceiling']:.1%} of the ceiling")
    if found["joules_per_image"] is not None:
        words.append(f"{found['joules_per_image']:.0f} J an image")
    return ", ".join(words)
