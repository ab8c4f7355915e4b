"""Denoisers that compute in eight bits, by torchao: what a worker needs for it, and which of their layers do.

Weights are scaled row by row once, activations at every call. Whether a model is laid out so is for its plan to say;
weights that are widened before they compute are placement.py's and diffusers' business.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final

import torch

from farm.errors import ModelBroken
from farm.plans import DYNAMIC, Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_CAPABILITY: Final = {Precision.FP8_DYNAMIC: (8, 9), Precision.INT8_DYNAMIC: (8, 0)}
"""The first cards that multiply in it: Ada (RTX 40, L4) for fp8, Ampere (RTX 30, A100) for int8."""

_MULTIPLE: Final = 16
"""The kernels' sides are multiples of this."""


def check_precision(precision: Precision, capability: tuple[int, int]) -> None:
    """Raise ModelBroken, naming what is missing, unless this worker can make `precision` on a card of `capability`."""
    package = "torchao" if precision in DYNAMIC else "bitsandbytes" if precision is Precision.NF4 else None
    if package is not None and importlib.util.find_spec(package) is None:
        raise ModelBroken(f"precision {precision} needs {package}, which is not installed: pip install {package}")
    least = _LEAST_CAPABILITY.get(precision)
    if least is not None and capability < least:
        raise ModelBroken(
            f"precision {precision} needs a card of compute capability {least[0]}.{least[1]} or later, this one has "
            f"{capability[0]}.{capability[1]}"
        )


def compute_in(precision: Precision, module: torch.nn.Module, blocks: Sequence[str], device: torch.device) -> None:
    """Let the linear layers in these children of `module` compute in `precision`, layer by layer on `device`.

    The layers that say how the step and the text modulate a block stay as they are: they see one row for each image,
    for which the kernels of int8 are not made, and their work is small.
    """
    from torchao.quantization import quantize_  # noqa: PLC0415  is installed where a plan asks for it

    def is_meant(layer: torch.nn.Module, name: str) -> bool:
        return (
            isinstance(layer, torch.nn.Linear)
            and name.startswith(tuple(f"{block}." for block in blocks))
            and not any("norm" in part or "time_emb" in part for part in name.split("."))
            and not layer.in_features % _MULTIPLE
            and not layer.out_features % _MULTIPLE
        )

    quantize_(module, _config_of(precision), filter_fn=is_meant, device=device)


def _config_of(precision: Precision) -> Any:
    """Return torchao's configuration: a scale for each row of weights and of activations."""
    from torchao import quantization  # noqa: PLC0415  is installed where a plan asks for it

    if precision is Precision.INT8_DYNAMIC:
        return quantization.Int8DynamicActivationInt8WeightConfig()
    return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())
