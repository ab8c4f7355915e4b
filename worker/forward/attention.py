"""Which attention kernel a denoiser uses at which size: measured on the card at hand, in about a second, and kept.

Candidates differ by the rounding of their precision and no more, but for those that are marked lossy. What was chosen
is kept under card, network and shape, so that it is measured once for all workers of this machine.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from diffusers.models import attention_dispatch

from worker.forward.calls import AttentionCalls
from worker.forward.layers import DEFAULT, XFORMERS, AttentionLayers, Kernel
from worker.tuning.store import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

log: Final = logging.getLogger(__name__)

_MARGIN: Final = 0.02
"""A kernel must be faster by this share than torch's own choice: less is noise."""
_BUDGET_S: Final = 1.0
_MAX_ROUNDS: Final = 7
_ORDERS: Final = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")
_LIBRARIES: Final = ("flash", "_flash_3", XFORMERS)
_SAGE: Final = "sage"


class Store(Protocol):
    """Where measurements are kept; worker/tuning has one that survives restarts."""

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return what was put under `key`."""

    def put(self, key: str, value: Mapping[str, Any], *, rounds: int = 1) -> None:
        """Keep `value`, measured in so many rounds."""


def kernels_for(layers: AttentionLayers, *, on_card: bool, allow_lossy: bool) -> tuple[Kernel, ...]:
    """Return the kernels that may be chosen for `layers`: torch's own choice first, then what is installed."""
    if not on_card:
        return (DEFAULT,)
    orders = [
        Kernel(first.removesuffix("_ATTENTION").lower(), (first, *(o for o in _ORDERS if o != first), "MATH"))
        for first in _ORDERS
    ]
    libraries = _LIBRARIES if layers.is_dispatched else (XFORMERS,)
    found = [Kernel(f"library {name}", backend=name) for name in libraries if _is_installed(name)]
    if allow_lossy and layers.is_dispatched and _is_installed(_SAGE):
        found.append(Kernel(_SAGE, backend=_SAGE, is_lossy=True))
    return (DEFAULT, *orders, *found)


def _is_installed(backend: str) -> bool:
    if backend == XFORMERS and importlib.util.find_spec(XFORMERS) is None:
        return False
    try:
        name = attention_dispatch.AttentionBackendName(backend)
        attention_dispatch._check_attention_backend_requirements(name)  # noqa: SLF001  else it fails in a forward
    except (RuntimeError, ValueError):
        return False
    return True


class AttentionChoice:
    """Chooses among `kernels` for one network, shape by shape."""

    def __init__(
        self, kernels: Sequence[Kernel], *, network: str, store: Store, timer: Callable[[Callable[[], object]], float]
    ) -> None:
        """Choose for `network`, a name that stands for its class and dimensions."""
        self._kernels = {kernel.name: kernel for kernel in kernels}
        self._network = network
        self._store = store
        self._timer = timer
        self._chosen: dict[Hashable, Kernel] = {}

    def kernel(self, shape: str, forward: Callable[[], object]) -> Kernel:
        """Return the kernel for forwards of `shape`; should it be measured, `forward` makes one by torch's own."""
        if shape not in self._chosen:
            self._chosen[shape] = self._remembered(shape) or self._measure(shape, AttentionCalls.of(forward).run)
        return self._chosen[shape]

    def _key(self, shape: str) -> str:
        # With what could have been chosen: a library that is installed later is a reason to measure again.
        return key_of("attention", network=self._network, shape=shape, kernels="+".join(self._kernels))

    def _remembered(self, shape: str) -> Kernel | None:
        entry = self._store.get(self._key(shape))
        return None if entry is None else self._kernels.get(str(entry.get("kernel")))

    def _measure(self, shape: str, run: Callable[[Kernel], object]) -> Kernel:
        times_ms: dict[str, float] = {}
        rounds = _MAX_ROUNDS
        for kernel in self._kernels.values():
            work = partial(run, kernel)
            try:
                work()  # the first time is not like the others
                first_ms = self._timer(work)
                if kernel is DEFAULT:
                    rounds = max(1, min(_MAX_ROUNDS, int(_BUDGET_S * 1e3 / (first_ms * len(self._kernels)))))
                more = [self._timer(work) for _ in range(rounds - 1)]
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if kernel is DEFAULT:
                    raise
                words = "attention kernel %s cannot do %s: %s"
                log.info(words, kernel.name, shape, error, extra={"action": "attention_refused"})
                continue
            times_ms[kernel.name] = median([first_ms, *more])
        chosen = _best(times_ms)
        self._store.put(self._key(shape), {"kernel": chosen, "times_ms": times_ms}, rounds=rounds)
        log.info(
            "attention of %s by %s: %s",
            shape,
            chosen,
            ", ".join(f"{name} {ms:.2f} ms" for name, ms in times_ms.items()),
            extra={"action": "attention_measured"},
        )
        return self._kernels[chosen]


def _best(times_ms: Mapping[str, float]) -> str:
    fastest = min(times_ms, key=lambda name: times_ms[name])
    return fastest if times_ms[fastest] < times_ms[DEFAULT.name] * (1 - _MARGIN) else DEFAULT.name


def timer_for(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Return a timer for work on `device`: by its events on a card, by the clock on a CPU."""

    def by_events(work: Callable[[], object]) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        work()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))

    def by_clock(work: Callable[[], object]) -> float:
        began_s = time.perf_counter()
        work()
        return (time.perf_counter() - began_s) * 1e3

    return by_events if device.type == "cuda" else by_clock
