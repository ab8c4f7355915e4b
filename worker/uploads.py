"""Tensors on their way to the device, without anybody waiting for them.

A plain copy from the host ends when it is done, hence after all that the device was told to do before: the engine's
thread would wait for its own forward before it draws noise and looks weights up for what follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor's numbers on `device`, in the order of what the device is told; what is there already is itself.

    The tensor may be changed or freed while it is copied: page-locked memory, of which torch keeps blocks until the
    device has read them, holds its numbers.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def upload_numbers(numbers: Sequence[float] | NDArray[np.floating], device: torch.device) -> torch.Tensor:
    """Return numbers as a float32 tensor on `device`, of their shape."""
    return upload(torch.as_tensor(numbers, dtype=torch.float32), device)
