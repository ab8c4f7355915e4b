"""What was found of a model: which of its parts is in which file. Finding is find.py's, loading is the worker's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from farm.weights.choose import OPTIONAL, Chosen, has_weights
from farm.weights.digests import digest_of_set
from farm.weights.original import Held
from farm.weights.recognise import Kind

if TYPE_CHECKING:
    from pathlib import Path

    from farm.weights.digests import Digests

UNKNOWN: Final = Kind("")


@dataclass(frozen=True, slots=True)
class PartFiles:
    """Where one part is: a `folder` with a config and the `chosen` weights, or one `file` in an original layout."""

    folder: Path | None = None
    chosen: Chosen | None = None
    file: Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # of the file's tensors: within the part, in the file

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files of weights."""
        if self.file is not None:
            return (self.file,)
        assert self.folder is not None and self.chosen is not None  # noqa: S101, PT018  one or the other is there
        return self.chosen.paths(self.folder)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the parts of one model are.

    `folder` has configs and tokenizers, and the weights of `parts`. `single` is one file with the parts that `held`
    tells the names of. `vae` is one from elsewhere that takes the place of the model's own.
    """

    folder: Path
    parts: Mapping[str, Chosen]
    single: Path | None = None
    held: Held = field(default_factory=dict)
    vae: PartFiles | None = None
    kind: Kind = UNKNOWN

    @property
    def weights(self) -> dict[str, Path]:
        """All files of weights, by a name that is the same wherever the model lies."""
        named = {f"{part}/{name}": self.folder / part / name for part, of in self.parts.items() for name in of.names}
        if self.vae is not None:
            named |= {f"vae/{path.name}": path for path in self.vae.weights}
        if self.single is not None:
            named[self.single.name] = self.single
        return named

    def config_folder(self, part: str) -> Path:
        """Return the folder with a part's config."""
        if part == "vae" and self.vae is not None and self.vae.folder is not None:
            return self.vae.folder
        return self.folder / part

    def has(self, part: str) -> bool:
        """Return whether the model has this part, of those that a model of its family may do without."""
        if not has_weights(part):
            return (self.folder / part).is_dir() or part not in OPTIONAL
        return part in self.parts or part in self.held or part not in OPTIONAL

    def model_hash(self, digests: Digests, on_progress: Callable[[int, int], None] | None = None) -> str:
        """Return the model's sha256, hex: a single file's own, which is how it is known on civitai; else one over all.

        `on_progress` hears of each file's bytes.
        """
        if self.single is not None:
            return digests.of(self.single, on_progress)
        return digest_of_set({name: digests.of(path, on_progress) for name, path in self.weights.items()})
