"""Expansion keeps count and order, and every unit can be found again from the runs alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.catalog import Catalog
from farm.errors import Refused
from farm.expand import expand, locate, runs_of, unit_of
from farm.jobs import ControlNet, Hires
from farm.requests import MAX_SEED, JobSpec

SCENES = Catalog().row("scenes")


FLUX = Catalog().row("flux-schnell")
KEY, OTHER_KEY = f"uploads/{'a' * 64}.png", "jobs/job_01m82gwex9vm3wadzceh/0000003.webp"


def expanded(row=SCENES, **fields):
    """Expand a job, for the model that ships unless another is named."""
    spec = JobSpec.model_validate({"model": row.name, "prompts": ["a red circle"], **fields})
    return expand(
        spec,
        row,
        job_id="job_1",
        tenant="default",
        created_at=0.0,
        drawn_seed=77,
        max_prompts=100,
        max_images=10_000,
        controlnets=("canny", "depth"),
        input_hosts={"images.example"},
    )


@given(st.lists(st.integers(min_value=1, max_value=5), min_size=1, max_size=30))
def test_runs_locate_every_unit(num_images):
    """Locating all indices gives every image of every entry, once, in order."""
    runs = runs_of(num_images)
    expected = [(entry, image) for entry, count in enumerate(num_images) for image in range(count)]
    assert [locate(runs, index) for index in range(sum(num_images))] == expected


@given(
    counts=st.lists(st.integers(min_value=1, max_value=4), min_size=1, max_size=10),
    seed=st.integers(min_value=0, max_value=2**40),
)
def test_image_i_of_a_prompt_has_seed_plus_i(counts, seed):
    """Units come prompt by prompt, their seeds counting up from the job's."""
    prompts = [{"prompt": f"p{i}", "num_images_per_prompt": count} for i, count in enumerate(counts)]
    job = expanded(prompts=prompts, seed=seed)
    units = []
    for index in range(job.header.total):
        entry, _ = locate(job.header.runs, index)
        units.append(unit_of(job.header, job.entries[entry], index=index, attempt=1))
    assert [(unit.prompt, unit.seed) for unit in units] == [
        (f"p{i}", seed + image) for i, count in enumerate(counts) for image in range(count)
    ]


def test_a_prompt_overrides_the_job_and_the_job_the_model():
    """Each parameter comes from the nearest place that names it."""
    job = expanded(
        prompts=[
            "plain",
            {"prompt": "own", "seed": 5, "num_inference_steps": 7, "guidance_scale": 0, "scheduler": "DDIM"},
        ],
        seed=100,
        num_inference_steps=12,
        negative_prompt="blurry",
    )
    plain, own = job.entries
    assert (plain.seed, plain.num_inference_steps, plain.guidance_scale) == (100, 12, SCENES.guidance_scale)
    assert (plain.scheduler, plain.width, plain.height) == (SCENES.scheduler, SCENES.width, SCENES.height)
    assert (own.seed, own.num_inference_steps, own.guidance_scale, own.scheduler) == (5, 7, 0, "ddim")
    assert own.negative_prompt == "blurry"


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_is_drawn_when_none_is_named(seed):
    """Without a seed, or with A1111's -1, the drawn one is used and recorded."""
    assert expanded(seed=seed).entries[0].seed == 77


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 100}, "width"),
        ({"height": 4096}, "height"),
        ({"prompts": [{"prompt": "a", "width": 100}]}, "prompts.0.width"),
        ({"scheduler": "magic"}, "scheduler"),
        ({"prompts": ["a", {"prompt": "b", "scheduler": "magic"}]}, "prompts.1.scheduler"),
        ({"prompts": ["a"] * 101}, "prompts"),
        ({"num_images_per_prompt": 10_001}, "num_images_per_prompt"),
        ({"seed": MAX_SEED, "num_images_per_prompt": 2}, "seed"),
        ({"reuse": True}, "reuse"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, field):
    """The refusal names the field where the value stood, and the value."""
    with pytest.raises(Refused) as caught:
        expanded(**fields)
    assert caught.value.field == field
    assert caught.value.value is not None


