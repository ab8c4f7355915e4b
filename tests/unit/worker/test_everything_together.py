"""All that may be asked for, at once and over time in one engine: each image is diffusers', whatever happens around it.

Units of every kind join at random; some are cancelled, one fails, memory runs out now and then. Whoever is left comes
out as diffusers' own pipelines render it alone, and under `invariant` bit for bit as alone in an engine of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from everything_parity import CONTROLNETS, LORAS, WORDS, FlowEverything, UnetStudio, flow_row
from farm.errors import RenderFailed
from farm.jobs import ControlNet, Hires
from farm.prompts import Lora
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from flow_parity import FLOW_PROMPTS
from parity import BROWNIAN_WARNING, MAX_DIFFERENCE
from picture_parity import mask, picture
from tiny_flow_models import save_tiny_flux, save_tiny_sd3
from tiny_models import save_tiny_sd15, save_tiny_sdxl, tiny_unit
from worker.engine import Engine
from worker.pipelines.base import Inputs
from worker.seat import UnitCancelled

pytestmark = [
    pytest.mark.filterwarnings(BROWNIAN_WARNING),
    # diffusers adds a second adapter to the text encoder through transformers, which minds
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]

FAMILIES = ("sd15", "sdxl", "flux", "sd3")
MAX_BATCH = 3
_SIZES = {"unet": (8, 16, 24), "flow": (12, 16, 20)}
_SAVE = {
    "sd15": save_tiny_sd15,
    "sdxl": save_tiny_sdxl,
    "flux": lambda folder: save_tiny_flux(folder, guidance_embeds=True),
    "sd3": lambda folder: save_tiny_sd3(folder, channels=16),
}


@pytest.fixture(scope="module")
def studios(tmp_path_factory):
    """Return a function that opens the studio of a family, once."""
    opened = {}

    def studio_of(family):
        if family not in opened:
            folder = _SAVE[family](tmp_path_factory.mktemp(family) / "tiny")
            is_flow = family in {"flux", "sd3"}
            opened[family] = (
                FlowEverything.open(folder, **flow_row(family)) if is_flow else UnetStudio.open(folder, family=family)
            )
        return opened[family]

    return studio_of


@dataclass(frozen=True, repr=False)
class Play:
    """What is rendered, and what happens meanwhile."""

    units: list[Any]
    inputs: list[Inputs]
    seed: int  # of when units join and what befalls them
    max_rows: int  # more than this may not fit the memory, now and then
    poisoned: int | None  # the unit that fails
    cancelled: frozenset[int]


@st.composite
def units_of(draw, family):
    """Draw a unit of any kind, and its pictures."""
    is_flow = family in {"flux", "sd3"}
    texts = st.sampled_from(FLOW_PROMPTS) if is_flow else st.sampled_from(sorted(WORDS))
    guided = draw(st.booleans())
    scale = draw(st.floats(1.5, 8))
    unguided = {"guidance_scale": draw(st.sampled_from([0.0, 1.0]))}
    guidance = {"guidance_scale": scale} if guided else unguided
    if family == "flux":
        guidance = {"guidance_scale": scale, "true_cfg_scale": 3.0 if guided else 1.0}
    sizes = st.sampled_from(_SIZES["flow" if is_flow else "unet"])
    unit = tiny_unit(
        prompt=draw(texts),
        negative_prompt=draw(texts),
        seed=draw(st.integers(0, 2**53 - 1)),
        scheduler=draw(st.sampled_from([row.name for row in schedulers_of("flow" if is_flow else "diffusion")])),
        num_inference_steps=draw(st.integers(2, 5)),
        guided=guided,
        width=draw(sizes),
        height=draw(sizes),
        clip_skip=0 if family == "flux" else draw(st.sampled_from([0, 0, 1])),
        strength=draw(st.floats(0.5, 1)),
        loras=draw(_loras(LORAS[:2] if is_flow else LORAS)),
        reproducibility=draw(st.sampled_from(list(Reproducibility))),
        **guidance,
    )
    if draw(st.integers(0, 3)) == 0:
        upscaler = draw(st.sampled_from(["latent", "lanczos"]))
        second = Hires(draw(sizes) + 8, draw(sizes) + 8, draw(st.floats(0.5, 1)), draw(st.integers(2, 4)), upscaler)
        unit = replace(unit, hires=second)
    nets = () if is_flow else draw(st.sampled_from([(), (), *_CONTROLS]))
    unit = replace(unit, controlnets=nets)
    look = draw(st.integers(0, 99))
    shape = (unit.width, unit.height)
    if not is_flow:
        shape = draw(st.sampled_from([shape, (23, 31)]))
    kind = draw(st.integers(0, 2))
    if family == "flux" and unit.scheduler == "flow_heun":
        # FluxImg2ImgPipeline counts Heun's calls for steps, and asks for more than there are.
        unit, kind = replace(unit, hires=None), 0
    return unit, Inputs(
        image=picture(look, *shape) if kind else None,
        mask=mask(look, *shape) if kind == 2 else None,
        controls=tuple(picture(look + place, 21, 13) for place in range(len(nets))),
    )


_CONTROLS = (
    (ControlNet(CONTROLNETS[0], "", 0.8),),
    (ControlNet(CONTROLNETS[1], "", 1.0, 0.0, 0.5), ControlNet(CONTROLNETS[0], "", 1.5, 0.3, 1.0)),
)


def _loras(names):
    some = [
        (),
        (),
        (Lora(names[0], 0.8),),
        (Lora(names[1], -0.4), Lora(names[0], 0.5)),
        (Lora(names[-1], 0.7),),
    ]
    return st.sampled_from(some)


@st.composite
def plays_of(draw, family):
    """Draw a play of a few units."""
    drawn = draw(st.lists(units_of(family), min_size=2, max_size=5))
    numbers = st.integers(0, len(drawn) - 1)
    return Play(
        # Twins would be looked up by their pixels, which are the same at any batch shape; the bits before are not.
        units=[replace(unit, index=index, seed=unit.seed ^ index) for index, (unit, _) in enumerate(drawn)],
        inputs=[inputs for _, inputs in drawn],
        seed=draw(st.integers(0, 999)),
        max_rows=draw(st.integers(1, MAX_BATCH)),
        poisoned=draw(st.none() | numbers),
        cancelled=draw(st.frozensets(numbers, max_size=1)),
    )


class Poison(Exception):
    """The failure of one unit."""


def perform(studio, play):
    """Render a play in one engine; return by unit what came of it, Rendered or an exception."""
    chance = random.Random(play.seed)  # noqa: S311 - makes up a test case
    engine = Engine(lambda _: studio.ours, max_batch=MAX_BATCH)
    poisonous = []
    encode, predict = studio.ours.encode, studio.ours.predict

    def encode_poison(unit, inputs):
        encoded = encode(unit, inputs)
        if unit.index == play.poisoned:
            poisonous.append(encoded.conditioning)
        return encoded

    def predict_or_fail(latents, rides, *, guided, batch_shape):
        if (batch_shape or len(rides)) > play.max_rows and chance.random() < 0.3:
            raise torch.OutOfMemoryError("so much does not fit")
        if any(ride.conditioning is each for ride in rides for each in poisonous) and chance.random() < 0.7:
            raise Poison("of this unit alone")
        return predict(latents, rides, guided=guided, batch_shape=batch_shape)

    studio.ours.encode, studio.ours.predict = encode_poison, predict_or_fail
    try:
        return _perform(studio, engine, play, chance)
    finally:
        del studio.ours.encode, studio.ours.predict


def _perform(studio, engine, play, chance):
    waiting = list(range(len(play.units)))
    chance.shuffle(waiting)
    doomed = set(play.cancelled)
    futures = {}
    with torch.inference_mode():
        while waiting or not all(future.done() for future in futures.values()):
            for _ in range(chance.choice([0, 0, 1, 2])):
                if waiting:
                    number = waiting.pop()
                    futures[number] = engine.submit(play.units[number], play.inputs[number])
            for number in sorted(doomed & futures.keys()):
                if chance.random() < 0.3:
                    doomed.remove(number)
                    engine.cancel(play.units[number].job, number)
            engine._drop_cancelled()
            if not all(future.done() for future in futures.values()):
                engine._pass(engine._next_lane())
    outcomes = [futures[number].exception() or futures[number].result() for number in range(len(play.units))]
    assert engine.stats().running == engine.stats().waiting == 0
    return [
        outcome if isinstance(outcome, Exception) else (outcome, studio.by_us(outcome).clone()) for outcome in outcomes
    ]


def assert_as_diffusers(studio, play, outcomes):
    """Compare every image of a play with diffusers'; return how many there were."""
    count = 0
    for number, (unit, inputs, outcome) in enumerate(zip(play.units, play.inputs, outcomes, strict=True)):
        if isinstance(outcome, UnitCancelled):
            assert number in play.cancelled
            continue
        if isinstance(outcome, RenderFailed) and "Poison" in str(outcome):
            assert number == play.poisoned
            continue
        try:
            reference = studio.by_diffusers(unit, inputs)
        except Exception as refusal:  # noqa: BLE001  whatever diffusers cannot do proves nothing
            studio.refusals.append((unit, outcome, refusal))
            continue
        if isinstance(outcome, Exception):
            raise outcome
        _, image = outcome
        assert image.shape == reference.shape
        difference = float((image - reference).abs().max())
        # A picture between two passes is rounded to 8 bits, where the last bit of a float may become 1/255.
        is_rounded = unit.hires is not None and unit.hires.upscaler == "lanczos"
        assert difference <= MAX_DIFFERENCE * (20 if is_rounded else 1), f"{difference} of {unit}"
        count += 1
    return count


