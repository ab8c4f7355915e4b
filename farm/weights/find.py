"""From a catalog row to files on this machine: local ones where they are, the hub's in its cache, fetched when needed.

Every file of weights is opened and its header read, so that what is cut short, of another kind, or a pickle is told
before anything is loaded. Errors do not name the model: who asked knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farm.errors import ModelBroken
from farm.weights.choose import (
    COMPONENTS,
    FP16_FAMILIES,
    OPTIONAL,
    PICKLE_SUFFIXES,
    SAFE_SUFFIX,
    WHY_NO_PICKLE,
    Chosen,
    choose_model,
    choose_weights,
    has_weights,
)
from farm.weights.found import UNKNOWN, ModelFiles, PartFiles
from farm.weights.headers import TensorInfo, read_header
from farm.weights.original import denoiser_of, split
from farm.weights.recognise import Kind, recognise

if TYPE_CHECKING:
    from farm.catalog import Family, ModelRow, Source
    from farm.weights.hub import Hub

OnProgress = Callable[[int, int], None]

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_QUANTISED: Final = ("scaled_fp8", ".scale_weight", ".weight_scale", ".absmax")
"""Endings of tensors that go with weights in scaled 8 bits, or in 4."""


class Weights:
    """The models, LoRAs and other files of a farm: those under `models_dir`, and those of the `hub`."""

    def __init__(self, models_dir: Path, hub: Hub) -> None:
        self._models_dir = models_dir
        self._hub = hub

    def model(self, row: ModelRow, *, prefer_fp16: bool = False, on_progress: OnProgress | None = None) -> ModelFiles:
        """Find the files of a model, downloading what lacks.

        `prefer_fp16` is for cards, and heeded for families that they compute in fp16. Raises ModelBroken, BadHeader, or
        HubDown when it is for the hub to come back.
        """
        prefer_fp16 = prefer_fp16 and row.family in FP16_FAMILIES
        vae = None if row.vae is None else self.part(row.vae, "vae", prefer_fp16=prefer_fp16, on_progress=on_progress)
        own = tuple(name for name in COMPONENTS[row.family] if has_weights(name) and not (vae and name == "vae"))
        local = self._find_local(row)
        if row.filename is not None or (local is not None and not local.is_dir()):
            single = self.file(row, on_progress=on_progress)
            return self._single(row, single, own, vae, prefer_fp16=prefer_fp16, on_progress=on_progress)
        folder = local or self._fetch_model(row, row.family, own, prefer_fp16=prefer_fp16, on_progress=on_progress)
        kind = _check_family(folder, row.family, prefer_fp16=prefer_fp16)
        parts = _choose_parts(folder, own, prefer_fp16=prefer_fp16)
        files = ModelFiles(folder, parts, vae=vae, kind=kind)
        _check_headers(files)
        return files

    def part(
        self, source: Source, part: str, *, prefer_fp16: bool = False, on_progress: OnProgress | None = None
    ) -> PartFiles:
        """Find one part (`vae`, `controlnet`) that has a source of its own, downloading what lacks. Raises as `model`.

        It is a folder with a config, that of a whole model with a folder `part` in it, or one file.
        """
        local = self._find_local(source)
        if source.filename is not None or (local is not None and not local.is_dir()):
            file = self.file(source, on_progress=on_progress)
            return PartFiles(file=file, names=_names_in(file, part))

        def choose(names: Sequence[str]) -> list[str]:
            prefix = f"{part}/" if f"{part}/config.json" in names else ""
            here = [name.removeprefix(prefix) for name in names if name.rpartition("/")[0] == prefix.rstrip("/")]
            chosen = choose_weights(here, source.source, prefer_fp16=prefer_fp16)
            return [f"{prefix}{name}" for name in ("config.json", *chosen.names)]

        folder = local or self._fetch(source, choose, probe="config.json", on_progress=on_progress)
        if (folder / part / "config.json").is_file():
            folder /= part
        found = PartFiles(folder, choose_in(folder, prefer_fp16=prefer_fp16))
        for path in found.weights:
            read_header(path)
        return found

    def file(self, source: Source, *, on_progress: OnProgress | None = None) -> Path:
        """Find the one file that a source means, downloading it if need be. Raises as `model`; reads no header."""
        path = self._find_local(source)
        if path is None and source.filename is not None:
            name = source.filename
            _check_suffix(name)

            def choose(names: Sequence[str]) -> list[str]:
                if name not in names:
                    choices = [other for other in names if other.endswith(SAFE_SUFFIX)]
                    raise ModelBroken(
                        f"{source.source} has no file {name!r}, only {', '.join(choices) or 'no weights'}"
                    )
                return [name]

            path = self._fetch(source, choose, probe=name, on_progress=on_progress) / name
        if path is None or not path.is_file():
            raise ModelBroken(f"there is no file {path or self._models_dir / source.source}")
        _check_suffix(path.name)
        return path

    def recognise(self, source: Source) -> Kind | None:
        """Return what the files of a source are, without downloading any; None when they are not here.

        Raises ModelBroken or BadHeader for a file that is no model.
        """
        path = self._find_local(source)
        if path is None:
            return None
        if path.is_dir():
            return recognise_folder(path)
        return recognise(read_header(self.file(source)))

    def _single(
        self,
        row: ModelRow,
        single: Path,
        own: tuple[str, ...],
        vae: PartFiles | None,
        *,
        prefer_fp16: bool,
        on_progress: OnProgress | None,
    ) -> ModelFiles:
        """Sort out what a single file holds, and find the rest where its configs are."""
        tensors = read_header(single)
        kind = recognise(tensors)
        _compare(single.name, kind, row.family)
        if any(name.endswith(_QUANTISED) for name in tensors):
            raise ModelBroken(f"{single.name} holds quantised weights, which are not supported: take those in 16 bits")
        held = {part: names for part, names in split(tensors, row.family).items() if part in own}
        lacking = tuple(name for name in own if name not in held)
        config = row.model_copy(
            update={"source": row.config or kind.config or "", "filename": None, "revision": row.config_revision}
        )
        try:
            folder = self._find_local(config) or self._fetch_model(
                config, row.family, lacking, prefer_fp16=prefer_fp16, on_progress=on_progress
            )
            parts = _choose_parts(folder, lacking, prefer_fp16=prefer_fp16)
        except ModelBroken as error:
            what = f"configs, tokenizers{''.join(f', {name}' for name in lacking)}"
            raise ModelBroken(
                f"{single.name} is {kind.words}; its {what} are taken from {config.source}: {error}"
            ) from error
        files = ModelFiles(folder, parts, single, held, vae, kind)
        _check_headers(files)
        return files

    def _find_local(self, source: Source) -> Path | None:
        """Return where a source lies (relative ones in the models folder), None when it is one of the hub."""
        local = self._models_dir / source.source
        if local.exists():
            return local / source.filename if source.filename is not None and local.is_dir() else local
        if _REPOSITORY.fullmatch(source.source) is None:
            raise ModelBroken(f"there is no folder or file {local}")
        return None

    def _fetch_model(
        self,
        source: Source,
        family: Family,
        weights_of: tuple[str, ...],
        *,
        prefer_fp16: bool,
        on_progress: OnProgress | None,
    ) -> Path:
        def choose(names: Sequence[str]) -> list[str]:
            return choose_model(names, family, weights_of, prefer_fp16=prefer_fp16)

        return self._fetch(source, choose, probe="scheduler/scheduler_config.json", on_progress=on_progress)

    def _fetch(
        self,
        source: Source,
        choose: Callable[[Sequence[str]], Sequence[str]],
        *,
        probe: str,
        on_progress: OnProgress | None,
    ) -> Path:
        return self._hub.fetch(source.source, source.revision, choose, probe=probe, on_progress=on_progress)


def choose_in(folder: Path, *, prefer_fp16: bool) -> Chosen:
    """Choose the weights in a component's folder; raises ModelBroken, naming it."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return choose_weights(names, str(folder), prefer_fp16=prefer_fp16)


