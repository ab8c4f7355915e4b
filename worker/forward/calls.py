"""The attention of one forward by itself: what it was asked for, noted once, and computed again by any kernel.

A network spends a fifth to a third of its time there, so that kernels are compared in less time than by whole forwards,
and the launches of the rest do not hide what differs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.forward.layers import Kernel


class _Call(NamedTuple):
    """One attention: sizes of queries and of keys and values, [rows, heads, tokens, width] each."""

    queries: torch.Size
    keys: torch.Size
    dtype: torch.dtype
    device: torch.device


class _Listener(TorchFunctionMode):
    """Notes every attention that is computed while it is the current mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)][:2]
            self.calls.append(_Call(query.shape, key.shape, query.dtype, query.device))
        return func(*args, **kwargs)


class AttentionCalls:
    """The attention of a forward, on random numbers."""

    def __init__(self, calls: list[_Call]) -> None:
        self.calls = calls
        # As projections leave them in memory: the heads of a token side by side. Layers of a size share their numbers.
        self._tensors = {call: (_random(call, call.queries), _random(call, call.keys)) for call in calls}

    @classmethod
    def of(cls, forward: Callable[[], object]) -> Self:
        """Return the attention that one run of `forward` computes, by torch's own function."""
        with _Listener() as listener:
            forward()
        return cls(listener.calls)

    def run(self, kernel: Kernel) -> None:
        """Compute all of it by `kernel`."""
        order = [getattr(SDPBackend, name) for name in kernel.order]
        with sdpa_kernel(order, set_priority=True) if order else nullcontext():
            for call in self.calls:
                queries, keys = self._tensors[call]
                if kernel.backend:
                    dispatch_attention_fn(queries, keys, keys, backend=AttentionBackendName(kernel.backend))
                else:
                    heads_first = keys.transpose(1, 2)
                    scaled_dot_product_attention(queries.transpose(1, 2), heads_first, heads_first)


def _random(call: _Call, size: torch.Size) -> torch.Tensor:
    rows, heads, tokens, width = size
    return torch.randn(rows, tokens, heads, width, dtype=call.dtype, device=call.device)
