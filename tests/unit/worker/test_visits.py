"""Text encoders that live in RAM come to the device when they are wanted, one at a time, for all who wait."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import diffusers
import pytest
import torch

from farm.plans import ComponentPlan, Phase, Plan, Precision, Where
from tiny_flow_models import save_tiny_flux, save_tiny_sd3
from tiny_models import save_tiny_sdxl, tiny_unit
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS
from worker.pipelines.flux import FluxPipeline
from worker.pipelines.latent import Loaded
from worker.pipelines.placement import Placement
from worker.pipelines.sd3 import Sd3Pipeline
from worker.pipelines.sdxl import SdxlPipeline

CPU = torch.device("cpu")
ENCODERS = {"sdxl": 2, "flux": 2, "sd3": 3}


class Watched(Placement):
    """A placement whose text encoders hold nothing but NaN while they are at home; it remembers who came."""

    def __init__(self, components, plan):
        super().__init__(components, plan, CPU)
        self.visits = []
        self._weights = {part.name: self._empty(part.name) for part in plan.components if part.where is Where.EVICTED}

    def _empty(self, name):
        """Put NaN in the place of all weights of `name` and return these."""
        tensors = [*self.components[name].parameters()]
        weights = [tensor.data for tensor in tensors]
        for tensor in tensors:
            tensor.data = torch.full_like(tensor.data, torch.nan)
        return weights

    @contextmanager
    def on_device(self, *names):
        """Let encoders come, which must be alone."""
        newcomers = [name for name in names if name in self._weights and name not in self._visiting]
        for name in newcomers:
            assert not self._visiting, f"{name} comes while {self._visiting} is there"
            self._visiting.add(name)
            self.visits.append(name)
            for tensor, data in zip(self.components[name].parameters(), self._weights[name], strict=True):
                tensor.data = data
        try:
            yield
        finally:
            for name in newcomers:
                self._visiting.discard(name)
                self._empty(name)


@dataclass
class Case:
    """A model with its encoders at hand, and the same with its encoders in RAM."""

    here: object
    away: object
    placement: Watched
    fields: dict[str, object]

    def units(self, count, **fields):
        """Return units of prompts of their own."""
        common = {"num_inference_steps": 2, **self.fields, **fields}
        return [tiny_unit(index=index, prompt=f"a red {index}", seed=index, **common) for index in range(count)]

    def keep(self, count):
        """Let the cache hold no more than `count` units' words."""
        with torch.inference_mode():
            self.here.encode(self.units(1)[0], NO_INPUTS)
        self.away.text_cache.max_bytes = count * self.here.text_cache.num_bytes

    def visits(self):
        """Return who has come since this was asked last."""
        visits, self.placement.visits = self.placement.visits, []
        return visits


def render(pipeline, units, *, max_batch=2):
    """Render `units` with an engine, all submitted at once; return their pixels or failures."""
    engine = Engine(lambda _: pipeline, max_batch=max_batch)
    futures = [engine.submit(unit) for unit in units]
    with torch.inference_mode():
        while not all(future.done() for future in futures):
            engine._pass(engine._next_lane())
    return [future.exception() or future.result().pixels.tobytes() for future in futures]