def _choose_parts(folder: Path, parts: Sequence[str], *, prefer_fp16: bool) -> dict[str, Chosen]:
    present = [part for part in parts if part not in OPTIONAL or (folder / part).is_dir()]
    return {part: choose_in(folder / part, prefer_fp16=prefer_fp16) for part in present}


def _names_in(file: Path, part: str) -> dict[str, str]:
    """Return the names of a part's tensors in a file that holds this part alone, or a whole model."""
    tensors = read_header(file)
    held = split(tensors, "sd15").get(part)
    if held is None and recognise(tensors).part != part:
        raise ModelBroken(f"{file.name} is {recognise(tensors).words}, and a {part} was wanted")
    return held or {name: name for name in tensors}


def read_headers(folder: Path, chosen: Chosen) -> dict[str, TensorInfo]:
    """Return the tensors of all files that were chosen in `folder`. Raises BadHeader."""
    tensors: dict[str, TensorInfo] = {}
    for path in chosen.paths(folder):
        tensors |= read_header(path)
    return tensors


def _check_headers(files: ModelFiles) -> None:
    for path in files.weights.values():
        read_header(path)


def _check_family(folder: Path, family: Family, *, prefer_fp16: bool) -> Kind:
    """Compare a folder's denoiser with the family that the catalog says, and return what it is."""
    kind = recognise_folder(folder, denoiser_of(family), prefer_fp16=prefer_fp16)
    if kind is None:
        return UNKNOWN  # and its parts will be missed one by one
    _compare(str(folder), kind, family)
    return kind


def recognise_folder(folder: Path, denoiser: str = "unet", *, prefer_fp16: bool = False) -> Kind | None:
    """Return what the denoiser in a diffusers folder is, looking for `denoiser` first; None when there is none."""
    for part in dict.fromkeys([denoiser, "unet", "transformer"]):
        if (folder / part).is_dir():
            return recognise(read_headers(folder / part, choose_in(folder / part, prefer_fp16=prefer_fp16)))
    return None


def _compare(what: str, kind: Kind, family: Family) -> None:
    if kind.family != family:
        raise ModelBroken(f"{what} is {kind.words}, and the catalog says that it is of family {family}")


def _check_suffix(name: str) -> None:
    if name.endswith(PICKLE_SUFFIXES):
        raise ModelBroken(f"{name} holds {WHY_NO_PICKLE}")
    if not name.endswith(SAFE_SUFFIX):
        raise ModelBroken(f"{name} is no .safetensors file")
