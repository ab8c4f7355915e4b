"""Which optimisations a model on a device can have, and why it cannot have the others. Pure.

The memory plan decides: recordings and compilations hold on to weights where they lie, as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from farm.plans import DYNAMIC, Where
from worker.forward.options import Optimisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from farm.plans import Plan

_TIED_TO_WEIGHTS: Final = (Optimisation.GRAPHS, Optimisation.COMPILE, Optimisation.FUSED)


@dataclass(frozen=True, slots=True)
class Case:
    """What the answer depends on, beside the wish."""

    on_card: bool
    card: str  # as the driver names it
    dtype: torch.dtype  # of the denoiser
    plan: Plan | None  # None: all is resident, as it computes
    denoiser: str  # its name in the plan
    max_batch: int  # seats of a lane
    allow_lossy: bool = True
    can_fuse: bool = True
    has_lossy_kernel: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """`active` optimisations, and of the others that were asked for, why not."""

    active: frozenset[Optimisation]
    refused: Mapping[Optimisation, str]

    @property
    def summary(self) -> str:
        """The selection in a few words."""
        words = ", ".join(sorted(self.active)) or "nothing"
        return words + "".join(f"; not {name}: {reason}" for name, reason in sorted(self.refused.items()))


def select(chosen: frozenset[Optimisation], case: Case) -> Selection:
    """Return what of `chosen` a model can have."""
    refused = dict(_refusals(chosen, case))
    return Selection(chosen - refused.keys(), refused)


def _refusals(chosen: frozenset[Optimisation], case: Case) -> Iterator[tuple[Optimisation, str]]:
    for name in chosen:
        reason = _tied(case, name) if name in _TIED_TO_WEIGHTS else ""
        match name:
            case Optimisation.GRAPHS:
                reason = reason or _no_graphs(case)
            case Optimisation.FUSED if not case.can_fuse:
                reason = reason or "its layers have projections of another kind"
            case Optimisation.FP16_ACCUMULATION:
                reason = _no_fp16_accumulation(case)
            case Optimisation.SAGE if not case.has_lossy_kernel or not case.allow_lossy:
                reason = "sageattention is not installed, or this model cannot or must not use it"
        if reason:
            yield name, reason


def _tied(case: Case, name: Optimisation) -> str:
    """Return why `name` may not rely on where this denoiser's weights lie and what they are; "" when it may."""
    if case.plan is None:
        return ""
    part = case.plan.component(case.denoiser)
    if part.where is not Where.RESIDENT:
        return f"the {case.denoiser} is {part.where}"
    # What computes in eight bits stays as it is, and wants to be compiled; other kinds are widened by hooks.
    if part.is_lossy and (part.storage not in DYNAMIC or name is Optimisation.FUSED):
        return f"the {case.denoiser} is kept in {part.storage}"
    return ""


def _no_graphs(case: Case) -> str:
    if not case.on_card:
        return "there is no CUDA device"
    if case.plan is None:
        return ""
    # What steps work in is held by recordings for ever, so that other phases need theirs beside it.
    plan, seats = case.plan, min(case.max_batch, case.plan.max_batch)
    phases = {phase.name: phase.peak_bytes + (seats - plan.batch) * phase.seat_bytes for phase in plan.phases}
    others = max(phases[name] for name in phases if name != "denoise")
    together = phases["denoise"] + others - plan.steady_bytes
    if together > plan.vram_bytes - plan.margin_bytes:
        return f"{together / 2**30:.1f} GiB would be held at {seats} seats, the card has {plan.vram_bytes / 2**30:.1f}"
    return ""


def _no_fp16_accumulation(case: Case) -> str:
    if not case.on_card or "geforce" not in case.card.lower():
        return "only GeForce cards are faster by it"
    if case.dtype is not torch.float16:
        return f"the {case.denoiser} computes in {str(case.dtype).removeprefix('torch.')}"
    return "" if case.allow_lossy else "its row in the catalog forbids approximations"
