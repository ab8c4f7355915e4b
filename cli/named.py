"""Pictures that a job names: where they stand in its body, in cells or a query, and the same job with other names.

Pure: which of them are files of this machine is told by their form alone; to find and send them is for cli.pictures.
A job is renamed by a function that is given each such name and returns what shall stand there instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

PICTURE_FIELDS: Final = ("image", "mask_image")
"""Fields of a job and of a prompt that name a picture; each of the `controlnets` has an `image` too."""

_KEYS: Final = ("uploads/", "jobs/")


class Named(NamedTuple):
    """A file as a job names it, the place where it does so in words, and the folder where it may lie."""

    source: str
    place: str
    folder: Path | None = None


Rename = Callable[[Named], str]


class Written(str):
    """A name as a prompt file has it, which remembers where: `row 3, image` of a file in `folder`."""

    __slots__ = ("folder", "place")

    def __new__(cls, text: str, *, place: str, folder: Path | None) -> Self:
        """Return the text with its place."""
        written = super().__new__(cls, text)
        written.place = place
        written.folder = folder
        return written

    place: str
    folder: Path | None


def is_file(source: object) -> bool:
    """Whether a picture's name is that of a file here: neither a key of the farm's nor a URL."""
    return isinstance(source, str) and bool(source.strip()) and "://" not in source and not source.startswith(_KEYS)


def rename_in_body(body: Mapping[str, Any], rename: Rename) -> dict[str, Any]:
    """Return a job's body with its files renamed, its own and its prompts'."""
    prompts = body.get("prompts")
    if not isinstance(prompts, list):
        return _renamed(body, rename, "")
    fields = _renamed({**body, "prompts": None}, rename, "")
    return fields | {
        "prompts": [
            _renamed(prompt, rename, f"prompts.{number}.") if isinstance(prompt, dict) else prompt
            for number, prompt in enumerate(prompts)
        ]
    }


def rename_in_cells(
    cells: Mapping[str, str], rename: Rename, place_of: Callable[[str], str], folder: Path | None = None
) -> dict[str, str]:
    """Return cells, by the names of their fields, with files renamed; `controlnets` are JSON in a cell."""
    renamed = dict(cells)
    for name in PICTURE_FIELDS:
        source = cells.get(name, "").strip()
        if is_file(source):
            renamed[name] = rename(Named(source, place_of(name), folder))
    controlnets = _controlnets_in(cells.get("controlnets", ""))
    if any(is_file(each["image"]) for each in controlnets if _has_image(each)):
        at = Written("", place=f"{place_of('controlnets')}, ", folder=folder)
        renamed["controlnets"] = json.dumps(_rename_controlnets(controlnets, rename, at), ensure_ascii=False)
    return renamed


def written_in(holder: object, *, place: str, folder: Path | None) -> None:
    """Let the names of pictures in a job's body or a prompt remember that they stand in a file, at `place` of it."""
    if not isinstance(holder, dict):
        return
    for name in PICTURE_FIELDS:
        if isinstance(holder.get(name), str):
            holder[name] = Written(holder[name], place=f"{place}{name}", folder=folder)
    controlnets = holder.get("controlnets")
    for number, each in enumerate(controlnets if isinstance(controlnets, list) else ()):
        if _has_image(each) and isinstance(each["image"], str):
            at = f"{place}controlnets.{number}.image"
            each["image"] = Written(each["image"], place=at, folder=folder)


def _renamed(holder: Mapping[str, Any], rename: Rename, prefix: str) -> dict[str, Any]:
    renamed = dict(holder)
    for name in PICTURE_FIELDS:
        if is_file(holder.get(name)):
            renamed[name] = rename(_named(holder[name], f"{prefix}{name}"))
    if isinstance(controlnets := holder.get("controlnets"), list):
        at = Written("", place=f"{prefix}controlnets.", folder=None)
        renamed["controlnets"] = _rename_controlnets(controlnets, rename, at)
    return renamed


def _rename_controlnets(controlnets: Iterable[Any], rename: Rename, at: Written) -> list[Any]:
    return [
        {**each, "image": rename(_named(each["image"], f"{at.place}{number}.image", at.folder))}
        if _has_image(each) and is_file(each["image"])
        else each
        for number, each in enumerate(controlnets)
    ]


def _named(source: str, place: str, folder: Path | None = None) -> Named:
    if isinstance(source, Written):
        return Named(str(source), source.place, source.folder)
    return Named(source, place, folder)


def _has_image(controlnet: object) -> bool:
    return isinstance(controlnet, dict) and "image" in controlnet


def _controlnets_in(cell: str) -> list[Any]:
    try:
        controlnets = json.loads(cell)
    except (ValueError, RecursionError):
        return []  # what it is instead is for the API to say
    return controlnets if isinstance(controlnets, list) else []
