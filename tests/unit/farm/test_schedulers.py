"""Every name that users know finds the scheduler of their model's kind, or is refused with the choices."""

from __future__ import annotations

import pytest

from farm.errors import Refused
from farm.schedulers import SCHEDULERS, find_scheduler, schedulers_of

FIRST_NAMES = [
    *("euler", "euler_karras", "euler_ancestral", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde"),
    *("dpmpp_2m_sde_karras", "dpmpp_2s", "unipc", "deis", "heun", "kdpm2", "kdpm2_ancestral", "lms", "lms_karras"),
    *("pndm", "lcm"),
]

groups = pytest.mark.parametrize("group", ["diffusion", "flow"])


def test_canonical_names_are_unique_over_both_groups():
    """No two rows share a name, so that a name alone, as a recipe keeps it, says which scheduler it was."""
    names = [row.name for row in SCHEDULERS]
    assert len(set(names)) == len(names)
    assert {row.group for row in SCHEDULERS if row.name.startswith("flow_")} == {"flow"}
    assert {row.group for row in SCHEDULERS if not row.name.startswith("flow_")} == {"diffusion"}


def test_names_that_old_recipes_hold_stay():
    """The nineteen names of the first release mean what they meant."""
    for name in FIRST_NAMES:
        assert find_scheduler(name).name == name


@pytest.mark.parametrize("row", SCHEDULERS, ids=lambda row: row.name)
def test_a_row_is_found_by_its_name_label_and_aliases(row):
    """A row resolves to itself by its own name in any case, with and without its group, and by A1111's label."""
    assert find_scheduler(row.name) is row
    assert find_scheduler(row.name.upper(), group=row.group) is row
    label = row.a1111_sampler if row.a1111_schedule == "Automatic" else f"{row.a1111_sampler} {row.a1111_schedule}"
    assert find_scheduler(label, group=row.group) is row
    for alias in row.aliases:
        assert find_scheduler(alias, group=row.group) is row, alias


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde_exponential"),
        ("DPM++ 3M SDE Karras", "dpmpp_3m_sde_karras"),
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun"),
        ("DPM++ SDE Karras", "dpmpp_sde_karras"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("Euler a", "euler_ancestral"),
        ("Euler SGM Uniform", "euler_sgm_uniform"),
        ("Euler Beta", "euler_beta"),
        ("Euler Automatic", "euler"),
        ("LCM", "lcm"),
        ("UniPC", "unipc"),
        ("DDIM", "ddim"),
        ("PLMS", "pndm"),
        ("DPM2 a Karras", "kdpm2_ancestral_karras"),
        ("k_euler_a", "euler_ancestral"),
        ("k_dpmpp_2m_ka", "dpmpp_2m_karras"),
        ("k_lms", "lms"),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde"),
        ("dpmpp_sde_gpu", "dpmpp_sde"),
        ("uni_pc_bh2", "unipc"),
        ("dpm_2_ancestral", "kdpm2_ancestral"),
        ("dpmpp_2m_k", "dpmpp_2m_karras"),
        ("EulerDiscreteScheduler", "euler"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("DPMSolverSinglestepScheduler", "dpmpp_2s"),
        ("DPMSolverSDEScheduler", "dpmpp_sde"),
        ("FlowMatchEulerDiscreteScheduler", "flow_euler"),
    ],
)
def test_names_of_other_programs_resolve(name, means):
    """A1111's, ComfyUI's, InvokeAI's, k-diffusion's and diffusers' names mean our rows, in any case."""
    assert find_scheduler(name).name == means
    assert find_scheduler(name.lower()).name == means


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("euler", "flow_euler"),
        ("Euler", "flow_euler"),
        ("Euler Simple", "flow_euler"),
        ("euler_beta", "flow_euler_beta"),
        ("flow_heun", "flow_heun"),
        ("Euler a", "flow_euler_ancestral"),
        ("DPM++ 2M", "flow_dpmpp_2m"),
        ("UniPCMultistepScheduler", "flow_unipc"),
        ("FlowMatchEulerDiscreteScheduler", "flow_euler"),
    ],
)
def test_a_plain_name_means_the_scheduler_of_the_models_kind(name, means):
    """For a flow model 'euler' is the Euler of flow models."""
    assert find_scheduler(name, group="flow").name == means


@pytest.mark.parametrize(
    ("name", "group", "models"),
    [("lms", "flow", "SD 1.x, SD 2.x and SDXL"), ("flow_heun", "diffusion", "Flux and SD 3")],
)
def test_a_scheduler_of_the_other_kind_is_refused(name, group, models):
    """The error says which models it is for, and lists what this model takes."""
    with pytest.raises(Refused, match=models) as caught:
        find_scheduler(name, group=group, field_name="prompts.3.scheduler")
    assert caught.value.field == "prompts.3.scheduler"
    assert caught.value.value == name
    assert list(caught.value.choices) == [row.name for row in schedulers_of(group)]


@groups
def test_an_unknown_name_is_refused_with_the_choices_of_the_group(group):
    """The error lists the canonical names that this model takes, and no others."""
    with pytest.raises(Refused, match="no scheduler is called 'magic'") as caught:
        find_scheduler("magic", group=group)
    assert list(caught.value.choices) == [row.name for row in schedulers_of(group)]


@groups
def test_no_two_rows_of_a_group_share_a_label(group):
    """A1111's two labels, which our images carry, tell which scheduler it was."""
    labels = [(row.a1111_sampler, row.a1111_schedule) for row in schedulers_of(group)]
    assert len(set(labels)) == len(labels)


def test_spacings_override_what_the_models_config_says():
    """Two of the three sigma flags at once are refused by diffusers: a spacing sets all three."""
    for row in SCHEDULERS:
        flags = [row.config[flag] for flag in row.config if flag.endswith("_sigmas") and flag != "use_flow_sigmas"]
        assert len(flags) in {0, 3}, row.name
        if row.a1111_schedule in {"Karras", "Exponential", "Beta"}:
            assert row.config[f"use_{row.a1111_schedule.lower()}_sigmas"] is True
            assert sum(flags) == 1
