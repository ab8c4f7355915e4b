"""Studios (tests/parity.py) for units that give something up for speed, and what tells how much it saved.

References are diffusers' own where it has the option: its callbacks that end guidance, its first-block cache. DeepCache
is told here in the plainest way: the whole UNet runs at every call, and between whole calls what enters its last up
block is put back to what entered it then.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import FirstBlockCacheConfig
from diffusers.callbacks import SD3CFGCutoffCallback, SDCFGCutoffCallback, SDXLCFGCutoffCallback

from flow_parity import FlowStudio
from parity import Studio
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS, Inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from farm.jobs import Unit
    from worker.pipelines.base import Pipeline
    from worker.seat import Rendered

_CUTOFFS: Final = {
    "StableDiffusionPipeline": (SDCFGCutoffCallback, ["prompt_embeds"]),
    "StableDiffusionXLPipeline": (SDXLCFGCutoffCallback, ["prompt_embeds", "add_text_embeds", "add_time_ids"]),
    "StableDiffusion3Pipeline": (SD3CFGCutoffCallback, ["prompt_embeds", "pooled_prompt_embeds"]),
}
"""What ends guidance in diffusers, and the tensors that it changes."""


class AcceleratedStudio(Studio):
    """Whose references give up what the unit gives up."""

    def arguments_for(self, unit: Unit, inputs: Inputs) -> Mapping[str, Any]:
        """Add the callback that ends guidance; after which call depends on how many the scheduler makes."""
        arguments = super().arguments_for(unit, inputs)
        if unit.acceleration.guidance_end == 1:
            return arguments
        callback, names = _CUTOFFS[type(self.reference).__name__]

        def cut(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            guided = math.floor(Fraction(str(unit.acceleration.guidance_end)) * pipeline.num_timesteps)
            if step + 1 != guided:
                return tensors
            ending = callback(cutoff_step_ratio=None, cutoff_step_index=step)
            changed: dict[str, Any] = ending.callback_fn(pipeline, step, timestep, tensors)
            return changed

        return {**arguments, "callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": names}

    def by_diffusers(self, unit: Unit, inputs: Inputs = NO_INPUTS) -> torch.Tensor:
        """Render `unit` with the caches that it asks for, empty at first: the denoiser is ours as well."""
        acceleration = unit.acceleration
        if acceleration.first_block_cache:
            transformer = self.reference.transformer
            transformer.enable_cache(FirstBlockCacheConfig(threshold=acceleration.first_block_cache))
            try:
                return super().by_diffusers(unit, inputs)
            finally:
                transformer.disable_cache()
        if acceleration.deep_cache_interval > 1:
            with _deep_feature_kept(self.reference.unet, acceleration.deep_cache_interval):
                return super().by_diffusers(unit, inputs)
        return super().by_diffusers(unit, inputs)


class AcceleratedFlowStudio(AcceleratedStudio, FlowStudio):
    """The same for a flow model."""


@contextmanager
def _deep_feature_kept(unet: Any, interval: int) -> Iterator[None]:
    kept: list[torch.Tensor] = []
    calls = 0

    def put_back(_block: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal calls
        if calls % interval == 0:
            kept[:] = [kwargs["hidden_states"]]
        calls += 1
        rows = len(kwargs["hidden_states"])  # the prompt's alone, when guidance has ended
        return args, {**kwargs, "hidden_states": kept[0][-rows:]}

    hook = unet.up_blocks[-1].register_forward_pre_hook(put_back, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def render_together(pipeline: Pipeline, units: Sequence[Unit]) -> list[Rendered]:
    """Render `units` in one lane, all from the same step on; return what came of them, in order."""
    engine = Engine(lambda _: pipeline, max_batch=len(units))
    futures = [engine.submit(unit) for unit in units]
    with torch.inference_mode():
        while not all(future.done() for future in futures):
            engine._pass(engine._next_lane())  # type: ignore[arg-type]  # nobody closes it
    return [future.result() for future in futures]


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Collect the number of rows of each call of `module` while the context is open."""
    rows: list[int] = []

    def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        rows.append(len(first))

    hook = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()
