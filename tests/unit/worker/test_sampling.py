"""Samplers as tables are the samplers: every one, from any step, with latents edited on the way, in any company."""

from __future__ import annotations

import copy
import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import RenderFailed
from farm.schedulers import SCHEDULERS, find_scheduler
from worker.sampling import (
    MAX_RESIDUAL,
    Histories,
    NoiseSource,
    OwnSteps,
    TimestepOptions,
    draw_noise,
    schedule_for,
)
from worker.sampling.specs import _construct

# diffusers' DPM++ SDE asks its Brownian tree for a hair more than there is
pytestmark = pytest.mark.filterwarnings("ignore:Should have ta>=t0:UserWarning")

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FLUX = {
    "num_train_timesteps": 1000,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
SD3 = {"num_train_timesteps": 1000, "shift": 3.0}
SHAPE = (4, 6, 5)
CPU = torch.device("cpu")
NO_OPTIONS = TimestepOptions()

rows = pytest.mark.parametrize("row", SCHEDULERS, ids=lambda row: row.name)


def model(scaled, timestep, seed):
    """Stand in for a UNet: depends on latents, timestep and seed, and stays within bounds."""
    waves = torch.sin(torch.arange(scaled.numel(), dtype=torch.float32) * 0.7 + seed).view_as(scaled)
    return torch.tanh(0.3 * scaled) + waves * (0.5 + float(timestep) / 2000)


class Reference:
    """diffusers' own loop, as its pipelines write it: text-to-image, image-to-image and inpainting."""

    def __init__(self, row, config, steps, first_step, *, seed, options=NO_OPTIONS):
        config = {**config, **row.config}
        if config.get("use_flow_sigmas"):
            config["flow_shift"] = config["shift"]
        # Some take 0.2 s to be made; a copy is as new.
        self.scheduler = copy.deepcopy(_construct(row.diffusers_class, json.dumps(config, sort_keys=True)))
        self.scheduler.noise_sampler_seed = seed  # as if from its config; only DPM++ SDE reads it
        self.set_timesteps(row, steps, options)
        begin = first_step * self.scheduler.order
        self.timesteps = self.scheduler.timesteps[begin:]
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        self.seed = seed
        self.generator = torch.Generator("cpu").manual_seed(seed)
        parameters = inspect.signature(self.scheduler.step).parameters
        self.kwargs = {"generator": self.generator} if "generator" in parameters else {}
        if "eta" in parameters:
            self.kwargs["eta"] = 0.0

    def set_timesteps(self, row, steps, options):
        """Pass what each class takes, as FluxPipeline does for those that it works with."""
        if row.diffusers_class in {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"}:
            self.scheduler.set_timesteps(sigmas=options.sigmas and list(options.sigmas), mu=options.mu)
        elif row.group == "flow" and options.mu is not None and row.name != "flow_heun":
            self.scheduler.set_timesteps(steps, mu=options.mu)
        else:
            self.scheduler.set_timesteps(steps)

    def noised(self, call, image, noise):
        """Return `image` under the noise of the latents before `call`, which comes next."""
        timestep = self.timesteps[call : call + 1]
        if hasattr(self.scheduler, "scale_noise"):
            return self.scheduler.scale_noise(image, timestep, noise)
        if hasattr(self.scheduler, "add_noise"):
            return self.scheduler.add_noise(image, noise, timestep)
        return torch.lerp(image, noise, timestep / 1000)

    def run(self, image, edits):
        """Return the latents before and after every call, and what the image is blended from after each."""
        noise = torch.randn((1, *SHAPE), generator=self.generator)
        latents = self.noised(0, image, noise)
        trace, known = [latents], [latents]
        for call, timestep in enumerate(self.timesteps):
            scaled = latents
            if hasattr(self.scheduler, "scale_model_input"):
                scaled = self.scheduler.scale_model_input(latents, timestep)
            prediction = model(scaled, timestep, self.seed)
            latents = self.scheduler.step(prediction, timestep, latents, **self.kwargs, return_dict=False)[0]
            is_last = call + 1 == len(self.timesteps)
            known.append(image if is_last else self.noised(call + 1, image, noise))
            latents = edited(latents, edits, call)
            trace.append(latents)
        return trace, known


def edited(latents, edits, call):
    """Return latents with some of their numbers replaced, always the same ones, as inpainting does; or as they are."""
    return latents if edits is None else torch.where(edits[0] > 0.8, edits[call] * 3, latents)


class Runner:
    """A run by table or, where there is none, by own steps, in a slot of shared histories."""

    def __init__(self, histories, slot, schedule, *, seed, image=None, edits=None):
        self.histories, self.slot, self.schedule = histories, slot, schedule
        self.seed, self.edits, self.call = seed, edits, 0
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.initial_noise = draw_noise(self.generator, SHAPE)
        self.noise = NoiseSource(schedule, self.generator, SHAPE, seed=seed)
        self.own_steps = OwnSteps(schedule, SHAPE, seed=seed) if schedule.weights is None else None
        first = self.initial_noise * schedule.init_noise_sigma
        if image is not None:
            first = schedule.start[0] * image + schedule.start[1] * self.initial_noise
        histories.begin(slot, first, schedule)

    @property
    def is_done(self):
        return self.call == len(self.schedule)

    @property
    def latents(self):
        return self.histories.current([self.slot], [self.call])

    def predict(self):
        scale = self.schedule.input_scale[self.call]
        return model(self.latents * scale, self.schedule.timesteps[self.call], self.seed)


def advance(histories, runners):
    """Make the next call of all `runners` at once."""
    predictions = [runner.predict() for runner in runners]
    tabled = [(runner, given) for runner, given in zip(runners, predictions, strict=True) if not runner.own_steps]
    for runner, prediction in zip(runners, predictions, strict=True):
        if runner.own_steps:
            after = runner.own_steps.step(runner.call, prediction, runner.latents, runner.generator)
            histories.put([runner.slot], [runner.call + 1], after)
    if tabled:
        histories.advance(
            [runner.slot for runner, _ in tabled],
            [runner.call for runner, _ in tabled],
            [runner.schedule for runner, _ in tabled],
            torch.cat([prediction for _, prediction in tabled]),
            [runner.noise.draw(runner.call) for runner, _ in tabled],
        )
    for runner in runners:
        runner.call += 1
        histories.put([runner.slot], [runner.call], edited(runner.latents, runner.edits, runner.call - 1))


def assert_close(actual, expected, what, tolerance=2e-5, *, largest=1.0):
    """Compare relative to the largest latent, now or before: float32 rounding of some dozens of steps may differ."""
    difference = float((actual - expected).abs().max())
    assert difference <= tolerance * max(largest, float(expected.abs().max())), f"{what}: {difference}"


@st.composite
def runs(draw, group):
    """Return the config of a model, steps, a step to begin at, what the pipeline says of timesteps, and a seed."""
    steps = draw(st.integers(1, 60) | st.integers(1, 5))
    options = NO_OPTIONS
    if group == "diffusion":
        config = SD15 | {"prediction_type": draw(st.sampled_from(["epsilon", "v_prediction"]))}
        spacing = draw(st.sampled_from([None, "trailing", "linspace"]))
        config |= {"timestep_spacing": spacing} if spacing else {}
    else:
        config = draw(st.sampled_from([FLUX, SD3]))
        mu = draw(st.floats(0.5, 1.15)) if config is FLUX else None
        options = TimestepOptions(sigmas=tuple(np.linspace(1.0, 1 / steps, steps)), mu=mu)
    first_step = draw(st.integers(0, steps - 1) | st.just(0))
    return config, steps, first_step, options, draw(st.integers(0, 2**53 - 1))


@rows
@settings(max_examples=2, deadline=None, print_blob=True)
@given(data=st.data())
def test_run_is_diffusers_run(row, data):
    """From any step, with latents edited or not, a run has diffusers' latents after each call, and its noise."""
    config, steps, first_step, options, seed = data.draw(runs(row.group))
    is_edited = data.draw(st.booleans())
    random = torch.Generator("cpu").manual_seed(seed + 1)
    image = torch.randn((1, *SHAPE), generator=random)
    edits = torch.rand((200, 1, *SHAPE), generator=random) if is_edited else None
    try:
        reference = Reference(row, config, steps, first_step, seed=seed, options=options)
        trace, known = reference.run(image, edits)
    except Exception as error:  # noqa: BLE001  whatever it is, ours must say the same
        with pytest.raises(RenderFailed) as failure:
            schedule_for(row, config, steps, first_step=first_step, timestep_options=options)
        assert str(error) in str(failure.value)  # noqa: PT017  the error is the expectation
        return

    schedule = schedule_for(row, config, steps, first_step=first_step, timestep_options=options)
    assert schedule.weights is not None
    assert np.isfinite(schedule.weights).all()
    assert schedule.residual <= MAX_RESIDUAL
    runner = Runner(Histories(2, SHAPE, CPU), 1, schedule, seed=seed, image=image, edits=edits)
    # DEIS divides by 1 - sigma, which is nearly 0 where flows begin: diffusers' own float32 is no better than this.
    # DPM2 looks at the middle of each step: with two steps the latents of the first are of its size no more.
    tolerances = {"flow_deis": 3e-4, "kdpm2": 5e-5}
    tolerance = next((each for name, each in tolerances.items() if row.name.startswith(name)), 2e-5)
    largest = 1.0  # what was rounded when latents were large is carried on when they are small
    for call in range(len(schedule)):
        assert_close(runner.latents, trace[call], f"before call {call} of {len(schedule)}", tolerance, largest=largest)
        largest = max(largest, float(trace[call].abs().max()))
        advance(runner.histories, [runner])
        ours = schedule.renoise[call, 0] * image + schedule.renoise[call, 1] * runner.initial_noise
        assert_close(ours, known[call + 1], f"the known part after call {call} of {len(schedule)}")
    assert_close(runner.latents, trace[-1], "the end", tolerance, largest=largest)
    assert torch.equal(runner.generator.get_state(), reference.generator.get_state())


@pytest.mark.parametrize(
    "name", ["euler", "euler_ancestral", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd"]
)
def test_zero_terminal_snr(name):
    """Models whose first step is pure noise, with its enormous sigma, are sampled as diffusers does."""
    row = find_scheduler(name)
    config = SD15 | {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    reference = Reference(row, config, 12, 0, seed=5)
    image = torch.ones((1, *SHAPE))
    trace, _ = reference.run(image, None)
    runner = Runner(Histories(1, SHAPE, CPU), 0, schedule_for(row, config, 12), seed=5, image=image)
    while not runner.is_done:
        advance(runner.histories, [runner])
    assert_close(runner.latents, trace[-1], name)


def test_a_first_timestep_that_two_steps_share_is_the_first_step():
    """Where diffusers' text-to-image loop runs off the end, the run begins at its beginning and has all its steps."""
    row = find_scheduler("dpmpp_2m_beta")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config({**SD15, **row.config})
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    assert scheduler.index_for_timestep(scheduler.timesteps[0]) == 1
    assert len(schedule_for(row, SD15, 50)) == 50


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("ddim", {"clip_sample": True}),
        ("ddpm", {"clip_sample": True}),
        ("dpmpp_2m_sde", {"thresholding": True}),
        ("lcm", {"clip_sample": True}),
        ("unipc", {"thresholding": True}),
    ],
)
@pytest.mark.parametrize("is_edited", [False, True])
def test_samplers_that_clip_use_their_own_steps(name, extra, is_edited):
    """What clips or thresholds has no table, and by own steps every bit of diffusers' latents, edited or not."""
    row, seed = find_scheduler(name), 7
    image = torch.full((1, *SHAPE), 0.5)
    edits = torch.rand((20, 1, *SHAPE), generator=torch.Generator("cpu").manual_seed(1)) if is_edited else None
    schedule = schedule_for(row, SD15 | extra, 9, first_step=2)
    assert schedule.weights is None
    trace, _ = Reference(row, SD15 | extra, 9, 2, seed=seed).run(image, edits)
    own, generator, latents = OwnSteps(schedule, SHAPE, seed=seed), torch.Generator("cpu").manual_seed(seed), trace[0]
    draw_noise(generator, SHAPE)
    for call in range(len(schedule)):
        prediction = model(latents * schedule.input_scale[call], schedule.timesteps[call], seed)
        latents = edited(own.step(call, prediction, latents, generator), edits, call)
        assert torch.equal(latents, trace[call + 1])


def test_brownian_noise_is_diffusers():
    """DPM++ SDE draws from a tree grown from the seed, not from the generator, and both ways give its numbers."""
    row, seed = find_scheduler("dpmpp_sde_karras"), 2**53 - 1
    schedule = schedule_for(row, SD15, 6)
    generator = torch.Generator("cpu").manual_seed(seed)
    state = generator.get_state()
    source = NoiseSource(schedule, generator, SHAPE, seed=seed)
    reference = Reference(row, SD15, 6, 0, seed=seed)
    asked = []
    reference.scheduler.step(torch.zeros(1, *SHAPE), reference.timesteps[0], torch.zeros(1, *SHAPE))
    tree = reference.scheduler.noise_sampler
    for call, interval in enumerate(schedule.brownian.intervals):
        if interval is None:
            assert source.draw(call) is None
        else:
            expected = tree(*map(torch.tensor, interval))
            assert torch.equal(source.draw(call), expected)
            asked.append(interval)
    assert len(asked) == len(schedule) - 1
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde", "euler"])
def test_noise_asked_for_again_is_not_drawn_again(name):
    """After a failure the same call gets the same noise, and the next call what it would have got."""
    schedule = schedule_for(find_scheduler(name), SD15, 5)

    def drawn(times):
        generator = torch.Generator("cpu").manual_seed(3)
        source = NoiseSource(schedule, generator, SHAPE, seed=3)
        return [[source.draw(call) for _ in range(times)][-1] for call in range(4)], generator.get_state()

    (once, state), (thrice, state_again) = drawn(1), drawn(3)
    assert torch.equal(state, state_again)
    for first, again in zip(once, thrice, strict=True):
        assert (first is None and again is None) or torch.equal(first, again)


def test_own_step_that_failed_is_made_again():
    """A step that fails halfway leaves neither scheduler nor generator changed; one that succeeded is not repeated."""
    schedule = schedule_for(find_scheduler("dpmpp_2m_sde"), SD15 | {"thresholding": True}, 8)

    def run(fails_at):
        own, generator = OwnSteps(schedule, SHAPE, seed=0), torch.Generator("cpu").manual_seed(0)
        latents = torch.ones(1, *SHAPE)
        scheduler = own._prepared.scheduler
        for call in range(len(schedule)):
            prediction = model(latents, call, 0)
            if call == fails_at:
                true_update = scheduler.multistep_dpm_solver_second_order_update

                def fail(*_, **__):
                    raise torch.OutOfMemoryError("halfway")

                scheduler.multistep_dpm_solver_second_order_update = fail
                with pytest.raises(torch.OutOfMemoryError):
                    own.step(call, prediction, latents, generator)
                scheduler.multistep_dpm_solver_second_order_update = true_update
            following = own.step(call, prediction, latents, generator)
            assert own.step(call, prediction * 2, latents, generator) is following
            latents = following
        return latents

    assert torch.equal(run(4), run(None))


def test_own_steps_are_made_in_order():
    """A call that does not follow the last one is an error, not another image."""
    own = OwnSteps(schedule_for(find_scheduler("unipc"), SD15, 8), SHAPE, seed=0)
    latents, generator = torch.ones(1, *SHAPE), torch.Generator("cpu")
    with pytest.raises(ValueError, match="call 1 does not follow call -1"):
        own.step(1, latents, latents, generator)


@settings(max_examples=settings.default.max_examples // 20, print_blob=True)
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
    schedules = [schedule_for(row, SD3 if row.group == "flow" else SD15, steps) for row, steps, _, _ in wishes]
    histories = Histories(num_slots, SHAPE, CPU)
    free = list(range(num_slots))
    waiting, running, finished = list(enumerate(wishes)), [], {}
    step = 0
    while waiting or running:
        for number, (row, steps, seed, joins_at) in list(waiting):
            if joins_at <= step and free:
                slot = free.pop(data.draw(st.integers(0, len(free) - 1)))
                running.append((number, Runner(histories, slot, schedules[number], seed=seed)))
                waiting.remove((number, (row, steps, seed, joins_at)))
        if running:
            advance(histories, [runner for _, runner in running])
        for number, runner in list(running):
            if runner.is_done:
                finished[number] = runner.latents
                free.append(runner.slot)
                running.remove((number, runner))
        step += 1
    for number, (row, _, seed, _) in enumerate(wishes):
        alone = Histories(num_slots, SHAPE, CPU)
        runner = Runner(alone, 0, schedules[number], seed=seed)
        while not runner.is_done:
            advance(alone, [runner])
        assert torch.equal(finished[number], runner.latents), row.name


def test_nan_of_a_neighbour_stays_there():
    """A run ruined by NaN ruins neither its neighbours nor the next run in its slot."""
    histories = Histories(2, SHAPE, CPU)
    schedule = schedule_for(find_scheduler("euler"), SD15, 4)
    deep = schedule_for(find_scheduler("lms"), SD15, 4)
    Runner(histories, 0, schedule, seed=0)
    healthy = Runner(histories, 1, deep, seed=1)
    histories.advance([0, 1], [0, 0], [schedule, deep], torch.full((2, *SHAPE), torch.nan), [None, None])
    histories.begin(1, torch.ones(1, *SHAPE), deep)
    healthy.call = 0
    advance(histories, [healthy])
    assert torch.isnan(histories.current([0], [1])).all()
    assert torch.isfinite(healthy.latents).all()


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m_sde", "lms"])
def test_advance_that_failed_is_made_again(name, monkeypatch):
    """An advance that fails at its last write, and is made again, ends with the same bits."""
    histories = Histories(1, SHAPE, CPU)
    untroubled, troubled = (Histories(1, SHAPE, CPU) for _ in range(2))
    ends = []
    for histories in (untroubled, troubled):
        runner = Runner(histories, 0, schedule_for(find_scheduler(name), SD15, 8), seed=0)
        for call in range(6):
            if histories is troubled and call > 0:
                prediction, noise = runner.predict(), runner.noise.draw(call)
                writes = []

                def write(*args, true_write=histories._write, writes=writes):
                    writes.append(args)
                    if len(writes) == 2:
                        raise torch.OutOfMemoryError("at the last write")
                    true_write(*args)

                with monkeypatch.context() as patch:
                    patch.setattr(histories, "_write", write)
                    with pytest.raises(torch.OutOfMemoryError):
                        histories.advance([0], [call], [runner.schedule], prediction, [noise])
            advance(histories, [runner])
        ends.append(runner.latents)
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["dpmpp_2m", "lms"])
def test_advance_that_was_made_is_not_made_again(name):
    """After a failure behind the advance all its seats are advanced again, and those that were stay where they are."""
    num_seats, schedule = 2, schedule_for(find_scheduler(name), SD15, 9)
    histories = Histories(num_seats, SHAPE, CPU)
    runners = [Runner(histories, slot, schedule, seed=slot) for slot in range(num_seats)]
    for call in range(6):
        advance(histories, runners)
        ends = [runner.latents for runner in runners]
        runners[0].call = call  # as if only this one had to go once more
        histories.advance([0], [call], [schedule], torch.full((1, *SHAPE), torch.nan), [None])
        runners[0].call = call + 1
        for runner, end in zip(runners, ends, strict=True):
            assert torch.equal(runner.latents, end)
    alone = Runner(Histories(num_seats, SHAPE, CPU), 0, schedule, seed=0)
    for _ in range(6):
        advance(alone.histories, [alone])
    assert torch.equal(alone.latents, runners[0].latents)


def test_refusal_of_diffusers_is_passed_on():
    """What diffusers itself refuses fails the unit with diffusers' reason."""
    with pytest.raises(RenderFailed, match=r"lcm with 60 steps: .*original_steps"):
        schedule_for(find_scheduler("lcm"), SD15, 60)


def test_lcm_takes_more_steps_of_a_teacher_that_has_more():
    """`original_inference_steps` reaches LCM and TCD, and other classes are not troubled with it."""
    options = TimestepOptions(original_inference_steps=100)
    assert len(schedule_for(find_scheduler("lcm"), SD15, 60, timestep_options=options)) == 60
    assert len(schedule_for(find_scheduler("euler"), SD15, 60, timestep_options=options)) == 60


def test_a_run_that_begins_at_its_end_is_refused():
    """A run needs a step; an image that is to stay as it is does not come here."""
    with pytest.raises(RenderFailed, match="euler with 4 steps from step 4: no steps are left"):
        schedule_for(find_scheduler("euler"), SD15, 4, first_step=4)


def test_numbers_that_are_not_finite_are_refused():
    """A model that predicts noise cannot start from zero signal: diffusers divides by zero, and the unit fails."""
    config = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(RenderFailed, match="not finite"):
        schedule_for(find_scheduler("ddim"), config, 10)


def test_tables_are_cached():
    """The same scheduler, model config, steps and beginning share one table; another config has its own."""
    row = find_scheduler("dpmpp_2m")
    assert schedule_for(row, SD15, 9) is schedule_for(row, dict(SD15), 9)
    assert schedule_for(row, SD15, 9) is not schedule_for(row, {**SD15, "prediction_type": "v_prediction"}, 9)
    assert schedule_for(row, SD15, 9) is not schedule_for(row, SD15, 9, first_step=3)