def test_reuse_is_for_invariant_jobs():
    """Where the bytes may differ, an earlier image is not the one that is asked for."""
    assert expanded(reuse=True, reproducibility="invariant").header.reuse
    with pytest.raises(Refused, match="invariant") as caught:
        expanded(reuse=True, reproducibility="fast")
    assert caught.value.choices == ["false", "true with reproducibility invariant"]


def test_a_refused_size_offers_the_nearest_ones():
    """Someone who asks for 100 pixels is told of 96 and 104."""
    with pytest.raises(Refused) as caught:
        expanded(width=100)
    assert caught.value.choices == ["96", "104"]


def test_a_picture_brings_its_defaults():
    """Where none is named it is diffusers' strength, and the model's size; without a picture it is all noise."""
    entry, other = expanded(prompts=["a", {"prompt": "b", "image": OTHER_KEY, "strength": 0.5}], image=KEY).entries
    assert (entry.image, entry.mask_image, entry.strength) == (KEY, "", 0.8)
    assert (entry.width, entry.height) == (SCENES.width, SCENES.height)
    assert (other.image, other.strength) == (OTHER_KEY, 0.5)
    assert expanded().entries[0].strength == 1.0


def test_controlnets_and_a_second_pass_are_resolved():
    """Sizes are rounded to what the model renders; steps are the first pass's unless they are named."""
    net = {"model": "depth", "image": "https://images.example/a.png", "guidance_end": 0.5}
    (entry,) = expanded(controlnets=[net], hires={"scale": 1.3}, num_inference_steps=12).entries
    assert entry.controlnets == (ControlNet("depth", net["image"], 1.0, 0.0, 0.5),)
    assert entry.hires == Hires(168, 168, 0.7, 12, "latent")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"strength": 0.5}, "strength"),
        ({"mask_image": KEY}, "mask_image"),
        ({"prompts": [{"prompt": "a", "mask_image": KEY}]}, "prompts.0.mask_image"),
        ({"image": "https://elsewhere.example/a.png"}, "image"),
        ({"image": "house.png"}, "image"),
        ({"image": KEY, "mask_image": "uploads/../x"}, "mask_image"),
        ({"controlnets": [{"model": "canny", "image": "http://10.0.0.1/a"}]}, "controlnets.0.image"),
        ({"controlnets": [{"model": "pose", "image": KEY}]}, "controlnets.0.model"),
        (
            {"controlnets": [{"model": "canny", "image": KEY, "guidance_start": 0.5, "guidance_end": 0.5}]},
            "controlnets.0.guidance_start",
        ),
        ({"image": KEY, "strength": 0.2, "num_inference_steps": 4}, "strength"),
        ({"hires": {"scale": 2, "strength": 0.1}, "num_inference_steps": 9}, "hires.strength"),
        ({"hires": {"scale": 8}}, "hires.scale"),
        ({"prompts": [{"prompt": "a", "hires": {"num_inference_steps": 1000, "scale": 3}}]}, "prompts.0.hires.scale"),
    ],
)
def test_pictures_that_do_not_go_together_are_refused_by_name(fields, field):
    """The refusal names the field where the value stood, and the value."""
    with pytest.raises(Refused) as caught:
        expanded(**fields)
    assert caught.value.field == field
    assert caught.value.value is not None


@given(steps=st.integers(1, 200), strength=st.floats(0.001, 1))
def test_a_run_from_a_picture_has_a_step_to_make(steps, strength):
    """What leaves diffusers no step is refused, with a strength that leaves one; flow models always have one."""
    fields = {"image": KEY, "num_inference_steps": steps}
    assert expanded(FLUX, **fields, strength=strength).entries[0].strength == strength
    try:
        assert int(steps * expanded(**fields, strength=strength).entries[0].strength) >= 1
    except Refused as refused:
        assert int(steps * strength) < 1
        (choice,) = refused.choices
        expanded(**fields, strength=float(choice.split()[0]))
