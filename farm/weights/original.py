"""Which part of a model a tensor of a single file belongs to, and what it is called within that part.

Single files are as people share them: CompVis' layout (SD 1 and 2), sgm's (SDXL), Black Forest Labs' and Stability's
transformers alone, and ComfyUI's files that hold everything. Renaming what is within a part is the worker's business.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from farm.catalog import Family

Held = dict[str, dict[str, str]]
"""For each part by diffusers' name: the names of its tensors within the part, and in the file."""

_DENOISER: Final[dict[Family, str]] = {"sd15": "unet", "sdxl": "unet", "flux": "transformer", "sd3": "transformer"}
DENOISERS: Final = frozenset(_DENOISER.values())
_T5: Final[dict[Family, str]] = {"flux": "text_encoder_2", "sd3": "text_encoder_3"}
_PREFIXES: Final = (
    ("model.diffusion_model.", "denoiser"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("cond_stage_model.", "text_encoder"),
    ("conditioner.embedders.0.", "text_encoder"),
    ("conditioner.embedders.1.", "text_encoder_2"),
    ("text_encoders.clip_l.", "text_encoder"),
    ("text_encoders.clip_g.", "text_encoder_2"),
    ("text_encoders.t5xxl.", "t5"),
)
_BARE_DENOISER: Final = re.compile(
    r"(double_blocks|single_blocks|img_in|joint_blocks|transformer_blocks|input_blocks|down_blocks)\."
)
"""Beginnings of names in files that hold a denoiser and nothing else."""


def split(names: Iterable[str], family: Family) -> Held:
    """Sort the names of a file's tensors by the part they belong to; what belongs to none is left out."""
    names = list(names)
    roles = {"denoiser": _DENOISER[family], "t5": _T5.get(family, "text_encoder_3")}
    is_bare = any(_BARE_DENOISER.match(name) for name in names)
    held: Held = {}
    for name in names:
        prefix, role = next((pair for pair in _PREFIXES if name.startswith(pair[0])), ("", "denoiser"))
        if prefix or is_bare:
            held.setdefault(roles.get(role, role), {})[name.removeprefix(prefix)] = name
    return held


def denoiser_of(family: Family) -> str:
    """Return diffusers' name for the denoiser of a family."""
    return _DENOISER[family]
