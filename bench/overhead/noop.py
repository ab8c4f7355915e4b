"""A model that computes nothing: what is left of a step, and of an image, is the farm's own work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Any, Final

import torch

from farm.jobs import Unit
from farm.requests import Output, Reproducibility
from worker.pipelines.base import Encoded, Inputs, Ride
from worker.sampling import TimestepOptions

SAMPLERS: Final = (
    *("euler", "euler_ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde_karras", "lcm", "unipc"),
)
"""What people use; three of the eight draw noise at each step, and one looks back further than on the call before."""
STEPS: Final = (8, 12, 20, 25, 30, 50)
MODEL: Final = "sd15"

_SD15: Final = MappingProxyType(
    {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    }
)


class NoopPipeline:
    """Stands where a model does; its predictions and its picture were made before."""

    model_hash = "00" * 32
    takes_mask = False
    device = torch.device("cpu")
    device_name = "none"
    dtype = torch.float32
    lora_hashes: Mapping[str, str] = MappingProxyType({})
    approximations = ()
    fast_approximations = ()
    max_batch = None
    scheduler_config: Mapping[str, Any] = _SD15

    def __init__(self, *, size_px: int, max_batch: int, pictures: Sequence[torch.Tensor], step_s: float = 0.0) -> None:
        """Answer every forward with the same numbers, after `step_s`, and every decoding with one of `pictures`.

        Pictures are uint8 [h, w, 3].
        """
        self.name = MODEL
        self._step_s = step_s
        self._predictions = torch.randn(max_batch, *self.latent_shape(size_px, size_px)) / 10
        self._pictures = cycle(pictures)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return SD 1.5's."""
        return (4, height // 8, width // 8)

    def timestep_options(self, _num_inference_steps: int, _height: int, _width: int) -> TimestepOptions:
        """Return nothing, as SD 1.5 does."""
        return TimestepOptions()

    def first_step(self, num_inference_steps: int, strength: float) -> int:
        """Return where a run from a picture begins."""
        return num_inference_steps - int(num_inference_steps * strength)

    def adapt(self, loras: tuple[object, ...]) -> None:
        """Do nothing: there are no weights."""

    def encode_ahead(self, units: Sequence[Unit]) -> None:
        """Do nothing: there are no words."""

    def encode(self, _unit: Unit, _inputs: Inputs) -> Encoded:
        """Return nothing."""
        return Encoded(None)

    def encode_image(self, _image: torch.Tensor, _generator: torch.Generator) -> torch.Tensor:
        """Raise: nothing here starts from a picture."""
        raise NotImplementedError

    def predict(
        self, latents: torch.Tensor, _rides: Sequence[Ride], *, guided: bool, batch_shape: int | None
    ) -> torch.Tensor:
        """Return predictions that were made before."""
        del guided, batch_shape
        if self._step_s:
            time.sleep(self._step_s)
        return self._predictions[: len(latents)]

    def decode(self, _latents: torch.Tensor) -> torch.Tensor:
        """Return a picture."""
        return next(self._pictures)


def unit(index: int, *, size_px: int, job: str = "bench") -> Unit:
    """Return one request of a mixed load: samplers, steps, prompts, seeds and guidance scales differ."""
    return Unit(
        job=job,
        index=index,
        attempt=1,
        model=MODEL,
        prompt=f"a lighthouse beside a harbour, soft morning light, take {index}",
        negative_prompt="blurry",
        seed=index,
        num_inference_steps=STEPS[index // len(SAMPLERS) % len(STEPS)],
        guidance_scale=4.0 + index % 5,
        guided=True,
        scheduler=SAMPLERS[index % len(SAMPLERS)],
        width=size_px,
        height=size_px,
        reproducibility=Reproducibility.FAST,
        output=Output(),
    )
