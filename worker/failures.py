"""What a failure is: caught without keeping the failed forward alive, told from a lost device, put into words."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import torch

from farm.errors import FarmError, Fatal, RenderFailed, Transient

if TYPE_CHECKING:
    from collections.abc import Callable

log: Final = logging.getLogger(__name__)


def failure_of(work: Callable[[], object]) -> Exception | None:
    """Do `work` and return what it raised, None when all went well. A lost device is not returned but raised."""
    try:
        work()
    except torch.AcceleratorError:
        raise
    except Exception as error:  # the engine outlives whatever a model, a driver or a unit does
        if not isinstance(error, FarmError):
            log.debug("caught by the engine", exc_info=True)
        # The traceback would keep the failed forward's activations in memory while we try again.
        return error.with_traceback(None)
    return None


def is_out_of_memory(error: Exception | None) -> bool:
    """Return whether a smaller batch, or an emptier device, might do what failed."""
    # The CPU's allocator has no class of its own for this.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def as_ours(error: Exception) -> Exception:
    """Return `error` as one of the farm's, whose branch says what becomes of the unit."""
    if isinstance(error, (Fatal, Transient)):
        return error
    return RenderFailed(str(error) if isinstance(error, FarmError) else f"{type(error).__name__}: {error}")
