"""The schedulers (samplers) that a job may name: one table, so that API and worker agree without torch.

Canonical names are ComfyUI's style (`dpmpp_2m_karras`); diffusers' class names, AUTOMATIC1111's labels and other
programs' names resolve to them. A scheduler belongs to one group of models: those that learned to remove noise
(`diffusion`), or those that learned the way from noise to image (`flow`). The worker turns `diffusers_class` and
`config` into a schedule table (worker/sampling).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from farm.errors import Refused

Group = Literal["diffusion", "flow"]

MODELS_OF: Final[Mapping[Group, str]] = MappingProxyType(
    {"diffusion": "SD 1.x, SD 2.x and SDXL", "flow": "Flux and SD 3"}
)
"""Which models a group's schedulers are for, in words."""


@dataclass(frozen=True)
class Scheduler:
    """One row: our name, the diffusers class with the config that overrides the model's, and A1111's two labels."""

    name: str
    diffusers_class: str
    a1111_sampler: str
    a1111_schedule: str = "Automatic"
    config: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[str, ...] = ()
    group: Group = "diffusion"


@dataclass(frozen=True)
class _Spacing:
    """A way to spread the steps over the noise: what it adds to a sampler's name, label and config."""

    suffixes: tuple[str, ...]  # the first is ours
    label: str
    config: Mapping[str, object]


def _sigmas(which: str) -> dict[str, object]:
    """Return the three flags of which diffusers lets one be set; a model's own config may have set another."""
    return {f"use_{kind}_sigmas": kind == which for kind in ("karras", "exponential", "beta")}


# Spreads that start at the largest sigma need the spacing that reaches it, whatever the model's config prefers.
_ALL_SIGMAS: Final = {"timestep_spacing": "linspace"}
_KARRAS: Final = _Spacing(("karras", "ka", "k"), "Karras", _sigmas("karras"))
_EXPONENTIAL: Final = _Spacing(("exponential",), "Exponential", _sigmas("exponential") | _ALL_SIGMAS)
_BETA: Final = _Spacing(("beta",), "Beta", _sigmas("beta") | _ALL_SIGMAS)
_TRAILING: Final = _Spacing(("sgm_uniform", "trailing", "simple"), "SGM Uniform", {"timestep_spacing": "trailing"})
_FLOW_KARRAS: Final = _Spacing(("karras", "ka", "k"), "Karras", _sigmas("karras"))
_FLOW_EXPONENTIAL: Final = _Spacing(("exponential",), "Exponential", _sigmas("exponential"))
_FLOW_BETA: Final = _Spacing(("beta",), "Beta", _sigmas("beta"))

_PLAIN: Final[tuple[_Spacing, ...]] = ()
_SPACED: Final = (_TRAILING,)
_SIGMAS: Final = (_KARRAS, _EXPONENTIAL, _BETA)
_ANY: Final = (*_SIGMAS, _TRAILING)
_FLOW_SIGMAS: Final = (_FLOW_KARRAS, _FLOW_EXPONENTIAL, _FLOW_BETA)


@dataclass(frozen=True)
class _Sampler:
    """A sampler with all its spacings: what the rows are made from."""

    name: str
    diffusers_class: str
    label: str
    spacings: tuple[_Spacing, ...]
    config: Mapping[str, object] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


