"""What the card itself can do: large matrix products in each precision, and copies. No model comes near these numbers.

A share of a ceiling is told of what was measured here, in the same run, never of a data sheet. A result above it is a
mistake in the benchmark.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from worker.forward.forward import fp16_accumulation
from worker.gpu import synchronise

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager

    Clock = Callable[[], float]

SIZES: Final = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048)}
"""Sides of the matrices that are tried; the best counts."""
_TERA: Final = 1e12
_GIGA: Final = 1e9
_ROUNDS: Final = 3
_ROUND_S: Final = {"cuda": 0.5, "cpu": 0.3}
_COPY_BYTES: Final = {"cuda": 2**30, "cpu": 2**27}
_FP8_CAPABILITY: Final = (8, 9)
FP16_ACCUMULATION: Final = "fp16 added up in fp16"
FP8: Final = "fp8"
INT8: Final = "int8"
"""Names of the faster ways to compute a product."""
_NAMES: Final = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class AboveCeilingError(Exception):
    """A rate that the card cannot have: the benchmark is wrong, and says so instead of writing the number."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """TFLOP/s of matrix products by precision, and GB/s of copies within the device (read and written bytes)."""

    tflops: Mapping[str, float]
    copy_gb_per_s: float

    def of(self, dtype: torch.dtype, *, also: Collection[str] = ()) -> float:
        """Return the TFLOP/s that products of `dtype` can reach, where some are computed in faster ways: `also`."""
        return max(self.tflops.get(name, 0.0) for name in (_NAMES[dtype], *also))

    def share(self, tflops: float, dtype: torch.dtype, *, also: Collection[str] = ()) -> float:
        """Return which share of that ceiling a rate is. Raises AboveCeilingError."""
        ceiling = self.of(dtype, also=also)
        if tflops > ceiling:
            words = " or ".join((_NAMES[dtype], *also))
            raise AboveCeilingError(
                f"{tflops:.4g} TFLOP/s are more than the {ceiling:.4g} that products in {words} reach on this device:"
                " the benchmark is wrong, nothing is written"
            )
        return tflops / ceiling


def measure_ceilings(
    device: torch.device, *, tell: Callable[[str], None] = lambda _words: None, clock: Clock = time.perf_counter
) -> Ceilings:
    """Measure all that this device supports; some ten seconds."""
    found = {}
    for name, product in products_of(device).items():
        rates, reason = [], ""
        for size in SIZES[device.type]:
            try:
                with product.within():
                    rates.append(best_rate(product.make(size), 2 * size**3, device, clock) / _TERA)
            except RuntimeError as error:  # too large for its memory, or a kind of product that it does not have
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                break
        if rates:
            found[name] = max(rates)
        tell(f"{name}: {found[name]:.4g} TFLOP/s" if rates else f"{name}: none here ({reason})")
    copied = best_rate(_copy(device), 2 * _COPY_BYTES[device.type], device, clock) / _GIGA
    tell(f"copy: {copied:.4g} GB/s")
    return Ceilings(found, copied)


class Product(NamedTuple):
    """A product of two square matrices: `make` gives what computes it for a side, within the context `within`."""

    make: Callable[[int], Callable[[], object]]
    within: Callable[[], AbstractContextManager[None]] = nullcontext


def products_of(device: torch.device) -> dict[str, Product]:
    """Return the products that `device` can compute, by the name of their precision."""
    if device.type == "cpu":
        return {"fp32": Product(_plain(device, torch.float32))}
    found = {name: Product(_plain(device, dtype)) for dtype, name in _NAMES.items()}
    found[FP16_ACCUMULATION] = Product(_plain(device, torch.float16), fp16_accumulation)
    if torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY:
        found[FP8] = Product(_fp8(device))
    found[INT8] = Product(_int8(device))
    return found


def _plain(device: torch.device, dtype: torch.dtype) -> Callable[[int], Callable[[], object]]:
    def make(size: int) -> Callable[[], object]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    return make


def _fp8(device: torch.device) -> Callable[[int], Callable[[], object]]:
    def make(size: int) -> Callable[[], object]:
        a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=device)
        # The second matrix must lie by columns.
        return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: SLF001

    return make


def _int8(device: torch.device) -> Callable[[int], Callable[[], object]]:
    def make(size: int) -> Callable[[], object]:
        a, b = (torch.randint(-8, 8, (size, size), device=device, dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(a, b.t())  # noqa: SLF001

    return make


def _copy(device: torch.device) -> Callable[[], object]:
    source = torch.zeros(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def best_rate(work: Callable[[], object], amount: float, device: torch.device, clock: Clock) -> float:
    """Return how much of `amount`, which one call of `work` does, is done in a second, in the best of some rounds."""
    work()
    began = clock()
    work()
    synchronise(device)
    calls = max(1, round(_ROUND_S[device.type] / max(clock() - began, 1e-6)))
    best_s = float("inf")
    for _ in range(_ROUNDS):
        began = clock()
        for _ in range(calls):
            work()
        synchronise(device)
        best_s = min(best_s, clock() - began)
    return calls * amount / best_s
