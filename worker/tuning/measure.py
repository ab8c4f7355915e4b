"""Times steps of ever larger batches, within a few seconds: what one more seat costs on the device at hand.

Owns when to go on, when to stop and what one forward of a measurement is. Nobody's latents, generators or conditioning
are changed by it. The clock is an argument, and a step is one: tests put a device in whose times they know.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from worker.failures import is_out_of_memory
from worker.pipelines.base import Ride
from worker.tuning.curves import End, StepCurve, batches_up_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.pipelines.base import Pipeline
    from worker.seat import Seat

ROUNDS: Final = 3
"""Timed steps of each batch, of which the median counts, after one that is not timed: it finds kernels and memory."""
BUDGET_S: Final = 10.0
"""How long measuring may take: enough to compare two seats of Flux with one on a card that needs 0.8 s for a step.

A step that is under way then is finished, so it is this and one step more at most; usually it is two or three seconds.
What a compiler takes comes on top: the lane would have waited for it without us as well.
"""
GAIN: Final = 0.01
"""More images per second than this a larger batch must bring, or the one after it, for still larger ones to be tried.

Kernels work on tiles, so that some odd batch may bring nothing although the next one does.
"""
_DRY_SPELL: Final = 2


def measure(
    step: Callable[[int], None],
    *,
    bound: int,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
    go_on: Callable[[], bool] = lambda: True,
) -> StepCurve:
    """Return what `step` takes for batches from 1 up to `bound`; it makes a step of so many seats and waits for it.

    Running out of memory ends it and is no error; so does `go_on`, asked between steps, as if time were up. Raises
    whatever else a step raises.
    """
    deadline_s = clock() + budget_s
    times_ms: dict[int, list[float]] = {}
    end = End.BOUND
    for batch in batches_up_to(bound):
        if times_ms and clock() + _expected_s(times_ms, batch, rounds) > deadline_s:
            end = End.TIME
            break
        began_s = clock()
        try:
            step(batch)
            if times_ms and clock() - began_s > budget_s:  # no step takes that long after shorter ones: it was compiled
                deadline_s += clock() - began_s
            samples = _time(partial(step, batch), rounds, clock, deadline_s, go_on)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            end = End.MEMORY
            break
        if len(samples) < rounds:
            end = End.TIME
            break
        times_ms[batch] = samples
        if batch < bound and _has_flattened(times_ms, bound):
            end = End.FLAT
            break
    return StepCurve.of(times_ms, end=end, bound=bound)


def _time(
    step: Callable[[], None], rounds: int, clock: Callable[[], float], deadline_s: float, go_on: Callable[[], bool]
) -> list[float]:
    """Return the milliseconds of `rounds` steps; of fewer when time is up, or they may not `go_on`."""
    samples: list[float] = []
    while len(samples) < rounds and go_on() and clock() < deadline_s:
        began_s = clock()
        step()
        samples.append(1000 * (clock() - began_s))
    return samples


def _expected_s(times_ms: dict[int, list[float]], batch: int, rounds: int) -> float:
    """Return how long a batch takes at most, if no seat costs more than it did in the last one."""
    last = max(times_ms)
    return (rounds + 1) * max(times_ms[last]) / 1000 * batch / last


def _has_flattened(times_ms: dict[int, list[float]], bound: int) -> bool:
    """Return whether the last few batches brought next to nothing."""
    curve = StepCurve.of(times_ms, end=End.FLAT, bound=bound)
    rates = [curve.rate(batch) for batch in curve.step_ms]
    earlier, late = rates[:-_DRY_SPELL], rates[-_DRY_SPELL:]
    return bool(earlier) and max(late) < (1 + GAIN) * max(earlier)


def steps_of(pipeline: Pipeline, seat: Seat, *, synchronise: Callable[[], None]) -> Callable[[int], None]:
    """Return a step of so many seats like `seat`, whose run has begun: same size, words and ControlNets, other latents.

    A call in the middle of its run counts: ControlNets may be silent at the ends.
    """
    shape = pipeline.latent_shape(seat.unit.height, seat.unit.width)
    noise = torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(0)).to(pipeline.device)
    call = seat.calls // 2
    ride = Ride(
        seat.conditioning, float(seat.schedule.timesteps[call]), seat.unit.cfg_scale, call, seat.calls, seat.channels
    )

    def step(batch: int) -> None:
        pipeline.predict(noise.repeat(batch, 1, 1, 1), [ride] * batch, guided=seat.key.guided, batch_shape=None)
        synchronise()

    return step
