"""Tensors on their way from the device, as few waits as may be: the counterpart of worker/uploads.py.

A plain copy to the host waits for all that the device was told to do before, and goes through memory that the driver
may not touch directly. Here all that belongs together is on its way before anybody waits, and is waited for once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np


class Download:
    """Copies of some tensors, begun when this is made."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        """Begin to copy `tensors`, as they are when the device gets there; a CPU's are not copied."""
        self._event: torch.cuda.Event | None = None
        self._copies = tensors
        if all(tensor.device.type != "cuda" for tensor in tensors):
            return
        # Page-locked blocks, which torch keeps and reuses when the last array over them has gone.
        self._copies = tuple(torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors)
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    @property
    def is_here(self) -> bool:
        """Whether `wait` would return at once."""
        return self._event is None or self._event.query()

    def wait(self) -> tuple[np.ndarray, ...]:
        """Return the numbers, in the order of the tensors, when all of them have come."""
        if self._event is not None:
            self._event.synchronize()
        return tuple(copy.numpy() for copy in self._copies)
