"""A1111's samplers and schedules against the farm's table, both ways."""

from __future__ import annotations

import pytest

from api.a1111.samplers import AUTOMATIC, labels_of, listed_samplers, listed_schedules, scheduler_for
from farm.errors import Refused
from farm.schedulers import SCHEDULERS, find_scheduler, schedulers_of

ROWS = [pytest.param(row, id=row.name) for row in SCHEDULERS]


@pytest.mark.parametrize("row", ROWS)
def test_every_pair_that_there_is_a_row_for_means_that_row(row):
    """Sampler and schedule in two fields, or in one as older clients have it, and back to the labels."""
    schedule = "Uniform" if row.a1111_schedule == AUTOMATIC else row.a1111_schedule
    if row.group == "flow" and row.a1111_schedule == AUTOMATIC:
        schedule = AUTOMATIC
    found = scheduler_for(row.a1111_sampler, schedule, row.group)
    assert (found.a1111_sampler, found.a1111_schedule) == (row.a1111_sampler, row.a1111_schedule)
    assert found.name == row.name
    assert labels_of(found.name) == (row.a1111_sampler, row.a1111_schedule)
    if schedule != AUTOMATIC:
        assert scheduler_for(f"{row.a1111_sampler} {schedule}", None, row.group).name == row.name


@pytest.mark.parametrize(
    ("sampler", "schedule", "name"),
    [
        ("DPM++ 2M", None, "dpmpp_2m_karras"),
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "automatic", "dpmpp_2m_karras"),
        ("DPM++ SDE", None, "dpmpp_sde_karras"),
        ("DPM2", None, "kdpm2_karras"),
        ("DPM2 a", None, "kdpm2_ancestral_karras"),
        ("DPM++ 2M SDE", None, "dpmpp_2m_sde_exponential"),
        ("DPM++ 2M SDE Heun", None, "dpmpp_2m_sde_heun_exponential"),
        ("DPM++ 3M SDE", None, "dpmpp_3m_sde_exponential"),
        ("Euler", None, "euler"),
        ("Euler a", "automatic", "euler_ancestral"),
        ("UniPC", None, "unipc"),
        ("LCM", None, "lcm"),
    ],
)
def test_automatic_is_what_a1111_takes(sampler, schedule, name):
    """A1111 runs some samplers on a schedule of their own unless another is chosen."""
    assert scheduler_for(sampler, schedule, "diffusion").name == name


@pytest.mark.parametrize(
    ("sampler", "schedule", "name"),
    [
        ("DPM++ 2M Karras", "Exponential", "dpmpp_2m_karras"),
        ("k_dpmpp_2m_ka", None, "dpmpp_2m_karras"),
        ("dpm++ 2m", "KARRAS", "dpmpp_2m_karras"),
        ("DPM++ 2M normal", "Automatic", "dpmpp_2m"),
        ("DPM++ 2M", "SGM Uniform", "dpmpp_2m_sgm_uniform"),
        ("DPM++ 2M", "sgm_uniform", "dpmpp_2m_sgm_uniform"),
        ("PLMS", "", "pndm"),
    ],
)
def test_names_as_clients_write_them(sampler, schedule, name):
    """Any case, k-diffusion's aliases; a schedule in the sampler's name counts first."""
    assert scheduler_for(sampler, schedule, "diffusion").name == name


@pytest.mark.parametrize(
    ("sampler", "schedule", "field"),
    [
        ("Bogus", None, "sampler_name"),
        ("Euler a", "Karras", "scheduler"),
        ("DPM++ 2M", "SDE", "scheduler"),
        ("DPM++ 2M", "kl_optimal", "scheduler"),
    ],
)
def test_what_there_is_not_is_refused_with_choices(sampler, schedule, field):
    """By A1111's field; a schedule that would make another sampler of the name is none."""
    with pytest.raises(Refused) as refused:
        scheduler_for(sampler, schedule, "diffusion")
    assert refused.value.field == field
    assert refused.value.choices


def test_the_lists_hold_all_of_the_table_and_nothing_else():
    """Every label of a row is listed, every alias and schedule is understood."""
    samplers = listed_samplers()
    assert {sampler["name"] for sampler in samplers} == {row.a1111_sampler for row in SCHEDULERS}
    for sampler in samplers:
        for alias in sampler["aliases"]:
            assert find_scheduler(alias).a1111_sampler == sampler["name"]
        if "scheduler" in sampler["options"]:
            preferred = scheduler_for(sampler["name"], None, "diffusion").a1111_schedule
            assert preferred.lower() == sampler["options"]["scheduler"]
    labels = {row.a1111_schedule for row in SCHEDULERS}
    listed = {schedule["label"] for schedule in listed_schedules()}
    assert labels <= listed
    for schedule in listed_schedules():
        assert scheduler_for("Heun", schedule["name"], "diffusion") in schedulers_of("diffusion")