# Solvers name their algorithm and order, for a model's own config may hold another's.
_ODE_2: Final = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_SDE_2: Final = _ODE_2 | {"algorithm_type": "sde-dpmsolver++"}
# diffusers switches this on for a last sigma of zero, but says so each time.
_SINGLE: Final = {"lower_order_final": True}
_UNIPC: Final = {"solver_order": 2, "solver_type": "bh2"}
_DEIS: Final = {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho"}
_MULTISTEP: Final = "DPMSolverMultistepScheduler"
_SINGLESTEP: Final = "DPMSolverSinglestepScheduler"

_DIFFUSION: Final = (
    _Sampler("euler", "EulerDiscreteScheduler", "Euler", _ANY),
    _Sampler("euler_ancestral", "EulerAncestralDiscreteScheduler", "Euler a", _SPACED, aliases=("euler_a",)),
    _Sampler("ddim", "DDIMScheduler", "DDIM", _SPACED),
    _Sampler("ddpm", "DDPMScheduler", "DDPM", _SPACED),
    _Sampler("dpmpp_2m", _MULTISTEP, "DPM++ 2M", _ANY, _ODE_2),
    _Sampler("dpmpp_2m_sde", _MULTISTEP, "DPM++ 2M SDE", _ANY, _SDE_2, ("dpmpp_2m_sde_gpu",)),
    _Sampler(
        "dpmpp_2m_sde_heun",
        _MULTISTEP,
        "DPM++ 2M SDE Heun",
        _ANY,
        _SDE_2 | {"solver_type": "heun"},
        ("dpmpp_2m_sde_heun_gpu",),
    ),
    _Sampler("dpmpp_3m", _MULTISTEP, "DPM++ 3M", _ANY, _ODE_2 | {"solver_order": 3}),
    _Sampler("dpmpp_3m_sde", _MULTISTEP, "DPM++ 3M SDE", _ANY, _SDE_2 | {"solver_order": 3}, ("dpmpp_3m_sde_gpu",)),
    _Sampler("dpmpp_2s", _SINGLESTEP, "DPM++ 2S", _SIGMAS, _ODE_2 | _SINGLE),
    _Sampler("dpmpp_2s_sde", _SINGLESTEP, "DPM++ 2S SDE", _SIGMAS, _SDE_2 | _SINGLE),
    _Sampler("dpmpp_sde", "DPMSolverSDEScheduler", "DPM++ SDE", _ANY, aliases=("dpmpp_sde_gpu",)),
    _Sampler("unipc", "UniPCMultistepScheduler", "UniPC", _ANY, _UNIPC, ("uni_pc", "uni_pc_bh2")),
    _Sampler("deis", "DEISMultistepScheduler", "DEIS", _ANY, _DEIS, ("deis_2m",)),
    _Sampler("heun", "HeunDiscreteScheduler", "Heun", _ANY),
    _Sampler("kdpm2", "KDPM2DiscreteScheduler", "DPM2", _ANY, aliases=("dpm_2", "kdpm_2")),
    _Sampler(
        "kdpm2_ancestral",
        "KDPM2AncestralDiscreteScheduler",
        "DPM2 a",
        _ANY,
        aliases=("dpm_2_ancestral", "dpm_2_a", "kdpm_2_a"),
    ),
    _Sampler("lms", "LMSDiscreteScheduler", "LMS", _ANY),
    # Without this PNDM starts with Runge-Kutta steps, which are not PLMS; SD 1.5's own config says the same.
    _Sampler("pndm", "PNDMScheduler", "PLMS", _SPACED, {"skip_prk_steps": True}),
    _Sampler("sa_solver", "SASolverScheduler", "SA-Solver", _SIGMAS, {"algorithm_type": "data_prediction"}),
    _Sampler("lcm", "LCMScheduler", "LCM", _PLAIN),
    _Sampler("tcd", "TCDScheduler", "TCD", _PLAIN),
)

# The solvers that serve both groups must be told that sigmas run from one to zero and what the model predicts.
_FLOW: Final = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} | _sigmas("none")
_FLOWS: Final = (
    _Sampler("euler", "FlowMatchEulerDiscreteScheduler", "Euler", _FLOW_SIGMAS),
    _Sampler("euler_ancestral", "LTXEulerAncestralRFScheduler", "Euler a", _PLAIN, aliases=("euler_a",)),
    _Sampler("heun", "FlowMatchHeunDiscreteScheduler", "Heun", _PLAIN),
    _Sampler("lcm", "FlowMatchLCMScheduler", "LCM", _FLOW_SIGMAS),
    _Sampler("dpmpp_2m", _MULTISTEP, "DPM++ 2M", _PLAIN, _ODE_2 | _FLOW),
    _Sampler("dpmpp_2m_sde", _MULTISTEP, "DPM++ 2M SDE", _PLAIN, _SDE_2 | _FLOW, ("dpmpp_2m_sde_gpu",)),
    _Sampler("dpmpp_2s", _SINGLESTEP, "DPM++ 2S", _PLAIN, _ODE_2 | _SINGLE | _FLOW),
    _Sampler("unipc", "UniPCMultistepScheduler", "UniPC", _PLAIN, _UNIPC | _FLOW, ("uni_pc", "uni_pc_bh2")),
    _Sampler("deis", "DEISMultistepScheduler", "DEIS", _PLAIN, _DEIS | _FLOW, ("deis_2m",)),
)

