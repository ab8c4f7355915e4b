"""What is done to seats on the device: begin a run, make one call for many runs at once, end one.

Owns the latents of all running units. Every function either does all it says or leaves the runs as they were, so that
the engine may try again with fewer seats. Who sits, whose turn it is and what a failure costs is decided there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import interpolate

from farm.errors import RenderFailed
from farm.schedulers import find_scheduler
from worker.caching import phase_of
from worker.downloads import Download
from worker.pipelines.base import Inputs, Ride, pack
from worker.pipelines.pixels import resize
from worker.sampling import Histories, NoiseSource, OwnSteps, schedule_for
from worker.starts import start

if TYPE_CHECKING:
    from collections.abc import Container, Hashable, Iterator

    import numpy as np

    from farm.jobs import Unit
    from worker.pipelines.base import Pipeline
    from worker.sampling import Schedule
    from worker.seat import BatchKey, NextPass, Seat

_NOT_FINITE: Final = "not finite (NaN)"


class Runs:
    """The runs of all seated units, by batch key and slot."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._histories: dict[BatchKey, Histories] = {}

    def begin(self, pipeline: Pipeline, seat: Seat) -> None:
        """Encode words and pictures, look up the schedule and make the first latents of a newly seated unit."""
        unit = seat.unit
        if seat.key not in self._histories:
            shape = pipeline.latent_shape(unit.height, unit.width)
            self._histories[seat.key] = Histories(self._num_slots, shape, pipeline.device)
        if pipeline.takes_mask and seat.next_pass is not None:
            raise RenderFailed(f"{unit.model} is made for inpainting and renders no second pass: leave out hires")
        seat.schedule = schedule_of(pipeline, unit, seat.inputs)
        encoded = pipeline.encode(unit, seat.inputs)
        seat.conditioning = encoded.conditioning
        seat.form = encoded.form
        seat.inversion_hashes = encoded.inversion_hashes
        seat.warnings += [warning for warning in encoded.warnings if warning not in seat.warnings]  # of an earlier pass
        self.restart(pipeline, seat)

    def restart(self, pipeline: Pipeline, seat: Seat) -> None:
        """Set a run to its start: a fresh generator, and from it all that is drawn, in the order of diffusers."""
        histories = self._histories[seat.key]
        seat.generator = torch.Generator("cpu").manual_seed(seat.unit.seed)
        first = start(pipeline, seat.unit, seat.inputs, seat.schedule, seat.generator)
        histories.begin(seat.slot, first.latents, seat.schedule)
        seat.known, seat.channels = first.known, first.channels
        seat.noise = NoiseSource(seat.schedule, seat.generator, histories.shape, seed=seat.unit.seed)
        seat.own_steps = None
        if seat.schedule.weights is None:
            seat.own_steps = OwnSteps(seat.schedule, histories.shape, seed=seat.unit.seed)
        seat.memory.clear()
        seat.call = 0
        seat.calls = len(seat.schedule)

    def advance(self, pipeline: Pipeline, key: BatchKey, seats: list[Seat], batch_shape: int | None) -> None:
        """Make one model call for `seats`, each at its own point of its own schedule."""
        histories = self._histories[key]
        slots = [seat.slot for seat in seats]
        calls = [seat.call for seat in seats]
        scales = pack([seat.schedule.input_scale[seat.call] for seat in seats], pipeline.device)
        latents = histories.current(slots, calls) * scales.view(-1, *[1] * len(histories.shape))
        rides = [_ride(seat) for seat in seats]
        for seat in seats:
            seat.memory.start_over()
        predictions = _predict(pipeline, latents, seats, rides, guided=key.guided, batch_shape=batch_shape)
        # The forward has succeeded; only now does anything change. Own steps and noise of the latest call are kept, so
        # that a repetition neither steps nor draws again.
        for place, seat in enumerate(seats):
            if seat.own_steps is not None:
                before = histories.current([seat.slot], [seat.call])
                prediction = predictions[place : place + 1].clone()  # which schedulers keep
                after = seat.own_steps.step(seat.call, prediction, before, seat.generator)
                histories.put([seat.slot], [seat.call + 1], after)
        tabled = [place for place, seat in enumerate(seats) if seat.own_steps is None]
        if tabled:
            histories.advance(
                [slots[place] for place in tabled],
                [calls[place] for place in tabled],
                [seats[place].schedule for place in tabled],
                predictions if len(tabled) == len(seats) else _rows(predictions, tabled),
                [seats[place].noise.draw(calls[place]) for place in tabled],
            )
        for seat in seats:
            if seat.known is not None:
                after = histories.current([seat.slot], [seat.call + 1])
                kept = seat.known.keep(after, seat.schedule.renoise[seat.call])
                histories.put([seat.slot], [seat.call + 1], kept)
        for seat in seats:
            seat.memory.keep()
            seat.call += 1

    def estimate(self, seat: Seat) -> torch.Tensor:
        """Return the latents that the picture has for the model after the latest call, [1, *latent_shape], as a copy.

        Of samplers that make their own steps, whose predictions are not kept, these are the latents as they are.
        """
        histories, call = self._histories[seat.key], seat.call - 1
        if seat.own_steps is not None:
            return self.latents(seat)
        latents, predictions = histories.current([seat.slot], [call]), histories.predictions([seat.slot], [call])
        of_latents, of_prediction = seat.schedule.denoising[call].tolist()
        estimate = latents.mul_(of_latents).add_(predictions, alpha=of_prediction)
        return estimate if seat.known is None else seat.known.keep(estimate, (1.0, 0.0))

    def latents(self, seat: Seat) -> torch.Tensor:
        """Return the latents after the latest call, [1, *latent_shape], as a copy."""
        return self._histories[seat.key].current([seat.slot], [seat.call])

    def hand_over(self, pipeline: Pipeline, seat: Seat, following: NextPass) -> tuple[Inputs, str | None]:
        """Return what the next pass starts from, this one's picture enlarged to its size, and what is wrong with it."""
        latents = self.latents(seat)
        unit, controls = following.unit, seat.inputs.controls
        seat.memory.clear()  # it may wait for long in the next lane
        if following.upscaler == "latent":
            flaw = None if torch.isfinite(latents).all() else _NOT_FINITE
            size = pipeline.latent_shape(unit.height, unit.width)[-2:]
            return Inputs(latents=interpolate(latents, size=size, mode="bilinear"), controls=controls), flaw
        pixels, is_finite = Download(pipeline.decode(latents), torch.isfinite(latents).all()).wait()
        picture = resize(pixels, unit.width, unit.height)
        return Inputs(image=picture, controls=controls), None if is_finite else _NOT_FINITE

    def decode(self, pipeline: Pipeline, seat: Seat) -> tuple[np.ndarray, str | None]:
        """Decode a finished run, one image at a time; return pixels, uint8 [h, w, 3], and what is wrong with them."""
        seat.memory.clear()  # the VAE may want the room
        latents = self.latents(seat)
        pixels, is_finite = Download(pipeline.decode(latents), torch.isfinite(latents).all()).wait()
        return pixels, _NOT_FINITE if not is_finite else "all black" if _is_black(pixels) else None

    def keep_only(self, keys: Container[BatchKey]) -> None:
        """Free the latents of lanes that are no more."""
        for key in [key for key in self._histories if key not in keys]:
            del self._histories[key]


