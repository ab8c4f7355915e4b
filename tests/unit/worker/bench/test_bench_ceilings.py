"""Ceilings: what is measured, which one counts, and that nothing above it passes."""

import pytest
import torch

from worker.bench.ceilings import (
    FP8,
    FP16_ACCUMULATION,
    INT8,
    AboveCeilingError,
    Ceilings,
    Product,
    best_rate,
    measure_ceilings,
    products_of,
)

CPU = torch.device("cpu")
CARD = Ceilings({"fp16": 165.0, "bf16": 160.0, "fp32": 80.0, FP16_ACCUMULATION: 320.0, FP8: 330.0}, 900.0)


def test_a_rate_above_the_ceiling_is_refused():
    """No card does more than its own products: such a number names its mistake instead of being told."""
    assert CARD.share(82.5, torch.float16) == pytest.approx(0.5)
    with pytest.raises(AboveCeilingError, match=r"200 TFLOP/s are more than the 165 that products in fp16 reach"):
        CARD.share(200.0, torch.float16)


def test_faster_ways_to_compute_have_higher_ceilings():
    """Sums in 16 bits and products in 8 are held against their own rate; ways that were not measured raise nothing."""
    assert CARD.share(160.0, torch.float16, also=[FP16_ACCUMULATION]) == pytest.approx(0.5)
    assert CARD.share(165.0, torch.bfloat16, also=[FP8]) == pytest.approx(0.5)
    assert CARD.of(torch.bfloat16, also=[INT8]) == CARD.of(torch.bfloat16) == 160.0
    with pytest.raises(AboveCeilingError, match="products in fp16 or fp16 added up in fp16"):
        CARD.share(400.0, torch.float16, also=[FP16_ACCUMULATION])


def test_the_best_round_counts():
    """A round that something disturbed does not lower the ceiling."""
    now = 0.0
    calls = []

    def work():
        nonlocal now
        calls.append(None)
        # Two calls to warm up and to see how many make a round of 0.3 s: three. The second round is undisturbed.
        now += 0.1 if len(calls) <= 2 or 6 <= len(calls) <= 8 else 0.2

    assert best_rate(work, 5.0, CPU, lambda: now) == pytest.approx(50.0)
    assert len(calls) == 2 + 3 * 3


def test_a_cpu_has_a_ceiling_of_its_own_precision(monkeypatch):
    """On a CPU everything is float32; copies are told in bytes read and written."""
    monkeypatch.setattr("worker.bench.ceilings.SIZES", {"cpu": (64,)})
    monkeypatch.setattr("worker.bench.ceilings._ROUND_S", {"cpu": 0.001})
    told = []
    found = measure_ceilings(CPU, tell=told.append)
    assert list(found.tflops) == ["fp32"] == list(products_of(CPU))
    assert found.tflops["fp32"] > 0
    assert found.copy_gb_per_s > 0
    assert len(told) == 2


def test_a_product_that_a_card_does_not_have_is_left_out(monkeypatch):
    """Sizes that are too large, and precisions that are too new, cost their own number alone; the reason is told."""

    def make(size):
        if size > 32:
            raise torch.OutOfMemoryError("too large")
        return lambda: None

    def lacking(_size):
        raise RuntimeError("needs compute capability 8.9")

    monkeypatch.setattr("worker.bench.ceilings.SIZES", {"cpu": (32, 64)})
    monkeypatch.setattr("worker.bench.ceilings._ROUND_S", {"cpu": 0.001})
    products = {"fp32": Product(make), "fp8": Product(lacking)}
    monkeypatch.setattr("worker.bench.ceilings.products_of", lambda _: products)
    told = []
    assert list(measure_ceilings(CPU, tell=told.append).tflops) == ["fp32"]
    assert told[1] == "fp8: none here (RuntimeError: needs compute capability 8.9)"
