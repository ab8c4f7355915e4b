"""A1111's options: what a client may set for itself, which of them mean something here, and what they mean. Pure.

In A1111 an option is the whole server's, and another model is loaded for everybody. Here it is the client's who set it
(farm/ledger/clients.py keeps it): the next requests of that client are made with it, nobody else's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from farm.catalog import Catalog
from farm.errors import Refused, UnknownModel
from farm.storage import ImageFormat

MODEL: Final = "sd_model_checkpoint"
CLIP_SKIP: Final = "CLIP_stop_at_last_layers"
FORMAT: Final = "samples_format"
QUALITY: Final = "jpeg_quality"

_MAX_OPTIONS: Final = 512
_MAX_NAME_CHARS: Final = 128
_MAX_VALUE_CHARS: Final = 8_192
_MAX_CLIP_SKIP: Final = 12  # A1111's own slider
_MAX_QUALITY: Final = 100

_FORMATS: Final[Mapping[str, ImageFormat]] = MappingProxyType(
    {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp", "avif": "avif"}
)

_ONLY: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "sd_vae": ("Automatic", "None", "", None),
        "eta_noise_seed_delta": (0,),
        "sd_hypernetwork": ("None", "", None),
        "face_restoration": (False,),
        "tiling": (False,),
        "token_merging_ratio": (0,),
        "token_merging_ratio_img2img": (0,),
        "token_merging_ratio_hr": (0,),
        "initial_noise_multiplier": (1,),
        "img2img_color_correction": (False,),
        "img2img_fix_steps": (False,),
        "sdxl_refiner_low_aesthetic_score": (2.5,),
        "emphasis": ("Original",),
        "randn_source": ("GPU", "CPU", "NV"),
    }
)
"""Options that would change pictures in ways that the farm does not offer, and the values at which they do not."""

_SHOWN: Final[Mapping[str, Any]] = MappingProxyType(
    {
        FORMAT: "png",
        QUALITY: 80,
        CLIP_SKIP: 1,
        "sd_checkpoint_hash": None,
        "sd_vae": "Automatic",
        "eta_noise_seed_delta": 0,
        "emphasis": "Original",
        "randn_source": "CPU",
        "samples_save": False,
        "grid_save": False,
        "return_grid": False,
        "enable_pnginfo": True,
        "live_previews_enable": True,
        "live_previews_image_format": "jpeg",
        "show_progress_every_n_steps": 5,
        "show_progress_type": "Approx cheap",
        "upscaler_for_img2img": None,
        "face_restoration": False,
        "token_merging_ratio": 0.0,
        "img2img_color_correction": False,
        "img2img_fix_steps": False,
        "img2img_background_color": "#ffffff",
        "initial_noise_multiplier": 1.0,
    }
)
"""What `GET /options` shows beside the model until a client sets something else."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options that mean something here, as they hold for one request."""

    model: str | None = None  # a name of the catalog; None: the farm's choice
    clip_skip: int | None = None  # diffusers': A1111's less one; None: the model's own
    image_format: ImageFormat = "png"
    quality: int = 80

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Read options that were checked."""
        return cls(
            model=given.get(MODEL),
            clip_skip=int(given[CLIP_SKIP]) - 1 if CLIP_SKIP in given else None,
            image_format=_FORMATS[str(given.get(FORMAT, "png"))],
            quality=int(given.get(QUALITY, 80)),
        )


def checked(changes: Mapping[str, Any], catalog: Catalog, *, at: str = "") -> dict[str, Any]:
    """Return options as they are kept: the model by its name in the catalog, numbers as numbers, null left out.

    Options that nobody here knows are kept as they are. Raises Refused for a value of a known one that cannot be
    honoured, and for what is too much to keep; `at` is where they stand in a request.
    """
    if len(changes) > _MAX_OPTIONS:
        raise Refused("are more options than there are", field=at or None, value=len(changes))
    kept = {name: _checked(name, value, catalog, f"{at}.{name}" if at else name) for name, value in changes.items()}
    return {name: value for name, value in kept.items() if value is not None}


def _checked(name: str, value: Any, catalog: Catalog, field: str) -> Any:
    if name in _ONLY and value not in _ONLY[name]:
        choices = [str(choice) for choice in _ONLY[name] if choice not in (None, "")]
        raise Refused("the farm renders with no other value", field=field, value=value, choices=choices)
    match name:
        case "sd_model_checkpoint" if value is not None:
            return model_named(value, catalog, field=field)
        case "CLIP_stop_at_last_layers" if value is not None:
            return _whole(value, 1, _MAX_CLIP_SKIP, field)
        case "jpeg_quality" if value is not None:
            return _whole(value, 1, _MAX_QUALITY, field)
        case "samples_format" if value is not None:
            text = str(value).lower()
            if text not in _FORMATS:
                raise Refused("is no format of files here", field=field, value=value, choices=list(_FORMATS))
            return text
    if len(name) > _MAX_NAME_CHARS or len(json.dumps(value)) > _MAX_VALUE_CHARS:
        raise Refused("is larger than an option may be", field=field[:_MAX_NAME_CHARS])
    return value


def _whole(value: Any, low: int, high: int, field: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not low <= number <= high or number != int(number):
        raise Refused("must be a whole number", field=field, value=value, choices=[f"{low} to {high}"])
    return int(number)


def model_named(title: Any, catalog: Catalog, *, field: str = MODEL) -> str:
    """Return the model that a title of `GET /sd-models` means, with a hash or an ending or not; raises UnknownModel."""
    name = str(title).strip()
    for each in (name, name.partition(" [")[0], name.removesuffix(".safetensors")):
        for known in catalog.names:
            if known.casefold() == each.casefold():
                return known
    raise UnknownModel(f"no model is called {name[:100]!r}", field=field, value=title, choices=catalog.names)


def shown(given: Mapping[str, Any], *, model: str | None) -> dict[str, Any]:
    """Return all options as `GET /options` tells them: what a client has set, and defaults."""
    return {MODEL: model, **_SHOWN, **given}
