"""How many bytes a forward pass holds at most beside its weights, found without running it.

On the meta device every operation knows the sizes of its results and allocates nothing; watching which results are
still referenced after each operation gives the peak. Attention counts as the fused kernels do it: its output, never
the matrix of scores. Not seen: what kernels take as workspace, and what the allocator loses to fragments.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator


class LiveMemory(TorchDispatchMode):
    """While entered, follows the storages that operations make; `peak_bytes` is the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages of its results that its inputs did not bring."""
        kwargs = kwargs or {}
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        results = func(*args, **kwargs)
        for leaf in tree_leaves(results):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._add(storage)
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = id(storage), storage.nbytes()
        self._known.add(key)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._drop, key, num_bytes)

    def _drop(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live_bytes -= num_bytes


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,  # noqa: ARG001  callers name it
    value: torch.Tensor,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """Return an output of the shape that attention has."""
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@contextmanager
def live_memory() -> Iterator[LiveMemory]:
    """Follow what lives, with attention fused and gradients off."""
    fused = mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _fused_attention)
    with fused, torch.no_grad(), LiveMemory() as live:
        yield live
