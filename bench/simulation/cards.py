"""How long a step takes on which card: a table of published numbers turned into a model. None was measured by us.

A step of n seats takes `fixed_s + n * seat_s`. Published times of a whole image at batch 1 become `seat_s` with
nothing fixed: such a card is saturated by one seat and gains nothing by batching, which makes it the fastest consumer
of work that anybody has published, and so the hardest customer for the farm. Times include text and VAE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True)
class Card:
    """One kind of GPU rendering one model. Times are seconds."""

    name: str
    model: str  # as in the catalog
    steps: int
    seat_s: float
    fixed_s: float = 0.0
    source: str = ""

    def step_s(self, seats: int) -> float:
        """Return how long one step of `seats` seats takes."""
        return self.fixed_s + seats * self.seat_s

    def images_per_s(self, max_batch: int) -> float:
        """Return what the card renders when every step is full."""
        return max_batch / (self.steps * self.step_s(max_batch))

    def slowed(self, dilation: float) -> Card:
        """Return the card with all its times longer by this factor."""
        return replace(self, seat_s=self.seat_s * dilation, fixed_s=self.fixed_s * dilation)


def _saturated(name: str, model: str, steps: int, image_s: float, source: str) -> Card:
    return Card(name, model, steps, seat_s=image_s / steps, source=source)


_ALL: Final = (
    _saturated("4090", "sd15", 20, 0.25, "OneDiff, 512 px, 91.0 it/s at batch 1: 0.25 s at 20 steps"),
    # Alone 1.2 s, eight at once 4 s: 60 ms and 200 ms a step, so 20 ms a seat and 40 ms whatever sits there.
    Card("4090-plain", "sd15", 20, 0.020, 0.040, "512 px, 20 steps: 1.2 s alone, 4 s for a batch of 8"),
    _saturated("4090", "sdxl", 30, 2.47, "TensorRT fp16, 1024 px, 30 steps"),
    _saturated("4090", "flux-dev", 28, 28 / 3.51, "fp8 matmul and compile, 1024 px: 3.51 it/s"),
    _saturated("4090", "flux-schnell", 4, 4 / 3.51, "as flux-dev, 4 steps"),
    _saturated("h100", "sd15", 20, 20 / 104.6, "stable-fast, 512 px: 104.6 it/s at batch 1"),
    _saturated("h100", "sdxl", 30, 1.471, "TensorRT fp16, 1024 px, 30 steps"),
    _saturated("h100", "flux-dev", 28, 2.97, "fp8 rowwise and compile, 1024 px, 28 steps"),
)
CARDS: Final = {(card.name, card.model): card for card in _ALL}
"""All cards by name and model."""
