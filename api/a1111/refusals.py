"""What A1111 does and the farm does not: refused by name, rather than passed over in silence. Pure.

A value that changes nothing is no reason to refuse: clients send every field they know.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from api.a1111.requests import Generation, Img2Img
from farm.errors import Refused
from farm.schedulers import Scheduler

_NOTHING: Final = (None, "", "None", "none")
_SAME: Final = (*_NOTHING, "Use same checkpoint", "Use same sampler", "Use same scheduler", "Automatic", "automatic")

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "subseed_strength": (0,),
        "s_churn": (0,),
        "s_noise": (1,),
        "s_min_uncond": (0,),
        "restore_faces": (False,),
        "tiling": (False,),
        "refiner_checkpoint": _NOTHING,
        "disable_extra_networks": (False,),
        "script_name": _NOTHING,
        "infotext": _NOTHING,
        "initial_noise_multiplier": (1,),
        "latent_mask": _NOTHING,
        "mask_round": (True,),
    }
)
_OF_HIRES: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "hr_checkpoint_name": _SAME,
        "hr_sampler_name": _SAME,
        "hr_scheduler": _SAME,
        "hr_prompt": _NOTHING,
        "hr_negative_prompt": _NOTHING,
    }
)
# A1111 reads a size of 0 or less as none.
_NONE_OR_LESS: Final = ("seed_resize_from_h", "seed_resize_from_w", "firstphase_width", "firstphase_height")

_CHOICES: Final[Mapping[str, Mapping[int, str]]] = MappingProxyType(
    {
        "inpainting_fill": MappingProxyType({0: "0 (fill)", 1: "1 (original)"}),
        "resize_mode": MappingProxyType({0: "0 (just resize)", 1: "1 (crop and resize)", 2: "2 (resize and fill)"}),
    }
)
_WITHOUT_NOISE: Final = frozenset(
    {"Euler", "DDIM", "DPM++ 2M", "DPM++ 3M", "DPM++ 2S", "UniPC", "DEIS", "Heun", "DPM2", "LMS", "PLMS"}
)
"""Samplers to which an eta of 0, which adds no noise, makes no difference."""


def check_fields(asked: Generation) -> None:
    """Raise Refused for the first field that asks for what the farm does not do."""
    neutral = dict(_NEUTRAL)
    if getattr(asked, "enable_hr", False):
        neutral |= _OF_HIRES
        hr_cfg = getattr(asked, "hr_cfg", None)
        if hr_cfg not in (None, 0, 1, asked.cfg_scale):
            raise _refusal("hr_cfg", hr_cfg, (asked.cfg_scale,))
    for name, values in neutral.items():
        value = getattr(asked, name, values[0])
        if value not in values:
            raise _refusal(name, value, values)
    for name in _NONE_OR_LESS:
        if (value := getattr(asked, name, 0)) > 0:
            raise _refusal(name, value, (0,))
    if isinstance(asked, Img2Img):
        _check_picture(asked)
    _check_scripts(asked.alwayson_scripts)


def _check_picture(asked: Img2Img) -> None:
    used = ["resize_mode", *(["inpainting_fill"] if asked.mask else [])]
    for name in used:
        if (value := getattr(asked, name)) not in _CHOICES[name]:
            raise Refused("is not done here", field=name, value=value, choices=list(_CHOICES[name].values()))


def _refusal(name: str, value: object, values: tuple[Any, ...]) -> Refused:
    choices = [str(choice) for choice in values if choice not in (None, "", "none", "automatic")]
    return Refused("the farm does nothing of the kind; leave it out", field=name, value=value, choices=choices or None)


def _check_scripts(scripts: Mapping[str, Any]) -> None:
    for name, script in scripts.items():
        if not is_controlnet(name) and not _is_off(script):
            raise Refused(
                "there is no such script here", field=f"alwayson_scripts.{name}"[:200], choices=["ControlNet"]
            )


def is_controlnet(name: str) -> bool:
    """Whether a script of this name is the ControlNet extension."""
    return name.casefold() == "controlnet"


def _is_off(script: Any) -> bool:
    """Whether a script's arguments say that it does nothing: none at all, or "enabled" as the first, and false."""
    args = script.get("args") if isinstance(script, dict) else script
    if isinstance(args, dict):
        args = [args]
    if not args:
        return True
    first = args[0] if isinstance(args, list) else args
    if isinstance(first, dict):
        return not first.get("enabled", first.get("enable", first.get("ad_tab_enable", True)))
    return first is False or first is None


def check_eta(asked: Generation, scheduler: Scheduler) -> None:
    """Raise Refused for an eta that is not the sampler's own.

    1 is what samplers with noise have; for the others it is what webuiapi sends with everything, and means nothing.
    """
    harmless = (None, 1, 0) if scheduler.a1111_sampler in _WITHOUT_NOISE else (None, 1)
    if asked.eta not in harmless:
        raise Refused(f"{scheduler.a1111_sampler} is run with its own eta", field="eta", value=asked.eta, choices=["1"])
