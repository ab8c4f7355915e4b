"""Prompt styles: words that a name stands for, from the operator's styles.csv in A1111's form."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from farm.errors import Fatal, Refused

_PLACE: Final = "{prompt}"
_MAX_BYTES: Final = 1 << 20


class Style(NamedTuple):
    """One style; `{prompt}` in a text is where the prompt goes, without it the text follows the prompt."""

    name: str
    prompt: str
    negative_prompt: str


def load_styles(path: Path | None) -> tuple[Style, ...]:
    """Return the styles of a CSV file with the columns name, prompt and negative_prompt; raises Fatal, naming it."""
    if path is None:
        return ()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise Fatal(f"{path} is larger than a file of styles may be")
        rows = csv.DictReader(text.splitlines(keepends=True), restval="", restkey="more")
        return tuple(_style(row) for row in rows if row.get("name"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Fatal(f"the styles in {path} cannot be read: {error}") from error


def _style(row: dict[str, str]) -> Style:
    # A1111's first versions called the prompt "text".
    return Style(row["name"], row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")


def styled(prompt: str, negative: str, names: Sequence[str], known: Sequence[Style]) -> tuple[str, str]:
    """Return prompt and negative prompt with styles worked in, in their order; raises Refused for an unknown one."""
    by_name = {style.name: style for style in known}
    for name in names:
        if not name or name == "None":
            continue
        if name not in by_name:
            raise Refused("there is no such style", field="styles", value=name, choices=list(by_name))
        prompt = _joined(by_name[name].prompt, prompt)
        negative = _joined(by_name[name].negative_prompt, negative)
    return prompt, negative


def _joined(style: str, text: str) -> str:
    if _PLACE in style:
        return style.replace(_PLACE, text)
    return ", ".join(part for part in (text.strip(), style.strip()) if part)