@pytest.fixture(scope="module", params=ENCODERS)
def folder(request, tmp_path_factory):
    """Save a model of each family that has more than one text encoder; return it and the family's name."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    match request.param:
        case "sdxl":
            save_tiny_sdxl(folder)
        case "flux":
            save_tiny_flux(folder, guidance_embeds=True)
        case "sd3":
            save_tiny_sd3(folder)
    return folder, request.param


@pytest.fixture
def case(folder):
    """Set up the model twice."""
    path, family = folder
    cls = {"sdxl": SdxlPipeline, "flux": FluxPipeline, "sd3": Sd3Pipeline}[family]
    fields = {"scheduler": "euler" if family == "sdxl" else "flow_euler", "negative_prompt": "blurry"}
    if family == "flux":
        fields |= {"true_cfg_scale": 2.0}
    here, _ = load(path, cls, Where.RESIDENT)
    away, placement = load(path, cls, Where.EVICTED)
    return Case(here, away, placement, fields)


@cache
def opened(folder):
    """Open a model with diffusers, to copy its parts from."""
    return diffusers.DiffusionPipeline.from_pretrained(folder)


def load(folder, cls, where):
    """Return a model of `cls` whose text encoders live where `where` says, and its placement."""
    parts = copy.deepcopy(opened(folder).components)
    modules = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    components = tuple(
        ComponentPlan(name, Precision.FP32, Precision.FP32, where if "text" in name else Where.RESIDENT, 0)
        for name in modules
    )
    plan = Plan(
        family=cls.family,
        width=16,
        height=16,
        guided=True,
        vram_bytes=0,
        margin_bytes=0,
        components=components,
        vae_tile_px=None,
        max_batch=1,
        steady_bytes=0,
        phases=(Phase("denoise", ()),),
    )
    placement = Watched(modules, plan)
    loaded = Loaded(
        name="tiny",
        parts=parts,
        placement=placement,
        scheduler_config=dict(parts["scheduler"].config),
        model_hash="0" * 64,
        device=CPU,
        device_name="cpu",
        dtype=torch.float32,
        max_sequence_length=20,
    )
    return cls(loaded), placement


def test_one_visit_of_each_for_all_who_wait(case):
    """Eight prompts and the negative one are encoded in one visit of each encoder; the images are the same."""
    units = case.units(8)
    assert render(case.away, units) == render(case.here, units)
    visits = case.visits()
    assert len(visits) == len(set(visits)) == len(case.away._visits.away)


def test_nobody_comes_for_what_is_known(case):
    """Prompts that are in the cache need no encoder; a new one brings each once."""
    units = case.units(4)
    render(case.away, units)
    case.visits()
    render(case.away, [replace(unit, seed=9) for unit in units])
    assert case.visits() == []
    render(case.away, case.units(5)[4:])
    assert len(case.visits()) == len(case.away._visits.away)


def test_encoders_that_live_on_the_device_stay_there(case):
    """Where the plan keeps the text encoders on the device, nobody asks whether to encode ahead."""
    case.here.encode_ahead(case.units(3))
    assert len(case.here.text_cache) == 0


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_more_prompts_than_the_cache_holds(case, kept):
    """A cache that holds few of the prompts, or none, costs visits and changes no image."""
    case.keep(kept)
    units = case.units(8)
    assert render(case.away, units) == render(case.here, units)
    if kept == 4:
        one_by_one = len(units) * len(case.away._visits.away)
        assert len(case.visits()) <= one_by_one // 2


def test_what_is_encoded_ahead_does_not_drive_out_what_comes_first(case):
    """However many wait, the first ones' words are there when they take their seats."""
    case.keep(4)
    units = case.units(64)
    with torch.inference_mode():
        case.away.encode_ahead(units)
        case.visits()
        for unit in units[:2]:
            case.away.encode(unit, NO_INPUTS)
    assert case.visits() == []


def test_a_visit_waits_until_it_is_wanted_soon(case):
    """One more prompt at the end of the line brings nobody while half a cache of others is before it."""
    case.keep(8)
    units = case.units(9)
    with torch.inference_mode():
        case.away.encode_ahead(units[:6])
        assert len(case.visits()) == len(case.away._visits.away)
        case.away.encode_ahead(units[1:7])
        assert case.visits() == []
        case.away.encode_ahead(units[5:])
        assert len(case.visits()) == len(case.away._visits.away)


def test_words_that_cannot_be_encoded_are_nobody_elses_trouble(case):
    """A unit that skips more layers than there are fails alone; it costs no more than a visit of its own."""
    units = case.units(4)
    units[1] = replace(units[1], clip_skip=9)
    away, here = render(case.away, units), render(case.here, units)
    assert [str(image) for image in away] == [str(image) for image in here]
    assert len(case.visits()) <= len(case.away._visits.away) + 1
