"""Which model can give up what for speed: from a client's AccelerationSpec to what a unit carries. Pure.

What each option does to a run is the worker's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from farm.catalog import Family, ModelRow
from farm.errors import Refused
from farm.jobs import EXACT, Acceleration
from farm.requests import AccelerationSpec

_CACHES: Final[Mapping[str, tuple[Family, ...]]] = MappingProxyType(
    {"first_block_cache": ("flux",), "deep_cache_interval": ("sd15", "sdxl")}
)
"""Whose denoisers have what a cache keeps."""


def acceleration_of(spec: AccelerationSpec, row: ModelRow, *, is_guided: bool, at: str) -> Acceleration:
    """Resolve `spec`, which stands at `at` of the job, for a picture of the model `row`.

    Raises Refused with field, value and choices where the model, or a picture without guidance, has nothing to give up.
    """
    for name, families in _CACHES.items():
        if (value := getattr(spec, name)) != getattr(EXACT, name) and row.family not in families:
            raise Refused(
                f"{row.name} is of the family {row.family}, and {name} is for {' and '.join(families)}",
                field=f"{at}.{name}",
                value=value,
                choices=[f"a model of {family}" for family in families],
            )
    if spec.guidance_start >= spec.guidance_end:
        raise Refused("must lie before guidance_end", field=f"{at}.guidance_start", value=spec.guidance_start)
    scale = "true_cfg_scale" if row.guidance == "embedded" else "guidance_scale"
    for name in ("guidance_start", "guidance_end"):
        if not is_guided and (value := getattr(spec, name)) != getattr(EXACT, name):
            raise Refused(
                f"there is no guidance to begin or end: {scale} is 1 or less",
                field=f"{at}.{name}",
                value=value,
                choices=[f"{getattr(EXACT, name):g}", f"any share where {scale} is above 1"],
            )
    return Acceleration(**spec.model_dump())
