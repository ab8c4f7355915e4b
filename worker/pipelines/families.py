"""Which class renders which family. A class is imported when its family is first asked for: each brings its libraries.

Adding a family is adding its file and its line here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from farm.catalog import Family
    from worker.pipelines.latent import LatentModel

_CLASSES: Final[Mapping[Family, tuple[str, str]]] = {
    "sd15": ("worker.pipelines.sd15", "Sd15Pipeline"),
    "sdxl": ("worker.pipelines.sdxl", "SdxlPipeline"),
    "flux": ("worker.pipelines.flux", "FluxPipeline"),
    "sd3": ("worker.pipelines.sd3", "Sd3Pipeline"),
}


def family_class(family: Family) -> type[LatentModel]:
    """Return the class of `family`'s models."""
    module, name = _CLASSES[family]
    cls: type[LatentModel] = getattr(import_module(module), name)
    return cls