def schedule_of(pipeline: Pipeline, unit: Unit, inputs: Inputs) -> Schedule:
    """Return the schedule of one pass of `unit`; any thread may ask, and whoever asks first makes it."""
    steps = unit.num_inference_steps
    return schedule_for(
        find_scheduler(unit.scheduler),
        pipeline.scheduler_config,
        steps,
        first_step=pipeline.first_step(steps, unit.strength) if inputs.has_start else 0,
        timestep_options=pipeline.timestep_options(steps, unit.height, unit.width),
    )


def _is_black(pixels: np.ndarray) -> bool:
    """Return whether there is nothing to see; a glance at some rows tells nearly always, and takes no time."""
    return not pixels[:: max(1, len(pixels) // 8)].any() and not pixels.any()


def _predict(
    pipeline: Pipeline,
    latents: torch.Tensor,
    seats: list[Seat],
    rides: list[Ride],
    *,
    guided: bool,
    batch_shape: int | None,
) -> torch.Tensor:
    """Return the predictions of all seats, by as few forwards as they can share.

    They may lie in the module's own memory, and are good until its next forward.
    """
    predict = partial(pipeline.predict, guided=guided, batch_shape=batch_shape)
    forwards = list(_forwards(seats, rides, guided=guided, is_padded=batch_shape is not None))
    if len(forwards) == 1:
        return predict(latents, rides)
    predictions = torch.empty_like(latents)
    for places in forwards:
        made = predict(_rows(latents, places), [rides[place] for place in places])
        for place, row in zip(places, made, strict=True):
            predictions[place] = row
    return predictions


def _rows(tensor: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Return these rows. Unlike an index made of a list, single places need not be copied to the device first."""
    return torch.stack([tensor[place] for place in places])


def _ride(seat: Seat) -> Ride:
    timestep = float(seat.schedule.timesteps[seat.call])
    return Ride(
        seat.conditioning,
        timestep,
        seat.unit.cfg_scale,
        seat.call,
        seat.calls,
        seat.channels,
        seat.unit.acceleration,
        seat.memory,
    )


def _forwards(seats: list[Seat], rides: list[Ride], *, guided: bool, is_padded: bool) -> Iterator[list[int]]:
    """Yield the places of seats that can share a forward, in order within each.

    What seats are padded to is one shape, with negative rows or without: whose guidance has ended goes apart.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, (seat, ride) in enumerate(zip(seats, rides, strict=True)):
        kind = (seat.form, phase_of(ride, guided=guided), is_padded and ride.is_guided)
        groups.setdefault(kind, []).append(place)
    yield from groups.values()
