"""Numbers that leave the device."""

from __future__ import annotations

import numpy as np
import torch

from worker.downloads import Download


def test_a_cpus_numbers_are_here_at_once_and_uncopied():
    """On a CPU nothing is on its way: all tensors come as they are, whatever their type and shape."""
    picture, flag = torch.randint(0, 255, (4, 3, 3), dtype=torch.uint8), torch.tensor([1.0, torch.inf]).isfinite().all()
    download = Download(picture, flag)
    assert download.is_here
    pixels, is_finite = download.wait()
    assert np.shares_memory(pixels, picture.numpy())
    assert pixels.shape == (4, 3, 3)
    assert not is_finite
