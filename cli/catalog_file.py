"""The farm's catalog file, edited: a row added at its end, or taken out; what else stands in it stays as it is."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from cli.exits import CliError, Exit
from farm.catalog import Catalog, ModelRow, load_catalog
from farm.errors import Fatal, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

_TABLE: Final = re.compile(r"^[ \t]*\[\[", re.MULTILINE)


def add_model(path: Path, fields: Mapping[str, Any]) -> ModelRow:
    """Append a row for one more model, and return it.

    Raises CliError, with the file as it was, when the row makes no sense or its name is taken.
    """
    try:
        row = ModelRow.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CliError(f"{where}: {first['msg']} (given {first['input']!r})", code=Exit.USAGE) from error
    try:
        Catalog([row])
    except Refused as error:
        choices = f"; choices: {', '.join(error.choices)}" if error.choices else ""
        raise CliError(f"{error}{choices}", code=Exit.USAGE) from error
    if row.name in load(path).names:
        raise CliError(f"the catalog has a model {row.name!r} already", code=Exit.USAGE)
    text = path.read_text("utf-8") if path.exists() else ""
    _write(path, f"{text.rstrip()}\n\n{_to_toml(fields)}".lstrip())
    return row


def remove_model(path: Path, name: str) -> None:
    """Take the row of a model out of the file. Raises CliError when the file has none, or is not to be understood."""
    load(path)
    text = path.read_text("utf-8") if path.exists() else ""
    names = [table.get("name") for table in tomllib.loads(text).get("model", [])]
    if name not in names:
        choices = ", ".join(map(str, names)) or "none"
        raise CliError(f"{path} has no model {name!r}; it has: {choices}", code=Exit.USAGE)
    starts = [match.start() for match in _TABLE.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        rest = text[:start] + text[end:]
        if _names_in(text[start:end]) == [name] and _names_in(rest) == [other for other in names if other != name]:
            _write(path, rest)
            return
    raise CliError(f"the row of {name} in {path} could not be told from the others: take it out by hand")


def load(path: Path) -> Any:
    """Return the catalog with the rows of `path`, if there is such a file. Raises CliError."""
    try:
        return load_catalog(path if path.exists() else None)
    except Fatal as error:
        raise CliError(str(error)) from error


def _names_in(text: str) -> list[object]:
    try:
        return [table.get("name") for table in tomllib.loads(text).get("model", [])]
    except (tomllib.TOMLDecodeError, AttributeError):
        return []


def _to_toml(fields: Mapping[str, Any]) -> str:
    return "\n".join(["[[model]]", *(f"{name} = {_value(value)}" for name, value in fields.items())]) + "\n"


def _value(value: object) -> str:
    """Return a value in TOML, whose strings, numbers and booleans are written as those of JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_value(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write(path: Path, text: str) -> None:
    """Replace the file as a whole: a farm that starts meanwhile reads the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from error
