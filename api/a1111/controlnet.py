"""The ControlNet extension's units within `alwayson_scripts`: what of them becomes a ControlNet of the farm. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from api.a1111.inpainting import CROP_AND_RESIZE, JUST_RESIZE, RESIZE_AND_FILL
from api.a1111.refusals import is_controlnet
from farm.errors import Refused
from farm.requests import ControlNetSpec

AT: Final = "alwayson_scripts.ControlNet.args"
MAX_UNITS: Final = 4  # of a job of the farm

_RESIZE_MODES: Final[Mapping[object, int]] = {
    0: JUST_RESIZE,
    "0": JUST_RESIZE,
    "just resize": JUST_RESIZE,
    1: CROP_AND_RESIZE,
    "1": CROP_AND_RESIZE,
    "crop and resize": CROP_AND_RESIZE,
    "inner fit (scale to fit)": CROP_AND_RESIZE,
    2: RESIZE_AND_FILL,
    "2": RESIZE_AND_FILL,
    "resize and fill": RESIZE_AND_FILL,
    "outer fit (shrink to fit)": RESIZE_AND_FILL,
}
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "module": ("none", None, ""),
    "control_mode": (0, "0", "balanced", None),
    "hr_option": ("both", 0, "hiresfixoption.both", None),
    "guessmode": (False, None),
    "mask": ("", None),
    "mask_image": ("", None),
    "effective_region_mask": ("", None),
    "inpaint_crop_input_image": (False, True, None),
}
_DEFAULT_RESIZE: Final = "crop and resize"


@dataclass(frozen=True, slots=True)
class ControlNetUnit:
    """One unit that is on; `picture` is in base64, empty for the picture that img2img starts from."""

    model: str
    picture: str
    resize_mode: int
    weight: float
    start: float
    end: float
    at: str  # where it stands in the request

    def spec(self, key: str) -> ControlNetSpec:
        """Return it as the farm's, with its picture under a key of the store; raises Refused."""
        try:
            return ControlNetSpec(
                model=self.model,
                image=key,
                conditioning_scale=self.weight,
                guidance_start=self.start,
                guidance_end=self.end,
            )
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            raise Refused(str(found["msg"]), field=self.at, value=found["input"]) from error


def units_in(scripts: Mapping[str, Any], known: Sequence[str]) -> list[ControlNetUnit]:
    """Return the units of a request's scripts that are on; raises Refused for what the farm does not do.

    `known` are the ControlNets that fit the model.
    """
    units = [_unit(args, at, known) for args, at in _given(scripts) if _is_on(args)]
    if len(units) > MAX_UNITS:
        raise Refused(
            "are more units than one picture takes", field=AT, value=len(units), choices=[f"0 to {MAX_UNITS}"]
        )
    return units


def _given(scripts: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, script in scripts.items():
        if not is_controlnet(name):
            continue
        args = script.get("args", []) if isinstance(script, dict) else script
        for position, unit in enumerate([args] if isinstance(args, dict) else args or []):
            if isinstance(unit, dict):
                yield unit, f"{AT}.{position}"
            elif unit:  # units that are off are told as None or False
                raise Refused("must be an object", field=f"{AT}.{position}", value=unit)


def _is_on(unit: Mapping[str, Any]) -> bool:
    return bool(unit.get("enabled", True)) and str(unit.get("model") or "None").casefold() != "none"


def _unit(unit: Mapping[str, Any], at: str, known: Sequence[str]) -> ControlNetUnit:
    for name, values in _NEUTRAL.items():
        value = unit.get(name)
        plain = value.casefold() if isinstance(value, str) else value
        if isinstance(plain, list | dict) or plain not in values:
            choices = [str(choice) for choice in values if choice not in (None, "")]
            raise Refused("the farm does nothing of the kind", field=f"{at}.{name}", value=value, choices=choices)
    model = str(unit["model"]).partition(" [")[0].removesuffix(".safetensors")
    if model not in known:
        raise Refused(
            "no ControlNet of this model's family is called so", field=f"{at}.model", value=model, choices=list(known)
        )
    mode = unit.get("resize_mode", _DEFAULT_RESIZE)
    mode = mode.casefold() if isinstance(mode, str) else mode
    if isinstance(mode, list | dict | float) or mode not in _RESIZE_MODES:
        raise Refused("is no way to resize", field=f"{at}.resize_mode", value=mode, choices=["0", "1", "2"])
    return ControlNetUnit(
        model=model,
        picture=_picture(unit, at),
        resize_mode=_RESIZE_MODES[mode],
        weight=_number(unit, "weight", 1.0, at),
        start=_number(unit, "guidance_start", 0.0, at),
        end=_number(unit, "guidance_end", 1.0, at),
        at=at,
    )


def _picture(unit: Mapping[str, Any], at: str) -> str:
    picture = unit.get("image") or unit.get("input_image") or ""
    if isinstance(picture, dict):
        if picture.get("mask"):
            raise Refused("the farm's ControlNets have no masks", field=f"{at}.image.mask")
        picture = picture.get("image") or ""
    if not isinstance(picture, str):
        raise Refused("must be a picture in base64", field=f"{at}.image", value=picture)
    return picture


def _number(unit: Mapping[str, Any], name: str, default: float, at: str) -> float:
    value = unit.get(name)
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused("must be a number", field=f"{at}.{name}", value=value) from error