def assert_as_alone(studio, play, outcomes):
    """Compare every invariant image of a play, bit for bit, with the one that a fresh engine makes of it alone."""
    for unit, inputs, outcome in zip(play.units, play.inputs, outcomes, strict=True):
        if isinstance(outcome, Exception) or unit.reproducibility is not Reproducibility.INVARIANT:
            continue
        rendered, image = outcome
        if rendered.timings.batch_shape != MAX_BATCH or (unit.hires and play.max_rows < MAX_BATCH):
            continue  # memory ran out, in a first pass perhaps, and the shape is another one
        alone = replace(play, units=[unit], inputs=[inputs], max_rows=MAX_BATCH, poisoned=None, cancelled=frozenset())
        ((_, expected),) = perform(studio, alone)
        assert torch.equal(image, expected), f"{unit}"


@pytest.mark.parametrize(
    ("family", "num_plays"),
    [
        *((family, 5) for family in FAMILIES),
        *(pytest.param(family, 10, marks=[pytest.mark.slow, pytest.mark.long]) for family in FAMILIES),
    ],
)
def test_everything_together(studios, family, num_plays):
    """Any units of a family, whatever befalls their neighbours, are diffusers' images."""
    studio = studios(family)
    studio.refusals = []
    rendered = []

    @settings(
        max_examples=num_plays,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(play=plays_of(family))
    def check(play):
        outcomes = perform(studio, play)
        rendered.append(assert_as_diffusers(studio, play, outcomes))
        assert_as_alone(studio, play, outcomes)

    check()
    assert sum(rendered) > num_plays, "too few were compared to prove anything"
