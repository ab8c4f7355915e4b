"""Expansion keeps count and order, and every unit can be found again from the runs alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.catalog import Catalog
from farm.errors import Refused
from farm.expand import expand, locate, runs_of, unit_of
from farm.jobs import MAX_SEED, JobSpec

SCENES = Catalog().row("scenes")


def expanded(**fields):
    """Expand a job for the model that ships."""
    spec = JobSpec.model_validate({"model": "scenes", "prompts": ["a red circle"], **fields})
    return expand(
        spec,
        SCENES,
        job_id="job_1",
        tenant="default",
        created_at=0.0,
        drawn_seed=77,
        max_prompts=100,
        max_images=10_000,
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
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, field):
    """The refusal names the field where the value stood, and the value."""
    with pytest.raises(Refused) as caught:
        expanded(**fields)
    assert caught.value.field == field
    assert caught.value.value is not None


def test_a_refused_size_offers_the_nearest_ones():
    """Someone who asks for 100 pixels is told of 96 and 104."""
    with pytest.raises(Refused) as caught:
        expanded(width=100)
    assert caught.value.choices == ["96", "104"]
