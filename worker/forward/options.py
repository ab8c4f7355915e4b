"""What FARM_OPTIMISE may say, and what it means on a device. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from farm.errors import Fatal


class Optimisation(StrEnum):
    """One way to make a forward fast; docs/optimisations.md has a paragraph for each."""

    COMPILE = "compile"
    GRAPHS = "graphs"
    FUSED = "fused"
    ATTENTION = "attention"
    FP16_ACCUMULATION = "fp16-accumulation"
    SAGE = "sage"  # attention in 8 bits: never by itself


AUTO: Final = "auto"
OFF: Final = "off"
ON_ANY_CARD: Final = frozenset(Optimisation) - {Optimisation.SAGE}
"""What `auto` is on a CUDA card. What a card, a model or a plan has no use for is left out for each model."""


def chosen_of(setting: str, *, on_card: bool) -> frozenset[Optimisation]:
    """Return what `setting` asks for: `auto`, `off`, or a comma-separated list of names, of which `auto` may be one.

    `auto` is nothing on a CPU. Raises Fatal, with the choices, for any other name.
    """
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if names == [OFF]:
        return frozenset()
    chosen: set[Optimisation] = set()
    for name in names:
        if name == AUTO:
            chosen |= ON_ANY_CARD if on_card else set()
        elif name in set(Optimisation):
            chosen.add(Optimisation(name))
        else:
            raise Fatal(
                f"FARM_OPTIMISE names {name!r}; it may be {AUTO}, {OFF}, or a list of {', '.join(Optimisation)}"
            )
    return frozenset(chosen)
