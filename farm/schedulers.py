"""The schedulers (samplers) that a job may name: one table, so that API and worker agree without torch.

Canonical names are ComfyUI's style (`dpmpp_2m_karras`); diffusers' class names and AUTOMATIC1111's labels resolve to
them. The worker turns `diffusers_class` and `config` into a schedule table (worker/sampling.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from farm.errors import Refused


@dataclass(frozen=True)
class Scheduler:
    """One row: our name, the diffusers class with the config that overrides the model's, and A1111's two labels."""

    name: str
    diffusers_class: str
    a1111_sampler: str
    a1111_schedule: str = "Automatic"
    config: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[str, ...] = ()


_KARRAS: Final = MappingProxyType({"use_karras_sigmas": True})
_SDE: Final = MappingProxyType({"algorithm_type": "sde-dpmsolver++"})
# Without this PNDM starts with Runge-Kutta steps, which are not PLMS; SD 1.5's own config says the same.
_PLMS: Final = MappingProxyType({"skip_prk_steps": True})
_SDE_KARRAS: Final = MappingProxyType({"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True})

SCHEDULERS: Final[tuple[Scheduler, ...]] = (
    Scheduler("euler", "EulerDiscreteScheduler", "Euler"),
    Scheduler("euler_karras", "EulerDiscreteScheduler", "Euler", "Karras", _KARRAS),
    Scheduler("euler_ancestral", "EulerAncestralDiscreteScheduler", "Euler a", aliases=("euler_a",)),
    Scheduler("ddim", "DDIMScheduler", "DDIM"),
    Scheduler("ddpm", "DDPMScheduler", "DDPM"),
    Scheduler("dpmpp_2m", "DPMSolverMultistepScheduler", "DPM++ 2M"),
    Scheduler("dpmpp_2m_karras", "DPMSolverMultistepScheduler", "DPM++ 2M", "Karras", _KARRAS),
    Scheduler("dpmpp_2m_sde", "DPMSolverMultistepScheduler", "DPM++ 2M SDE", config=_SDE),
    Scheduler("dpmpp_2m_sde_karras", "DPMSolverMultistepScheduler", "DPM++ 2M SDE", "Karras", _SDE_KARRAS),
    Scheduler("dpmpp_2s", "DPMSolverSinglestepScheduler", "DPM++ 2S"),
    Scheduler("unipc", "UniPCMultistepScheduler", "UniPC", aliases=("uni_pc",)),
    Scheduler("deis", "DEISMultistepScheduler", "DEIS"),
    Scheduler("heun", "HeunDiscreteScheduler", "Heun"),
    Scheduler("kdpm2", "KDPM2DiscreteScheduler", "DPM2", aliases=("dpm_2",)),
    Scheduler("kdpm2_ancestral", "KDPM2AncestralDiscreteScheduler", "DPM2 a", aliases=("dpm_2_ancestral",)),
    Scheduler("lms", "LMSDiscreteScheduler", "LMS"),
    Scheduler("lms_karras", "LMSDiscreteScheduler", "LMS", "Karras", _KARRAS),
    Scheduler("pndm", "PNDMScheduler", "PLMS", config=_PLMS, aliases=("plms",)),
    Scheduler("lcm", "LCMScheduler", "LCM"),
)


def _aliases() -> dict[str, Scheduler]:
    known: dict[str, Scheduler] = {}
    for row in SCHEDULERS:
        label = row.a1111_sampler if row.a1111_schedule == "Automatic" else f"{row.a1111_sampler} {row.a1111_schedule}"
        for alias in (row.name, label, row.diffusers_class, *row.aliases):
            # The first row of a diffusers class is the one without extra config: it owns the class name.
            known.setdefault(alias.casefold(), row)
    return known


_BY_ALIAS: Final = _aliases()


def find_scheduler(name: str, *, field_name: str = "scheduler") -> Scheduler:
    """Return the row that `name` (ours, diffusers' or A1111's, any case) means.

    Raises Refused, with the choices, when there is none.
    """
    row = _BY_ALIAS.get(name.casefold())
    if row is None:
        choices = [row.name for row in SCHEDULERS]
        raise Refused(f"no scheduler is called {name!r}", field=field_name, value=name, choices=choices)
    return row
