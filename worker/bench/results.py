"""The file that a benchmark leaves: written after every step, so that a run that is cut off keeps its numbers.

Runs on the same machine with the same software share a file, one section for each model; each section says when and
from which commit it is. A file of another machine or of other versions is put aside, never mixed.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT: Final = 1
_SAME: Final = ("device", "driver", "torch", "diffusers", "cuda", "threads")
"""What must be the same for numbers to stand in one file."""


class ResultFile:
    """The results of one machine, on disk and at hand."""

    def __init__(self, path: Path, machine: Mapping[str, Any]) -> None:
        """Go on with the file at `path` if it is of this machine."""
        self.path = path
        self.document = _read(path, machine) or {"format": FORMAT, "machine": dict(machine), "models": {}}
        self._about = {"commit": machine.get("commit", "unknown")}

    def put(self, *keys: str, value: Any) -> None:
        """Set what stands under `keys`, and write the file as a whole."""
        place = self.document
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        self._write()

    def begin(self, section: str, workload: Mapping[str, Any]) -> None:
        """Begin a model's section: anew if what is rendered, or the code, is another; else without old failures."""
        head = {"workload": dict(workload), **self._about}
        models = self.document["models"]
        if {key: models.get(section, {}).get(key) for key in head} != head:
            models[section] = head
        for stale in ("failed", "refused"):
            models[section].pop(stale, None)
        models[section]["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._write()

    def section(self, name: str) -> Mapping[str, Any]:
        """Return what is known of a model."""
        found: Mapping[str, Any] = self.document["models"][name]
        return found

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_name(f".{self.path.name}.part")
        half.write_text(json.dumps(self.document, indent=2) + "\n", "utf-8")
        half.replace(self.path)


def read_results(path: Path) -> dict[str, Any]:
    """Return a result file. Raises ValueError, naming it, when it is none."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of farm bench, or one of another version")
    return document


def _read(path: Path, machine: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the document at `path`; None when there is none, or when it is put aside."""
    if not path.exists():
        return None
    try:
        document = read_results(path)
    except ValueError:
        document = None
    if document is not None and all(document["machine"].get(key) == machine.get(key) for key in _SAME):
        document["machine"] = dict(machine)
        return document
    aside = path.with_name(f"{path.stem}.{datetime.now(UTC):%Y%m%d-%H%M%S}.json")
    path.rename(aside)
    return None
