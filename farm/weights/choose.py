"""Which files of a diffusers folder are needed, told by names alone: it works before anything is downloaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from farm.errors import ModelBroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from farm.catalog import Family

COMPONENTS: Final[Mapping[Family, tuple[str, ...]]] = {
    "sd15": ("tokenizer", "text_encoder", "unet", "vae"),
    "sdxl": ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae"),
    "flux": ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae"),
    "sd3": (
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
        *("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"),
    ),
}
"""The parts of a model of each family, beside its scheduler's config; a folder each."""
OPTIONAL: Final = frozenset({"tokenizer_3", "text_encoder_3"})
"""Parts that a model may do without: SD 3's T5."""

FP16_FAMILIES: Final = frozenset({"sd15", "sdxl"})
"""Families that cards compute in fp16. The others take bf16, which weights in fp16 would only have lost range for."""

SAFE_SUFFIX: Final = ".safetensors"
PICKLE_SUFFIXES: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WHY_NO_PICKLE: Final = "only pickled weights, which can run code; safetensors are needed"

_WEIGHTS: Final = re.compile(
    r"(?:model|diffusion_pytorch_model)"
    r"(?:\.(?P<variant>fp16))?"
    r"(?:-(?P<number>\d{5})-of-(?P<total>\d{5}))?"
    r"(?:\.(?P<late_variant>fp16))?"  # older versions of diffusers put it here
    r"\.safetensors"
)
_SMALL_SUFFIXES: Final = (".json", ".txt", ".model")
"""Configs, vocabularies, and T5's sentencepiece model."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The files that hold a component's weights, in order, and the `variant` by which from_pretrained finds them."""

    names: tuple[str, ...]
    variant: str | None = None

    def paths(self, folder: Path) -> tuple[Path, ...]:
        """Return the files in `folder`."""
        return tuple(folder / name for name in self.names)


def has_weights(component: str) -> bool:
    """Return whether a component is a network, and not a tokenizer."""
    return not component.startswith("tokenizer")


def choose_weights(names: Iterable[str], where: str, *, prefer_fp16: bool) -> Chosen:
    """Choose among the `names` of files in one folder, called `where` in errors.

    The fp16 variant is taken when it is preferred or nothing else is there; others (EMA, training copies) never.
    Raises ModelBroken when there are no weights, only pickled ones, or not all parts of a set.
    """
    names = sorted(names)
    found: dict[str | None, dict[str, int]] = {}
    for name in names:
        if match := _WEIGHTS.fullmatch(name):
            variant = match["variant"] or match["late_variant"]
            found.setdefault(variant, {})[name] = int(match["total"] or 0)
    # A whole file beside a set of parts: from_pretrained takes the whole one.
    sets = {variant: [name for name in held if not held[name]] or list(held) for variant, held in found.items()}
    complete = {variant: held for variant, held in sets.items() if found[variant][held[0]] in (0, len(held))}
    for variant in ("fp16", None) if prefer_fp16 else (None, "fp16"):
        if variant in complete:
            return Chosen(tuple(complete[variant]), variant)
    for variant, held in sets.items():
        raise ModelBroken(f"{where} has only {len(held)} of the {found[variant][held[0]]} files of its weights")
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        raise ModelBroken(f"{where} holds {WHY_NO_PICKLE}")
    raise ModelBroken(f"{where} holds no weights; safetensors are needed")


def choose_model(names: Iterable[str], family: Family, weights_of: Iterable[str], *, prefer_fp16: bool) -> list[str]:
    """Choose the files of a repository that a model of `family` needs: configs of all parts, weights of `weights_of`.

    Raises ModelBroken as `choose_weights` does.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        by_folder.setdefault(folder, []).append(file)
    chosen = ["model_index.json"] if "model_index.json" in by_folder.get("", ()) else []
    for component in ("scheduler", *COMPONENTS[family]):
        small = [file for file in by_folder.get(component, ()) if file.endswith(_SMALL_SUFFIXES)]
        chosen += [f"{component}/{file}" for file in small]
    for component in weights_of:
        if component in OPTIONAL and component not in by_folder:
            continue
        weights = choose_weights(by_folder.get(component, ()), component, prefer_fp16=prefer_fp16)
        chosen += [f"{component}/{file}" for file in weights.names]
    return chosen
