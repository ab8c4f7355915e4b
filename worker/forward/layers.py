"""The attention layers of a denoiser: which kernel computes them, and whether projections of one input are one product.

diffusers' own `fuse_qkv_projections` copies weights, so that a LoRA patched into the originals would be lost; its fused
processor for SD 3 leaves out the norms of SD 3.5's queries and keys. Here fused and single projections share their
memory, and SD 3 stays as it is. Layers change only when what they are told changes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    XFormersAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

XFORMERS: Final = "xformers"


class Kernel(NamedTuple):
    """A way to compute attention: torch's own with its implementations in an order of preference, or a library's."""

    name: str
    order: tuple[str, ...] = ()  # of torch.nn.attention.SDPBackend; () leaves it to torch
    backend: str = ""  # diffusers' name of a library's kernel; "" is torch's own
    is_lossy: bool = False


DEFAULT: Final = Kernel("default")


class Look(NamedTuple):
    """How a module computes the same thing, to the last bits of its precision."""

    is_fused: bool = False
    kernel: Kernel = DEFAULT


PLAIN: Final = Look()


class AttentionLayers:
    """The attention layers of one module."""

    def __init__(self, module: nn.Module) -> None:
        self._dispatched = [layer for layer in module.modules() if isinstance(layer, FluxAttention)]
        self._classic = {
            layer: layer.processor
            for layer in module.modules()
            # Not those of SD 3, nor any with a processor of its own.
            if isinstance(layer, Attention) and type(layer.processor) is AttnProcessor2_0
        }
        self._fused = FusedAttnProcessor2_0()
        self._xformers: XFormersAttnProcessor | None = None
        self._look = PLAIN
        self.has_fused = False

    @property
    def is_dispatched(self) -> bool:
        """Whether diffusers' attention backends have a say: on a UNet they are ignored without a word."""
        return bool(self._dispatched)

    @property
    def can_fuse(self) -> bool:
        """Whether projections of one input can be made one product here."""
        return bool(self._dispatched or self._classic)

    def fuse(self) -> None:
        """Lay projections of one input together in memory, so that `using` may compute them as one product."""
        for layer in (*self._dispatched, *self._classic):
            if getattr(layer, "is_cross_attention", False):
                layer.to_kv = _joined([layer.to_k, layer.to_v])
            else:
                layer.to_qkv = _joined([layer.to_q, layer.to_k, layer.to_v])
            if getattr(layer, "add_q_proj", None) is not None:
                layer.to_added_qkv = _joined([layer.add_q_proj, layer.add_k_proj, layer.add_v_proj])
        self.has_fused = True

    @contextmanager
    def using(self, look: Look) -> Iterator[None]:
        """Have the layers compute as `look` says while the context is open."""
        look = look._replace(is_fused=look.is_fused and self.has_fused)
        if look != self._look:
            self._put_on(look)
            self._look = look
        if not look.kernel.order:
            yield
            return
        with sdpa_kernel([getattr(SDPBackend, name) for name in look.kernel.order], set_priority=True):
            yield

    def _put_on(self, look: Look) -> None:
        backend = look.kernel.backend
        for layer in self._dispatched:
            layer.fused_projections = look.is_fused
            layer.processor._attention_backend = AttentionBackendName(backend) if backend else None  # noqa: SLF001
        for layer, processor in self._classic.items():
            layer.set_processor(self._processor(look, processor))

    def _processor(self, look: Look, own: Any) -> Any:
        if look.kernel.backend == XFORMERS:
            self._xformers = self._xformers or XFormersAttnProcessor()
            return self._xformers
        return self._fused if look.is_fused else own


def _joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Return one linear layer that computes all of `layers`, whose weights become parts of its own."""
    rows = [layer.out_features for layer in layers]
    first = layers[0]
    whole = nn.Linear(
        first.in_features, sum(rows), bias=first.bias is not None, device="meta", dtype=first.weight.dtype
    )
    for name in ("weight",) if first.bias is None else ("weight", "bias"):
        together = torch.cat([getattr(layer, name).detach() for layer in layers])
        setattr(whole, name, nn.Parameter(together, requires_grad=False))
        for layer, part in zip(layers, together.split(rows), strict=True):
            setattr(layer, name, nn.Parameter(part, requires_grad=False))
    return whole.eval()
