"""Samplers as tables are the samplers: for every scheduler, whatever the steps, alone and in company."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import RenderFailed
from farm.schedulers import SCHEDULERS, find_scheduler
from worker.sampling import MAX_RESIDUAL, Histories, draw_noise, schedule_for

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SHAPE = (4, 6, 5)
CPU = torch.device("cpu")

rows = pytest.mark.parametrize("row", SCHEDULERS, ids=lambda row: row.name)


def model(scaled, timestep, seed):
    """Stand in for a UNet: depends on latents, timestep and seed, and stays within bounds."""
    waves = torch.sin(torch.arange(scaled.numel(), dtype=torch.float32) * 0.7 + seed).view_as(scaled)
    return torch.tanh(0.3 * scaled) + waves * (0.5 + float(timestep) / 2000)


def run_diffusers(row, config, num_inference_steps, seed):
    """Return the latents that diffusers' loop ends with, [1, *SHAPE], and the generator's state."""
    scheduler = getattr(diffusers, row.diffusers_class).from_config({**config, **row.config})
    scheduler.set_timesteps(num_inference_steps)
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn((1, *SHAPE), generator=generator) * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    kwargs = {"generator": generator} if takes_generator else {}
    for timestep in scheduler.timesteps:
        prediction = model(scheduler.scale_model_input(latents, timestep), timestep, seed)
        latents = scheduler.step(prediction, timestep, latents, **kwargs, return_dict=False)[0]
    return latents, generator.get_state()


class Runner:
    """A run by table, one call at a time, in a slot of shared histories."""

    def __init__(self, histories, slot, row, num_inference_steps, *, seed, config=SD15):
        self.histories, self.slot, self.seed, self.call = histories, slot, seed, 0
        self.schedule = schedule_for(row, config, num_inference_steps)
        self.generator = torch.Generator("cpu").manual_seed(seed)
        histories.begin(slot, draw_noise(self.generator, SHAPE) * self.schedule.init_noise_sigma)

    @property
    def is_done(self):
        return self.call == len(self.schedule)

    @property
    def latents(self):
        return self.histories.current([self.slot], [self.call])


def advance(histories, runners):
    """Make the next call of all `runners` at once."""
    predictions, noise = [], []
    for runner in runners:
        scale = runner.schedule.input_scale[runner.call]
        predictions.append(model(runner.latents * scale, runner.schedule.timesteps[runner.call], runner.seed))
        draws = runner.schedule.draws_noise[runner.call]
        noise.append(draw_noise(runner.generator, SHAPE) if draws else None)
    histories.advance(
        [runner.slot for runner in runners],
        [runner.call for runner in runners],
        [runner.schedule for runner in runners],
        torch.cat(predictions),
        noise,
    )
    for runner in runners:
        runner.call += 1


def assert_close(actual, expected):
    """Compare relative to the largest latent: float32 rounding of some dozens of steps is all that may differ."""
    assert torch.isfinite(expected).all()
    assert (actual - expected).abs().max() <= 2e-5 * max(1.0, float(expected.abs().max()))


@rows
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@settings(max_examples=3, deadline=None, print_blob=True)
@given(num_inference_steps=st.integers(1, 50), seed=st.integers(0, 2**53 - 1))
def test_table_is_the_scheduler(row, prediction_type, num_inference_steps, seed):
    """A run by table ends with diffusers' latents, and has drawn the same noise."""
    config = {**SD15, "prediction_type": prediction_type}
    expected, state = run_diffusers(row, config, num_inference_steps, seed)
    histories = Histories(2, SHAPE, CPU)
    runner = Runner(histories, 1, row, num_inference_steps, seed=seed, config=config)
    while not runner.is_done:
        advance(histories, [runner])
    assert_close(runner.latents, expected)
    assert torch.equal(runner.generator.get_state(), state)
    assert runner.schedule.residual <= MAX_RESIDUAL


@rows
@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 50])
def test_table_is_finite_at_the_edges(row, num_inference_steps):
    """Very short and long schedules have finite weights, however few steps a solver has to warm up."""
    schedule = schedule_for(row, {**SD15, "prediction_type": "epsilon"}, num_inference_steps)
    assert len(schedule) >= num_inference_steps
    assert np.isfinite(schedule.weights).all()
    assert np.isfinite(schedule.timesteps).all()


