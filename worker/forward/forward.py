"""One denoiser's forward: given tensors, it picks the fastest way that it has for their shapes, and computes.

`exact` forwards, those of invariant lanes, are computed as if there were no optimisations at all, but for recordings,
which launch the same kernels: their bytes must not depend on what was measured on a card, on what a compiler made of it
or on how a worker is set. Used by the engine's thread alone.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from worker.forward.bundle import Bundle
from worker.forward.layers import PLAIN, AttentionLayers, Look

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from worker.forward.attention import AttentionChoice
    from worker.forward.compiled import Compiled
    from worker.forward.graphs import Graphs


class Forward:
    """A module's forward: the same keyword arguments, and the first of the tuple that it returns."""

    def __init__(
        self,
        module: Any,
        *,
        unbatched: Collection[str] = (),
        layers: AttentionLayers | None = None,
        graphs: Graphs | None = None,
        compiled: Compiled | None = None,
        choice: AttentionChoice | None = None,
        accumulates_in_fp16: bool = False,
        optimisations: tuple[str, ...] = (),
        approximations: tuple[str, ...] = (),
    ) -> None:
        """Compute `module`, whose arguments have rows but for `unbatched`; with nothing else given, as it is."""
        self.module = module
        self.optimisations = optimisations
        """What is in use, by the names of FARM_OPTIMISE."""
        self.approximations = approximations
        """What forwards that are not exact change in pictures beyond rounding, for their recipes."""
        self._unbatched = frozenset(unbatched)
        self._layers = layers
        self._graphs = graphs
        self._compiled = compiled
        self._choice = choice
        self._accumulates_in_fp16 = accumulates_in_fp16
        self._has_hooks = False
        self._is_plain = layers is None and graphs is None and compiled is None and not accumulates_in_fp16

    def __call__(self, *, exact: bool, **inputs: Any) -> torch.Tensor:
        """Return the module's output for `inputs`, a tensor of its own, whose rows are theirs."""
        inputs = {**inputs, "return_dict": False}
        if self._is_plain:
            output: torch.Tensor = self.module(**inputs)[0]
            return output
        bundle = Bundle.of(inputs, self._unbatched)
        is_compiled = not exact and not self._has_hooks and self._is_due(bundle)
        look = PLAIN if exact else self._look(bundle)
        compute = partial(self._compute, look=look, is_compiled=is_compiled, exact=exact)
        if self._graphs is None:
            return compute(bundle)
        try:
            return self._graphs.run(self, (look, is_compiled, exact), compute, bundle, is_padded=not exact)
        except torch.OutOfMemoryError:
            if not self._graphs.give_up():
                raise
        return compute(bundle)

    @contextmanager
    def directly(self, *, exact: bool) -> Iterator[None]:
        """Let the module's own parts be called while the context is open: exact as they came, else as fast as may be.

        For forwards that skip some of them, which can neither be recorded nor compiled as a whole.
        """
        with ExitStack() as how:
            if self._layers is not None:
                how.enter_context(self._layers.using(PLAIN if exact else Look(is_fused=self._layers.has_fused)))
            if self._accumulates_in_fp16 and not exact:
                how.enter_context(fp16_accumulation())
            if self._compiled is not None and (exact or self._has_hooks):
                how.enter_context(self._compiled.eagerly())
            yield

    def have_hooks(self, *, has_hooks: bool) -> None:
        """Say whether layers have hooks that compute: torch.compile would not see those that come or go later."""
        if has_hooks or self._has_hooks:
            self.forget()
        self._has_hooks = has_hooks

    def forget(self) -> None:
        """Drop what was recorded: layers or weights have been replaced, and not patched in place."""
        if self._graphs is not None:
            self._graphs.forget(self)

    def give_up_memory(self) -> bool:
        """Drop what can be made again because memory ran out elsewhere; return whether there was anything."""
        return self._graphs is not None and self._graphs.give_up()

    def _is_due(self, bundle: Bundle) -> bool:
        return self._compiled is not None and self._compiled.is_due(bundle.key)

    def _look(self, bundle: Bundle) -> Look:
        """Return how forwards like `bundle` are computed; the first time on a card that takes a moment."""
        look = Look(is_fused=self._layers is not None and self._layers.has_fused)
        if self._choice is None:
            return look

        def forward() -> torch.Tensor:
            return self._compute(bundle, look=look, is_compiled=False, exact=False)

        return look._replace(kernel=self._choice.kernel(_shape_of(bundle), forward))

    def _compute(self, bundle: Bundle, *, look: Look, is_compiled: bool, exact: bool) -> torch.Tensor:
        with ExitStack() as how:
            if self._layers is not None:
                how.enter_context(self._layers.using(look))
            if self._accumulates_in_fp16 and not exact:
                how.enter_context(fp16_accumulation())
            outputs: tuple[torch.Tensor, ...]
            if is_compiled and self._compiled is not None:
                outputs = self._compiled(bundle)
            else:
                if self._compiled is not None:
                    how.enter_context(self._compiled.eagerly())
                outputs = self.module(**bundle.inputs)
            return outputs[0]


def _shape_of(bundle: Bundle) -> str:
    """Return a name for the sizes of a forward, with its rows to the next power of four: kernels change no sooner."""
    rows = 4 ** (((bundle.num_rows - 1).bit_length() + 1) // 2)
    sizes = ",".join("x".join(map(str, leaf.tensor.shape[1:])) for leaf in bundle.leaves if leaf.is_batched)
    return f"{rows}:{sizes}"


@contextmanager
def fp16_accumulation() -> Iterator[None]:
    """Have products of fp16 matrices add up in fp16 while the context is open."""
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_fp16_accumulation = before
