"""ControlNets steer as in diffusers' pipelines: one or several, over any share of the steps, beside other runs."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch

from acceleration_parity import AcceleratedStudio
from farm.catalog import ControlNetRow
from farm.errors import RenderFailed
from farm.jobs import Acceleration, ControlNet
from farm.requests import Reproducibility
from farm.schedulers import schedulers_of
from parity import BROWNIAN_WARNING, SOME_SCHEDULERS, units_of
from picture_parity import PictureStudio, control_arguments, mask, picture
from tiny_models import SIZE_PX, save_tiny_controlnet, save_tiny_sd15, save_tiny_sdxl, tiny_row, tiny_unit
from worker.pipelines.base import Inputs
from worker.pipelines.loading import load_pipeline

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

SCHEDULERS = schedulers_of("diffusion")
NAMES = ("edges", "depth")
_PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionControlNet{}Pipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLControlNet{}Pipeline",
}


class ControlStudio(PictureStudio):
    """A studio with two ControlNets, of which units take none, one or both."""

    @classmethod
    def load(cls, folder, *, family):
        """Set up the model in `folder`, and ControlNets beside it."""
        reference = diffusers.DiffusionPipeline.from_pretrained(folder)
        rows = {}
        for seed, name in enumerate(NAMES):
            save_tiny_controlnet(reference.unet, folder / name, seed=seed)
            rows[name] = ControlNetRow(name=name, family=family, source=str(folder / name))
        ours = load_pipeline(
            tiny_row(folder, family=family), models_dir=folder, device=torch.device("cpu"), controlnets=rows
        )
        studio = cls(ours, reference)
        studio.nets = {name: diffusers.ControlNetModel.from_pretrained(folder / name) for name in NAMES}
        studio.pipelines = {}
        return studio

    def pipeline_for(self, unit, inputs):
        """Return the pipeline for what the unit brings along."""
        if not unit.controlnets:
            return super().pipeline_for(unit, inputs)
        kind = "" if inputs.image is None else "Img2Img" if inputs.mask is None else "Inpaint"
        names = tuple(net.model for net in unit.controlnets)
        if (kind, names) not in self.pipelines:
            pipeline_class = getattr(diffusers, _PIPELINES[type(self.reference).__name__].format(kind))
            nets = [self.nets[name] for name in names]
            pipeline = pipeline_class(**self.reference.components, controlnet=nets)
            pipeline.set_progress_bar_config(disable=True)
            self.pipelines[kind, names] = pipeline
        return self.pipelines[kind, names]

    def arguments_for(self, unit, inputs):
        """Return what the pipeline is called with."""
        arguments = dict(super().arguments_for(unit, inputs))
        if not unit.controlnets:
            return arguments
        return arguments | control_arguments(unit, inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a tiny SD 1.5."""
    return save_tiny_sd15(tmp_path_factory.mktemp("sd15") / "tiny")


