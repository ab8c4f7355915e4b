"""The files that `__name__` in a template stands for: the farm's own, and those in FARM_WILDCARDS_DIR.

A name is looked up among the files that lie in these folders; it never becomes a path, so none leads outside.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from farm.errors import Refused

SHIPPED: Final = Path(__file__).resolve().parents[2] / "prompts" / "wildcards"
"""What comes with the farm."""

_MAX_FILES: Final = 5_000
_MAX_FILE_BYTES: Final = 1024 * 1024
_MAX_LINES: Final = 20_000
_MAX_LINE_CHARS: Final = 8_000
_NEAR: Final = 3


class Wildcards:
    """The wildcards of one moment: which names there are, and the lines of each, read when first asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._files: dict[str, Path] = {}
        for folder in folders:  # of two files of one name that in the first folder counts
            for path in _text_files(folder):
                if len(self._files) < _MAX_FILES:
                    self._files.setdefault(path.relative_to(folder).with_suffix("").as_posix().lower(), path)
        self._lines: dict[str, tuple[str, ...]] = {}

    @property
    def names(self) -> list[str]:
        """All names, in order."""
        return sorted(self._files)

    def lines(self, name: str) -> tuple[str, ...]:
        """Return the lines of a wildcard, or of all those that a pattern with `*` names, one after the other.

        Raises Refused, without a field, when there is none, or when its file cannot be read.
        """
        wanted = name.strip().strip("/").lower()
        if wanted in self._files:
            return self._read(wanted)
        found = [each for each in self.names if "*" in wanted and fnmatchcase(each, wanted)]
        if not found:
            near = difflib.get_close_matches(wanted, self.names, n=_NEAR)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise Refused(f"there is no wildcard {name!r}{hint}", value=name, choices=self.names[:100])
        return tuple(line for each in found for line in self._read(each))[:_MAX_LINES]

    def lines_if_readable(self, name: str) -> tuple[str, ...]:
        """Return the lines of a wildcard that is there; none where its file cannot be read."""
        try:
            return self.lines(name)
        except Refused:
            return ()

    def _read(self, name: str) -> tuple[str, ...]:
        if name not in self._lines:
            self._lines[name] = _lines_of(self._files[name], name)
        return self._lines[name]


def wildcards_of(own: Path | None) -> Wildcards:
    """Return the wildcards as they are now: those in the folder `own`, if there is one, before those that ship."""
    return Wildcards([SHIPPED] if own is None else [own, SHIPPED])


def _text_files(folder: Path) -> Iterator[Path]:
    """Yield the text files in a folder and below, hidden ones aside, in the same order everywhere.

    Links to folders are not followed: they may lead in a circle.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(".txt") and not name.startswith("."):
                yield Path(place, name)


def _lines_of(path: Path, name: str) -> tuple[str, ...]:
    """Return the lines of a file that count: not the empty ones, nor those that start with `#`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Refused(f"the wildcard {name!r} cannot be read: {error.strerror}", value=name) from error
    if len(data) > _MAX_FILE_BYTES:
        raise Refused(f"the wildcard {name!r} has more than {_MAX_FILE_BYTES:,} bytes", value=name)
    stripped = (line.strip() for line in data.decode("utf-8-sig", "replace").splitlines())
    lines = tuple(line[:_MAX_LINE_CHARS] for line in stripped if line and not line.startswith("#"))[:_MAX_LINES]
    if not lines:
        raise Refused(f"the wildcard {name!r} has no line", value=name)
    return lines
