"""The recipe of an image: everything that its bytes depend on, and its JSON, which loses nothing.

No job, attempt, neighbour or time stands in it, so a repeat of a unit has the same recipe. Where it lies in a file is
files.py's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from farm.errors import Refused
from farm.jobs import Picture
from farm.requests import Output, Reproducibility

RECIPE_VERSION: Final = 2
"""Version 1 knew prompt, seed, steps, guidance, scheduler, size and model alone; it is still read."""

FileKind = Literal["image", "thumbnail", "upscaled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Picture):
    """A picture, the model that draws it, what it is drawn on, and which file of it this is."""

    model: str
    reproducibility: Reproducibility
    output: Output  # what asks for this very file: nothing of the other files that the job asked for
    file: FileKind = "image"
    model_sha256: str
    lora_sha256: Mapping[str, str] = field(default_factory=dict)  # by name; of the files, as far as known
    inversion_sha256: Mapping[str, str] = field(default_factory=dict)  # likewise, of textual inversions
    device: str  # its kind
    dtype: str
    upscaler_sha256: str = ""  # of an upscaler's file, where one made this file
    approximations: tuple[str, ...] = ()  # what makes it differ from the model's own: quantised weights, caches
    batch_shape: int | None = None  # seats that every forward was padded to; None under `fast`
    nsfw: bool | None = None  # what the safety checker said; None when it was not asked
    farm_version: str

    def to_json(self) -> str:
        """Return the recipe as compact JSON; what has its default is left out."""
        told = {"version": RECIPE_VERSION, **told_of(self)}
        return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, image_format: str = "png") -> Recipe:
        """Read what `to_json` of this version or an earlier one wrote; raises Refused for anything else.

        `image_format` is the file's, which version 1 does not tell.
        """
        try:
            told = json.loads(text)
            version = told["version"]
            if version == 1:
                told = {**told, "guided": told["guidance_scale"] > 1, "output": {"format": image_format}}
            elif version != RECIPE_VERSION:
                raise Refused(
                    f"the recipe is of version {version!r}, and this farm reads versions up to {RECIPE_VERSION}: "
                    "a newer farm made the image"
                )
            return _ADAPTER.validate_python({key: value for key, value in told.items() if key != "version"})
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # a ValidationError is a ValueError
            raise Refused(f"the recipe is damaged: {_reason(error)}") from error


def told_of(picture: Picture) -> dict[str, Any]:
    """Return the parameters of a picture, or of a whole recipe, as JSON values; what has its default is left out."""
    told: dict[str, Any] = {}
    for each in fields(picture):
        value = getattr(picture, each.name)
        if value != _default(each):
            told[each.name] = _plain(value)
    return told


def _default(each: Field[Any]) -> object:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _plain(value: Any) -> Any:
    """Turn records into JSON objects, whose fields have names."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error) or type(error).__name__


_ADAPTER: Final = TypeAdapter(Recipe)
