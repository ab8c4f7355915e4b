"""What a model takes the picture for, read off a schedule's table."""

from __future__ import annotations

import numpy as np
import pytest

from farm.schedulers import SCHEDULERS, find_scheduler
from parity import BROWNIAN_WARNING
from worker.sampling import TimestepOptions, schedule_for
from worker.sampling.estimates import denoising_weights

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

STEPS = 6
WAYS = [*((row, "epsilon") for row in SCHEDULERS), *((row, "v_prediction") for row in SCHEDULERS[::7])]
PICTURE = 0.7
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
LEFTOVER = 0.1
"""Noise that a schedule may end with: some stop at the smallest one that models have learned."""


def schedule_of(row, prediction_type):
    """Return a schedule as a model of the row's group would have it."""
    if row.group == "diffusion":
        return schedule_for(row, {**BETAS, "prediction_type": prediction_type}, STEPS)
    sigmas = tuple(np.linspace(1, 1 / STEPS, STEPS).tolist())
    options = TimestepOptions(sigmas=sigmas, mu=1.0)
    return schedule_for(row, {"num_train_timesteps": 1000}, STEPS, timestep_options=options)


def end_of_a_run(schedule, predict):
    """Run a table on one number; `predict(call, latents)` is the model."""
    chance = np.random.default_rng(0)
    latents = [np.array(schedule.start) @ [PICTURE, chance.standard_normal()]]
    predictions = []
    for call, weights in enumerate(schedule.weights):
        predictions.append(predict(call, latents[-1]))
        ages = range(min(4, call + 1))
        following = sum(weights[age] * latents[-1 - age] + weights[4 + age] * predictions[-1 - age] for age in ages)
        latents.append(following + weights[8] * chance.standard_normal())
    return latents[-1]


@pytest.mark.parametrize(("row", "prediction_type"), WAYS, ids=lambda each: getattr(each, "name", each))
def test_every_sampler_understands_the_estimate_as_we_do(row, prediction_type):
    """A model that knows one picture only, and says so by our weights, is led to that picture by each of them."""
    schedule = schedule_of(row, prediction_type)
    weights = schedule.denoising

    def predict(call, latents):
        return (PICTURE - weights[call, 0] * latents) / weights[call, 1]

    leftover = 0.7 if row.name == "flow_deis" else LEFTOVER  # which stops long before the end
    assert abs(end_of_a_run(schedule, predict) - PICTURE) < leftover


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_known_noise_is_taken_off(prediction_type):
    """Of a picture under noise of known weights, with the true prediction, the picture is left at every call."""
    schedule = schedule_for(find_scheduler("ddim"), {**BETAS, "prediction_type": prediction_type}, STEPS)
    noise = -1.3
    for (kept, added), (of_latents, of_prediction) in zip(
        [schedule.start, *schedule.renoise[:-1]], schedule.denoising, strict=True
    ):
        truth = {"epsilon": noise, "v_prediction": kept * noise - added * PICTURE, "sample": PICTURE}[prediction_type]
        latents = kept * PICTURE + added * noise
        assert of_latents * latents + of_prediction * truth == pytest.approx(PICTURE)


def test_noise_alone_tells_nothing():
    """Where a schedule begins without a trace of the picture, the estimate of an `epsilon` is the latents."""
    weights = denoising_weights(np.array([[0.0, 1.0], [0.5, 0.5]]), np.ones(2), "epsilon")
    assert weights.tolist() == [[1, 0], [2, -1]]
