"""A module under torch.compile: when that pays, in which pieces, and what happens when it cannot be.

A UNet is compiled as a whole, for its convolutions lie between its repeated blocks; a Flux transformer block by block,
which takes a sixth of the time for the same speed. Whole modules get one compilation for each size and length of text,
for any number of rows; blocks get what torch finds out by itself.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import UNet2DConditionModel

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from worker.forward.bundle import Bundle

log: Final = logging.getLogger(__name__)

COMPILE_AFTER: Final = 100
"""Forwards of a key before it is compiled: five images' worth. What is asked for once never waits for a compiler."""
_MAX_COMPILATIONS: Final = 64
"""Of one module, before torch gives up on it; 8 by default, which five sizes with two lengths of text exceed."""


def keep_compilations_in(folder: Path) -> None:
    """Have torch keep what it compiles in `folder`, where it survives restarts; a folder that is set already stays."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.fspath(folder))


class Compiled:
    """Runs one module compiled. Broken once it is broken for good: `is_due` says never again."""

    def __init__(
        self, module: Any, *, backend: str | Callable[..., Any] = "inductor", after: int = COMPILE_AFTER
    ) -> None:
        """Prepare to compile `module` after so many forwards of a key; nothing is compiled yet."""
        self._module = module
        self._backend = backend
        self._after = after
        self._calls: Counter[Hashable] = Counter()
        self._run: Callable[..., Any] | None = None
        self._is_broken = False
        self._name = type(module).__name__
        # Between the repeated blocks of a UNet lie its convolutions, which would stay as they are.
        self.is_regional = bool(getattr(module, "_repeated_blocks", None)) and not isinstance(
            module, UNet2DConditionModel
        )

    def is_due(self, key: Hashable) -> bool:
        """Count one forward of `key`, and return whether it is to run compiled."""
        if self._is_broken:
            return False
        self._calls[key] += 1
        if self._calls[key] == self._after + 1:
            words = "compiling %s for a size that is in demand: a minute or more, once"
            log.info(words, self._name, extra={"action": "compile_started"})
        return self._calls[key] > self._after

    def eagerly(self) -> AbstractContextManager[Any]:
        """Return the context in which the module itself runs as if nothing had been compiled."""
        if self.is_regional and self._run is not None:
            stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
            return stance
        return nullcontext()

    def __call__(self, bundle: Bundle) -> Any:
        """Return what the module makes of `bundle`.

        When compiling fails it is logged, once, and this and all later calls run as they are.
        """
        if not self.is_regional:
            _mark_rows(bundle)
        try:
            if self._run is None:
                self._run = self._compile()
            return self._run(**bundle.inputs)
        except torch.OutOfMemoryError:
            raise
        # Whatever a compiler may raise: it is a program of many parts, with libraries and other programs among them.
        except Exception as error:  # noqa: BLE001
            with torch.compiler.set_stance("force_eager"):
                output = self._module(**bundle.inputs)  # raises when the inputs were to blame
            self._is_broken = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            log.warning("%s runs uncompiled: %s", self._name, reason, extra={"action": "compile_failed"})
            return output

    def _compile(self) -> Callable[..., Any]:
        options: dict[str, Any] = {
            "fullgraph": True,
            "backend": self._backend,
            "recompile_limit": _MAX_COMPILATIONS,
        }
        run: Callable[..., Any]
        if self.is_regional:
            # Not isolated: blocks of a class share what is compiled for the first of them.
            self._module.compile_repeated_blocks(**options)
            run = self._module
        else:
            # Isolated: diffusers wraps the forwards of all models in one function, by which torch counts otherwise.
            # Not dynamic, but for the rows that are marked.
            options |= {"dynamic": False, "isolate_recompiles": True}
            run = torch.compile(self._module, **options)
        return run


def _mark_rows(bundle: Bundle) -> None:
    """Tell torch that the number of rows changes from call to call; that of one row it takes as a constant anyway."""
    for leaf in bundle.leaves:
        if leaf.is_batched and bundle.num_rows > 1:
            torch._dynamo.maybe_mark_dynamic(leaf.tensor, 0)  # noqa: SLF001  the documented name
