"""Samplers as data: any diffusers scheduler becomes a table of weights, and one product advances all seats.

A sampler without clipping is a linear recurrence: the next latents are a weighted sum of the last four latents, the
last four predictions and the step's noise. The weights depend on the scheduler's config and its steps alone, so that
diffusers' own scheduler is run once, on random probes, and read off. What is no such recurrence keeps its own `step`.

    specs.py      which scheduler, set to which steps: the same calls that diffusers' pipelines make
    probing.py    one run of it on random numbers
    schedules.py  the run read off as a table, checked on numbers the fit has not seen, and kept
    noise.py      the noise of a run, from its generator or its Brownian tree
    histories.py  the latents of all runs of a lane, advanced at once
    own_steps.py  one run by the scheduler's own step, where there is no table

This package knows tensors and schedulers, but no models, seats or lanes.
"""

from worker.sampling.histories import Histories
from worker.sampling.noise import NoiseSource, draw_noise
from worker.sampling.own_steps import OwnSteps
from worker.sampling.schedules import MAX_RESIDUAL, Schedule, schedule_for
from worker.sampling.specs import TimestepOptions

__all__ = [
    "MAX_RESIDUAL",
    "Histories",
    "NoiseSource",
    "OwnSteps",
    "Schedule",
    "TimestepOptions",
    "draw_noise",
    "schedule_for",
]
