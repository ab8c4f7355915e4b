"""What is done to seats on the device: begin a run, make one call for many runs at once, end one.

Owns the latents of all running units. Every function either does all it says or leaves the runs as they were, so that
the engine may try again with fewer seats. Who sits, whose turn it is and what a failure costs is decided there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from farm.schedulers import find_scheduler
from worker.sampling import Histories, draw_noise, pack, schedule_for

if TYPE_CHECKING:
    from collections.abc import Container

    import numpy as np

    from worker.pipelines.base import Pipeline
    from worker.seat import BatchKey, Seat


class Runs:
    """The runs of all seated units, by batch key and slot."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._histories: dict[BatchKey, Histories] = {}

    def begin(self, pipeline: Pipeline, seat: Seat) -> None:
        """Encode the prompt, look up the schedule and draw the initial noise of a newly seated unit."""
        unit = seat.unit
        if seat.key not in self._histories:
            shape = pipeline.latent_shape(seat.key.height, seat.key.width)
            self._histories[seat.key] = Histories(self._num_slots, shape, pipeline.device)
        row = find_scheduler(unit.scheduler)
        seat.schedule = schedule_for(row, pipeline.scheduler_config, unit.num_inference_steps)
        seat.conditioning, warnings = pipeline.encode(unit)
        seat.warnings += warnings
        self.restart(seat)

    def restart(self, seat: Seat) -> None:
        """Set a run to its start: a fresh generator, and from it the initial noise, as diffusers draws it."""
        histories = self._histories[seat.key]
        seat.generator = torch.Generator("cpu").manual_seed(seat.unit.seed)
        noise = draw_noise(seat.generator, histories.shape)
        histories.begin(seat.slot, noise * seat.schedule.init_noise_sigma)
        seat.noise = None
        seat.call = 0
        seat.calls = len(seat.schedule)

    def advance(self, pipeline: Pipeline, key: BatchKey, seats: list[Seat], batch_shape: int | None) -> None:
        """Make one model call for `seats`, each at its own point of its own schedule."""
        histories = self._histories[key]
        device = pipeline.device
        slots = [seat.slot for seat in seats]
        calls = [seat.call for seat in seats]
        scales = pack([seat.schedule.input_scale[seat.call] for seat in seats], device)
        predictions = pipeline.predict(
            histories.current(slots, calls) * scales.view(-1, *[1] * len(histories.shape)),
            pack([seat.schedule.timesteps[seat.call] for seat in seats], device),
            [seat.conditioning for seat in seats],
            pack([seat.unit.guidance_scale for seat in seats], device) if key.guided else None,
            batch_shape,
        )
        # The forward has succeeded; only now does anything change. Noise stays with the seat until the whole call has
        # succeeded, so that a repetition does not draw again.
        for seat in seats:
            if seat.schedule.draws_noise[seat.call] and seat.noise is None:
                seat.noise = draw_noise(seat.generator, histories.shape)
        histories.advance(slots, calls, [seat.schedule for seat in seats], predictions, [seat.noise for seat in seats])
        for seat in seats:
            seat.noise = None
            seat.call += 1

    def decode(self, pipeline: Pipeline, seat: Seat) -> tuple[np.ndarray, str | None]:
        """Decode a finished run, one image at a time; return pixels, uint8 [h, w, 3], and what is wrong with them."""
        latents = self._histories[seat.key].current([seat.slot], [seat.call])
        pixels = pipeline.decode(latents).cpu().numpy()
        if not bool(torch.isfinite(latents).all()):
            return pixels, "not finite (NaN)"
        return pixels, None if pixels.any() else "all black"

    def keep_only(self, keys: Container[BatchKey]) -> None:
        """Free the latents of lanes that are no more."""
        for key in [key for key in self._histories if key not in keys]:
            del self._histories[key]
