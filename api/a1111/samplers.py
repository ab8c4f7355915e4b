"""A1111's samplers and schedules in the farm's table of schedulers: both ways, and as its lists tell them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final

from farm.errors import Refused
from farm.schedulers import SCHEDULERS, Group, Scheduler, find_scheduler, schedulers_of

AUTOMATIC: Final = "Automatic"

_PREFERRED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "DPM++ 2M": "Karras",
        "DPM++ SDE": "Karras",
        "DPM2": "Karras",
        "DPM2 a": "Karras",
        "DPM++ 2M SDE": "Exponential",
        "DPM++ 2M SDE Heun": "Exponential",
        "DPM++ 3M SDE": "Exponential",
    }
)
"""The schedule that "Automatic" means for a sampler in A1111; for all others it is the sampler's own."""

_PLAIN: Final = ("normal", "uniform")  # A1111's names for what diffusers does unless told otherwise

# As A1111 lists them: its name, its label, its aliases; rho is Karras' own.
_SCHEDULES: Final[tuple[tuple[str, str, float], ...]] = (
    ("automatic", AUTOMATIC, -1),
    ("uniform", "Uniform", -1),
    ("karras", "Karras", 7.0),
    ("exponential", "Exponential", -1),
    ("sgm_uniform", "SGM Uniform", -1),
    ("normal", "Normal", -1),
    ("beta", "Beta", -1),
)

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Euler": ("k_euler",),
        "Euler a": ("k_euler_a", "k_euler_ancestral"),
        "LMS": ("k_lms",),
        "Heun": ("k_heun",),
        "DPM2": ("k_dpm_2",),
        "DPM2 a": ("k_dpm_2_a",),
        "DPM++ 2M": ("k_dpmpp_2m",),
        "DPM++ SDE": ("k_dpmpp_sde",),
        "DPM++ 2M SDE": ("k_dpmpp_2m_sde",),
        "DPM++ 2M SDE Heun": ("k_dpmpp_2m_sde_heun",),
        "DPM++ 3M SDE": ("k_dpmpp_3m_sde",),
        "DDIM": ("ddim",),
        "PLMS": ("plms",),
        "UniPC": ("unipc",),
        "LCM": ("k_lcm",),
    }
)


def scheduler_for(sampler: str, schedule: str | None, group: Group) -> Scheduler:
    """Return the scheduler that A1111's `sampler_name` and `scheduler` mean for models of a group.

    A schedule at the end of the sampler's name, as older clients have it ("DPM++ 2M Karras"), counts before the other
    field. Raises Refused, naming the field and the choices.
    """
    row = find_scheduler(sampler, group=group, field_name="sampler_name")
    if row.a1111_schedule != AUTOMATIC or _ends_plain(sampler):
        return row
    if schedule is not None and schedule.strip().casefold() not in ("", "none", "automatic", "use same scheduler"):
        return _with_schedule(row, schedule, group)
    wanted = _PREFERRED.get(row.a1111_sampler, AUTOMATIC)
    return next((each for each in schedulers_of(group) if _pair(each) == (row.a1111_sampler, wanted)), row)


def _ends_plain(sampler: str) -> bool:
    return sampler.strip().casefold().replace("_", " ").rpartition(" ")[2] in _PLAIN


def _with_schedule(row: Scheduler, schedule: str, group: Group) -> Scheduler:
    with suppress(Refused):
        found = find_scheduler(f"{row.a1111_sampler} {schedule}", group=group)
        if found.a1111_sampler == row.a1111_sampler:  # "SDE" makes another sampler of "DPM++ 2M"
            return found
    choices = [each.a1111_schedule for each in schedulers_of(group) if each.a1111_sampler == row.a1111_sampler]
    message = f"{row.a1111_sampler} has no schedule {schedule!r} here"
    raise Refused(message, field="scheduler", value=schedule, choices=choices)


def _pair(row: Scheduler) -> tuple[str, str]:
    return row.a1111_sampler, row.a1111_schedule


def labels_of(scheduler: str) -> tuple[str, str]:
    """Return A1111's names for a scheduler of the farm: sampler and schedule."""
    return _pair(find_scheduler(scheduler))


def listed_samplers() -> list[dict[str, Any]]:
    """Return all samplers as `GET /sdapi/v1/samplers` lists them."""
    labels = dict.fromkeys(row.a1111_sampler for row in SCHEDULERS)
    return [
        {
            "name": label,
            "aliases": list(_ALIASES.get(label, ())),
            "options": {"scheduler": _PREFERRED[label].lower()} if label in _PREFERRED else {},
        }
        for label in labels
    ]


def listed_schedules() -> list[dict[str, Any]]:
    """Return all schedules as `GET /sdapi/v1/schedulers` lists them."""
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": rho, "need_inner_model": False}
        for name, label, rho in _SCHEDULES
    ]