@pytest.fixture(scope="module")
def studio(folder):
    """Set up a tiny SD 1.5 with ControlNets."""
    return ControlStudio.load(folder, family="sd15")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """Set up a tiny SDXL with ControlNets."""
    return ControlStudio.load(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"), family="sdxl")


def controlled_units(schedulers, *, seed, **fields):
    """Return one unit per scheduler with no, one or two ControlNets; some begin from pictures, some are inpainted."""
    choices = (
        (ControlNet("edges", "", 0.8),),
        (ControlNet("depth", "", 1.0, 0.0, 0.5), ControlNet("edges", "", 1.5, 0.3, 1.0)),
        (),
        (ControlNet("edges", "", 1.2, 0.4, 0.9),),
    )
    units, inputs = [], []
    for number, unit in enumerate(units_of(schedulers, seed=seed, **fields)):
        controlnets = choices[number % 4]
        controls = tuple(picture(10 * number + place, 21, 13) for place in range(len(controlnets)))
        units.append(replace(unit, controlnets=controlnets, strength=0.8 if number % 3 else 1.0))
        inputs.append(
            Inputs(
                controls=controls,
                image=picture(number) if number % 3 else None,
                mask=mask(number) if number % 3 == 2 else None,
            )
        )
    return units, inputs


@pytest.mark.slow
@pytest.mark.long
def test_every_scheduler_in_mixed_company(studio):
    """Runs with and without ControlNets join one lane at random and come out as if alone."""
    units, inputs = controlled_units(SCHEDULERS, seed=1, guidance_scale=4.0)
    images = studio.assert_all_same(units, inputs, seed=3, max_batch=6)
    assert max(rendered.timings.mean_batch for rendered in images) > 2


def test_alone_and_unguided(studio):
    """A lane of one seat, without guidance, gives the same."""
    units, inputs = controlled_units(SOME_SCHEDULERS, seed=2, guidance_scale=0.0)
    for unit, brought in zip(units, inputs, strict=True):
        studio.assert_all_same([unit], [brought], seed=0, max_batch=1)


def test_sdxl(sdxl):
    """SDXL's ControlNets are told pooled states and sizes as its UNet is."""
    units, inputs = controlled_units(SOME_SCHEDULERS, seed=3, guidance_scale=4.0)
    sdxl.assert_all_same(units, inputs, seed=5, max_batch=4)


def test_the_control_matters(studio):
    """The images that these tests compare do depend on the control, its strength and its share of the steps."""
    unit = tiny_unit(num_inference_steps=4)
    nets = [ControlNet("edges", "", 1.0), ControlNet("edges", "", 0.5), ControlNet("edges", "", 1.0, 0.0, 0.5)]
    images = [studio.by_diffusers(unit)]
    images += [studio.by_diffusers(replace(unit, controlnets=(net,)), Inputs(controls=(picture(1),))) for net in nets]
    images.append(studio.by_diffusers(replace(unit, controlnets=(nets[0],)), Inputs(controls=(picture(2),))))
    for number, one in enumerate(images):
        assert all(float((one - other).abs().max()) > 1e-3 for other in images[:number])


def test_invariant(studio):
    """Bit for bit the same, whoever sits beside it."""
    names = SOME_SCHEDULERS[:4]
    units, inputs = controlled_units(names, seed=4, guidance_scale=4.0, reproducibility=Reproducibility.INVARIANT)
    studio.assert_company_is_of_no_account(units, inputs, max_batch=3)


def failure_of(ours, controlnet):
    """Return why a unit with this ControlNet fails, after its neighbour without one was rendered."""
    studio = PictureStudio.__new__(PictureStudio)
    studio.ours, studio._images = ours, {}
    unit = tiny_unit(controlnets=(ControlNet(controlnet, ""),), width=SIZE_PX)
    (rendered,) = PictureStudio.render(studio, [tiny_unit()], seed=0, max_batch=2)
    assert rendered.pixels.any()
    with pytest.raises(RenderFailed) as raised:
        PictureStudio.render(studio, [unit], [Inputs(controls=(picture(1),))], seed=0, max_batch=2)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "there is no folder"),
        ("empty", "no weights"),
        ("shuffle", "guess mode"),
        ("foreign", "reads texts of width 40, this model's are 16 wide"),
        ("unknown", "catalog has no ControlNet"),
    ],
)
def test_a_controlnet_that_cannot_be_had_fails_who_asked_for_it(folder, sdxl, tmp_path, name, reason):
    """The unit fails with the name and the reason; its neighbours and the worker go on."""
    reference = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    save_tiny_controlnet(reference, tmp_path / "shuffle", seed=0, global_pool_conditions=True)
    save_tiny_controlnet(sdxl.reference.unet, tmp_path / "foreign", seed=0)
    rows = {
        each: ControlNetRow(name=each, family="sd15", source=str(tmp_path / each))
        for each in ("nowhere", "empty", "shuffle", "foreign")
    }
    ours = load_pipeline(tiny_row(folder), models_dir=folder, device=torch.device("cpu"), controlnets=rows)
    told = failure_of(ours, name)
    assert reason in told
    assert name in told


def test_few_controlnets_are_kept_at_once(studio):
    """The one longest unused leaves when one more is asked for, and is loaded again when its turn comes."""
    nets = studio.ours._controlnets
    loads = []
    load, nets._load, nets._max_loaded = nets._load, lambda name: loads.append(name) or load(name), 1
    nets._loaded.clear()
    try:
        units = [tiny_unit(index=n, controlnets=(ControlNet(NAMES[n % 2], ""),)) for n in range(3)]
        for unit in units:
            studio.assert_all_same([unit], [Inputs(controls=(picture(1),))], seed=0, max_batch=1)
    finally:
        nets._load, nets._max_loaded = load, 3
    assert loads[:1] + loads[-1:] == ["edges", "edges"]
    assert set(loads) == set(NAMES)


class DeepControlStudio(AcceleratedStudio, ControlStudio):
    """Whose references keep deep features as well."""


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_deep_features_go_with_controlnets(family, tmp_path):
    """Between whole calls ControlNets steer the outermost blocks anew; what they did deeper is in the kept feature."""
    save = {"sd15": save_tiny_sd15, "sdxl": save_tiny_sdxl}[family]
    studio = DeepControlStudio.load(save(tmp_path / "tiny"), family=family)
    units, inputs = controlled_units(SOME_SCHEDULERS[:6], seed=9, guidance_scale=4.0, num_inference_steps=5)
    units = [
        replace(unit, acceleration=Acceleration(deep_cache_interval=1 + number % 3))
        for number, unit in enumerate(units)
    ]
    studio.assert_all_same(units, inputs, seed=4, max_batch=4)