@settings(max_examples=10, deadline=None, print_blob=True)
@given(data=st.data())
def test_company_changes_no_bit(data):
    """Runs of any schedulers that join and leave at any time end with the bits they end with alone."""
    num_slots = 4
    wishes = data.draw(
        st.lists(
            st.tuples(st.sampled_from(SCHEDULERS), st.integers(1, 8), st.integers(0, 99), st.integers(0, 9)),
            min_size=2,
            max_size=8,
        )
    )
    histories = Histories(num_slots, SHAPE, CPU)
    free = list(range(num_slots))
    waiting, running, finished = list(enumerate(wishes)), [], {}
    step = 0
    while waiting or running:
        for number, (row, steps, seed, joins_at) in list(waiting):
            if joins_at <= step and free:
                slot = free.pop(data.draw(st.integers(0, len(free) - 1)))
                running.append((number, Runner(histories, slot, row, steps, seed=seed)))
                waiting.remove((number, wishes[number]))
        if running:
            advance(histories, [runner for _, runner in running])
        for number, runner in list(running):
            if runner.is_done:
                finished[number] = runner.latents
                free.append(runner.slot)
                running.remove((number, runner))
        step += 1
    for number, (row, steps, seed, _) in enumerate(wishes):
        alone = Histories(num_slots, SHAPE, CPU)
        runner = Runner(alone, 0, row, steps, seed=seed)
        while not runner.is_done:
            advance(alone, [runner])
        assert torch.equal(finished[number], runner.latents)


def test_nan_of_a_neighbour_stays_there():
    """A run ruined by NaN ruins neither its neighbours nor the next run in its slot."""
    histories = Histories(2, SHAPE, CPU)
    row = find_scheduler("euler")
    ruined, healthy = (Runner(histories, slot, row, 4, seed=slot) for slot in range(2))
    histories.advance([0, 1], [0, 0], [ruined.schedule] * 2, torch.full((2, *SHAPE), torch.nan), [None, None])
    histories.begin(1, torch.ones(1, *SHAPE))
    healthy.call = 0
    advance(histories, [healthy])
    assert torch.isnan(histories.current([0], [1])).all()
    assert torch.isfinite(healthy.latents).all()


def test_repeating_an_advance_changes_nothing():
    """Advancing twice past the same call, as after a failure, ends with the same bits."""
    histories = Histories(1, SHAPE, CPU)
    runner = Runner(histories, 0, find_scheduler("lms"), 8, seed=0)
    for _ in range(5):
        advance(histories, [runner])
    prediction = torch.ones(1, *SHAPE)
    ends = []
    for _ in range(2):
        before = histories._columns.clone()
        histories.advance([0], [5], [runner.schedule], prediction, [None])
        ends.append(histories.current([0], [6]))
        # All but the last write, as when the device fails in between.
        following = 6 % 4
        histories._columns[0, following] = before[0, following]
    assert torch.equal(*ends)


def test_clipping_sampler_is_refused():
    """A sampler that clips is no linear recurrence, and the error says so and names it."""
    with pytest.raises(RenderFailed, match=r"ddim with 10 steps is no linear recurrence.*clip"):
        schedule_for(find_scheduler("ddim"), {**SD15, "clip_sample": True}, 10)


def test_refusal_of_diffusers_is_passed_on():
    """What diffusers itself refuses fails the unit with diffusers' reason."""
    with pytest.raises(RenderFailed, match=r"lcm with 60 steps: .*original_steps"):
        schedule_for(find_scheduler("lcm"), SD15, 60)


def test_tables_are_cached():
    """The same scheduler, model config and steps share one table; another config has its own."""
    row = find_scheduler("dpmpp_2m")
    assert schedule_for(row, SD15, 9) is schedule_for(row, dict(SD15), 9)
    assert schedule_for(row, SD15, 9) is not schedule_for(row, {**SD15, "prediction_type": "v_prediction"}, 9)
