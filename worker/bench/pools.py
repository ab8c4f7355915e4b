"""torch's pools of CPU threads, and how a measurement on a CPU is kept from slowing the next one down.

OpenMP (in torch's wheels GNU's libgomp) keeps a pool for every thread that computes in parallel, as long as that
thread lives. A pool that is alone spins until its next operation; as soon as there are more threads in pools than
cores, all of them sleep between operations. On two cores an engine beside the pool of a main thread that did nothing
any more made 2.8 to 3.1 images/s, where it makes 3.8 to 4.4 by itself.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

T = TypeVar("T")


def leaving_no_pool(device: torch.device, work: Callable[[], T]) -> T:
    """Call `work`; on a CPU in a thread that ends with it, and its pool too. Returns or raises what it does."""
    if device.type != "cpu":  # there pools do not matter, and CUDA graphs of compiled models belong to the main thread
        return work()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()
