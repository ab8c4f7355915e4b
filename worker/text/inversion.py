"""Textual inversion: a word in a prompt that is a file's name stands for the vectors in that file.

Owns the folder of embeddings: finds files by name, reads them at first mention, again when they change, and says why
not. Where the vectors go is worker/text/clip.py's. Only safetensors are read, never pickle.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

_SAFE_SUFFIX: Final = ".safetensors"
_PICKLE_SUFFIXES: Final = (".pt", ".bin", ".pth", ".ckpt")


class Version(NamedTuple):
    """A state of a file: what is encoded with it depends on this."""

    path: Path
    mtime_ns: int
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """The vectors of one file, [n, width] for each of the model's text encoders by name (`clip_l`, `clip_g`)."""

    version: Version
    sha256: str  # of the file, hex
    vectors: Mapping[str, torch.Tensor]


class Mention(NamedTuple):
    """A word that names a file, as it stands in the prompt, and what the file holds, or why that is of no use."""

    text: str
    found: Inversion | str


class Inversions:
    """The embeddings in one folder and its subfolders, as far as they fit a model.

    `widths` says how wide the vectors of each text encoder are; a file fits that has vectors for these encoders, for no
    others, and of these widths. `max_vectors` is how many of them one chunk holds. The folder need not exist.
    """

    def __init__(self, folder: Path, widths: Mapping[str, int], *, max_vectors: int = 75) -> None:
        self._folder = folder
        self._widths = dict(widths)
        self._max_vectors = max_vectors
        self._listed: dict[Path, int] = {}  # the folders and their mtimes when they were listed
        self._files: dict[str, Path] = {}  # by stem, and by stem in lower case
        self._words: re.Pattern[str] | None = None
        self._loaded: dict[Path, tuple[Version, Inversion | str]] = {}

    def split(self, text: str) -> Iterator[str | Mention]:
        """Yield `text` in pieces: what names no file, and each word that does.

        A word names a file if it equals the file's stem, alone or in angle brackets. Upper and lower case are the same,
        as they are to CLIP, unless two files differ in nothing else.
        """
        self._list()
        end = 0
        for match in self._words.finditer(text) if self._words else ():
            path = self._files.get(match["stem"]) or self._files.get(match["stem"].lower())
            if path is None:
                continue
            if match.start() > end:
                yield text[end : match.start()]
            yield Mention(match.group(), self._load(path))
            end = match.end()
        if end < len(text):
            yield text[end:]

    def _list(self) -> None:
        """List the folder, unless no file has come or gone since that was done last."""
        if self._listed and all(_mtime_ns(folder) == mtime for folder, mtime in self._listed.items()):
            return
        folders = [self._folder, *(path for path in self._folder.rglob("*") if path.is_dir())]
        self._listed = {folder: _mtime_ns(folder) for folder in folders}  # before looking: what comes meanwhile is seen
        paths = sorted(path for folder in folders for path in _children(folder))
        pickled = {path.stem: path for path in paths if path.suffix in _PICKLE_SUFFIXES}
        files = pickled | {path.stem: path for path in paths if path.suffix == _SAFE_SUFFIX}
        self._files = {stem.lower(): path for stem, path in files.items()} | files
        any_stem = "|".join(re.escape(stem) for stem in sorted(self._files, key=len, reverse=True))
        self._words = (
            re.compile(rf"(<)?(?<![\w-])(?P<stem>{any_stem})(?![\w-])(?(1)>)", re.IGNORECASE) if any_stem else None
        )

    def _load(self, path: Path) -> Inversion | str:
        """Return what the file holds now, or why it is of no use."""
        if path.suffix != _SAFE_SUFFIX:
            return f"{path.name} is pickled, which can run code; only safetensors are read"
        try:
            status = path.stat()
            version = Version(path, status.st_mtime_ns, status.st_size)
            if path not in self._loaded or self._loaded[path][0] != version:
                self._loaded[path] = (version, self._fit(version, path.read_bytes()))
        except (OSError, SafetensorError) as error:
            return f"{path.name} cannot be read: {' '.join(str(error).split())}"
        return self._loaded[path][1]

    def _fit(self, version: Version, data: bytes) -> Inversion | str:
        """Return the vectors for each text encoder, or why they do not fit. Raises SafetensorError for another file."""
        name, tensors = version.path.name, load(data)
        if tensors.keys() & {"clip_l", "clip_g"}:
            vectors = dict(tensors)
        elif "emb_params" in tensors or len(tensors) == 1:  # A1111's name for them, or diffusers': the word itself
            only = tensors.get("emb_params", next(iter(tensors.values())))
            vectors = {next(iter(self._widths)): only}
        else:
            return f"{name} is no embedding: it holds {', '.join(sorted(tensors)[:4]) or 'nothing'}"
        vectors = {part: rows.unsqueeze(0) if rows.ndim == 1 else rows for part, rows in vectors.items()}
        if any(rows.ndim != 2 or not 0 < len(rows) <= self._max_vectors for rows in vectors.values()):  # noqa: PLR2004
            shapes = ", ".join(str(list(rows.shape)) for rows in vectors.values())
            return f"{name} holds {shapes}; 1 to {self._max_vectors} vectors are needed"
        widths = {part: rows.shape[1] for part, rows in vectors.items()}
        if widths != self._widths:
            return f"{name} is made for another kind of model: {_say(widths)} where this one takes {_say(self._widths)}"
        return Inversion(version, hashlib.sha256(data).hexdigest(), vectors)


def _say(widths: Mapping[str, int]) -> str:
    return " and ".join(f"{width} numbers per vector ({part})" for part, width in widths.items())


def _children(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if there is no such folder, or none that may be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _mtime_ns(path: Path) -> int:
    """Return when a file last came or went in a folder; 0 if there is no such folder."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
