"""What a worker has to make its models' forwards fast: the wish, the card, and what is shared between its models."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from worker.forward.attention import AttentionChoice, kernels_for, timer_for
from worker.forward.compiled import COMPILE_AFTER, Compiled, keep_compilations_in
from worker.forward.forward import Forward
from worker.forward.graphs import CudaCapturer, Graphs
from worker.forward.layers import AttentionLayers
from worker.forward.options import Optimisation, chosen_of
from worker.forward.selection import Case, select

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    import torch

    from farm.plans import Plan
    from worker.forward.attention import Store
    from worker.gpu import Device

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Toolbox:
    """Makes the forwards of one worker's models. All that knows a driver or a clock may be given instead."""

    chosen: frozenset[Optimisation]
    on_card: bool
    card: str
    store: Store
    timer: Callable[[Callable[[], object]], float]
    graphs: Graphs | None = None
    max_batch: int = 8
    backend: str | Callable[..., Any] = "inductor"
    compile_after: int = field(default=COMPILE_AFTER)

    @classmethod
    def of(cls, setting: str, device: Device, *, store: Store, cache_dir: Path | None, max_batch: int) -> Self:
        """Return what `setting` (FARM_OPTIMISE) asks for on `device`; raises Fatal for a name that is none.

        What is compiled is kept in `cache_dir`; None leaves it to torch.
        """
        on_card = device.torch.type == "cuda"
        chosen = chosen_of(setting, on_card=on_card)
        if Optimisation.COMPILE in chosen and cache_dir is not None:
            keep_compilations_in(cache_dir)
        return cls(
            chosen=chosen,
            on_card=on_card,
            card=device.kind,
            store=store,
            timer=timer_for(device.torch),
            graphs=Graphs(CudaCapturer(device.torch)) if on_card and Optimisation.GRAPHS in chosen else None,
            max_batch=max_batch,
        )

    def forward(
        self,
        module: Any,
        *,
        name: str,
        denoiser: str,
        plan: Plan | None,
        dtype: torch.dtype,
        max_batch: int | None = None,
        allow_lossy: bool = True,
        unbatched: Collection[str] = (),
    ) -> Forward:
        """Return the forward of a model's denoiser, and say in the log what it can have and why not the rest.

        `name` is the model's, `denoiser` what its plan calls the module; arguments have rows, but for `unbatched`.
        """
        layers = AttentionLayers(module)
        kernels = kernels_for(
            layers, on_card=self.on_card, allow_lossy=allow_lossy and Optimisation.SAGE in self.chosen
        )
        case = Case(
            on_card=self.on_card,
            card=self.card,
            dtype=dtype,
            plan=plan,
            denoiser=denoiser,
            max_batch=min(self.max_batch, max_batch or self.max_batch),
            allow_lossy=allow_lossy,
            can_fuse=layers.can_fuse,
            has_lossy_kernel=any(kernel.is_lossy for kernel in kernels),
        )
        selection = select(self.chosen, case)
        if self.chosen:
            facts = {"action": "model_optimised", "model": name, "optimisations": sorted(selection.active)}
            log.info("model %s, optimised by %s", name, selection.summary, extra=facts)
        if not selection.active:
            return Forward(module, unbatched=unbatched)
        network = _network(module, dtype)
        if Optimisation.FUSED in selection.active:
            layers.fuse()
        chooses = Optimisation.ATTENTION in selection.active or Optimisation.SAGE in selection.active
        return Forward(
            module,
            unbatched=unbatched,
            layers=layers,
            graphs=self.graphs if Optimisation.GRAPHS in selection.active else None,
            compiled=self._compiled(module) if Optimisation.COMPILE in selection.active else None,
            choice=AttentionChoice(kernels, network=network, store=self.store, timer=self.timer)
            if chooses and len(kernels) > 1
            else None,
            accumulates_in_fp16=Optimisation.FP16_ACCUMULATION in selection.active,
            optimisations=tuple(sorted(selection.active)),
            approximations=_approximations(selection.active),
        )

    def _compiled(self, module: Any) -> Compiled:
        return Compiled(module, backend=self.backend, after=self.compile_after)


def _approximations(active: frozenset[Optimisation]) -> tuple[str, ...]:
    """Return what `active` may change in pictures beyond the rounding of their precision."""
    words = {
        Optimisation.FP16_ACCUMULATION: "matrix products added up in fp16",
        Optimisation.SAGE: "attention in 8 bits where that is faster (sage)",
    }
    return tuple(words[name] for name in words if name in active)


def _network(module: Any, dtype: torch.dtype) -> str:
    """Return a name that stands for a network's class and size: models of one family share what is measured."""
    num_values = sum(parameter.numel() for parameter in module.parameters())
    return f"{type(module).__name__}-{num_values}-{str(dtype).removeprefix('torch.')}"
