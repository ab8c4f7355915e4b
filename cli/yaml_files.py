"""Pictures that a YAML file names: the same text with other names, all else of it left as it stands. Pure.

Such a file goes to the API, which reads it by rules of its own (api/batches/yaml_documents.py) and names the rows of
what is wrong. What it will not take comes back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from cli.named import PICTURE_FIELDS, Named, Rename, is_file

_MAX_DEPTH: Final = 8  # as the API takes it; no picture lies deeper
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def rename_in_yaml(text: str, rename: Rename, *, name: str, folder: Path) -> str:
    """Return a YAML document with the files that it names renamed; `name` and `folder` are those of its file."""
    if "image" not in text:
        return text
    try:
        scalars = [(path, scalar) for path, scalar in _scalars(text) if _is_file(scalar)]
    except (yaml.YAMLError, _NotTaken):
        return text
    pieces = []
    copied = 0
    for found, scalar in scalars:
        path = ("prompts", *found) if found and isinstance(found[0], int) else found
        begins, ends = scalar.start_mark, scalar.end_mark
        if begins is None or ends is None or not _is_picture(path):
            continue
        told = rename(Named(scalar.value, f"{name}: row {begins.line + 1}, {'.'.join(map(str, path))}", folder))
        if told != scalar.value:
            pieces += [text[copied : begins.index], json.dumps(told)]
            copied = ends.index
    return "".join([*pieces, text[copied:]])


class _NotTaken(Exception):
    """The API refuses such a document: it has aliases, lies too deep, or has a list for a name."""


def _is_file(scalar: yaml.ScalarEvent) -> bool:
    """Whether a value is a file's name: one line of text."""
    is_null = not scalar.style and scalar.value in _NULLS
    return not is_null and scalar.style not in ("|", ">") and is_file(scalar.value)


def _is_picture(path: tuple[str | int, ...]) -> bool:
    """Whether a job, or one of its prompts, names a picture there."""
    match path:
        case (str(name),) | ("prompts", int(), str(name)):
            return name in PICTURE_FIELDS
        case ("controlnets", int(), "image") | ("prompts", int(), "controlnets", int(), "image"):
            return True
    return False


def _scalars(text: str) -> Iterator[tuple[tuple[str | int, ...], yaml.ScalarEvent]]:
    """Yield the values of a document that are no lists and mappings, with their paths."""
    path: list[str | int | None] = []  # of what is open: the number of a list's next part, a mapping's name or None
    for event in yaml.parse(text, Loader=_Loader):
        match event:
            case yaml.AliasEvent():
                raise _NotTaken
            case yaml.ScalarEvent() if path and path[-1] is None:
                path[-1] = event.value
            case yaml.ScalarEvent():
                yield tuple(part for part in path if part is not None), event
                _go_on(path)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if len(path) == _MAX_DEPTH or (path and path[-1] is None):
                    raise _NotTaken
                path.append(0 if isinstance(event, yaml.SequenceStartEvent) else None)
            case yaml.CollectionEndEvent():
                path.pop()
                _go_on(path)


def _go_on(path: list[str | int | None]) -> None:
    """Say that a value has ended: the list's next one, or the mapping's next name, follows."""
    if path:
        path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