# What other programs call a sampler's usual spacing.
_USUAL: Final[Mapping[Group, tuple[str, ...]]] = MappingProxyType(
    {"diffusion": ("automatic", "normal", "uniform"), "flow": ("automatic", "normal", "simple", "sgm_uniform")}
)


def _rows(group: Group, samplers: tuple[_Sampler, ...]) -> Iterator[Scheduler]:
    """Yield the rows of `samplers`: each as it is, then with each of its spacings."""
    prefix = "flow_" if group == "flow" else ""
    for sampler in samplers:
        names = (sampler.name, *sampler.aliases, sampler.label)
        yield Scheduler(
            prefix + sampler.name,
            sampler.diffusers_class,
            sampler.label,
            config=MappingProxyType(dict(sampler.config)),
            aliases=(*names, *(f"{name} {usual}" for name in names for usual in _USUAL[group])),
            group=group,
        )
        for spacing in sampler.spacings:
            yield Scheduler(
                f"{prefix}{sampler.name}_{spacing.suffixes[0]}",
                sampler.diffusers_class,
                sampler.label,
                spacing.label,
                MappingProxyType({**sampler.config, **spacing.config}),
                tuple(f"{name} {suffix}" for name in names for suffix in spacing.suffixes),
                group,
            )


SCHEDULERS: Final[tuple[Scheduler, ...]] = (*_rows("diffusion", _DIFFUSION), *_rows("flow", _FLOWS))


def schedulers_of(group: Group) -> tuple[Scheduler, ...]:
    """Return the rows that models of `group` can be sampled with."""
    return tuple(row for row in SCHEDULERS if row.group == group)


def _key(name: str) -> str:
    """Return what is left of a name when programs' habits of writing it are taken away: 'DPM++ 2M' is 'dpmpp_2m'."""
    return name.strip().casefold().replace("++", "pp").replace(" ", "_").replace("-", "_")


def _known(group: Group) -> dict[str, Scheduler]:
    """Return the rows of `group` by everything that they are called."""
    rows = schedulers_of(group)
    known: dict[str, Scheduler] = {}
    # Names before aliases, and the first row of a diffusers class, the plain one, before those of more config.
    for names in (lambda row: (row.name,), lambda row: row.aliases, lambda row: (row.diffusers_class,)):
        for row in rows:
            for name in names(row):
                known.setdefault(_key(name), row)
                known.setdefault(_key(f"k_{name}"), row)  # as k-diffusion's samplers are called
    return known


_BY_NAME: Final[Mapping[Group, Mapping[str, Scheduler]]] = MappingProxyType(
    {"diffusion": _known("diffusion"), "flow": _known("flow")}
)


def find_scheduler(name: str, *, group: Group | None = None, field_name: str = "scheduler") -> Scheduler:
    """Return the row that `name` (ours, diffusers', A1111's, ComfyUI's or k-diffusion's, any case) means in `group`.

    Without a group, a name that both have means the one of `diffusion`. Raises Refused, with the choices, when there is
    none, or only one for other models.
    """
    order: tuple[Group, ...] = (group,) if group else ("diffusion", "flow")
    for each in order:
        if (row := _BY_NAME[each].get(_key(name))) is not None:
            return row
    choices = [row.name for row in SCHEDULERS if row.group in order]
    for other, rows in _BY_NAME.items():
        if _key(name) in rows:
            raise Refused(
                f"scheduler {name!r} is for {MODELS_OF[other]} only", field=field_name, value=name, choices=choices
            )
    raise Refused(f"no scheduler is called {name!r}", field=field_name, value=name, choices=choices)
