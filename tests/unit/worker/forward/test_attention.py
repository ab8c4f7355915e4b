"""The choice of an attention kernel: measured once for a shape, kept, and never at the cost of a forward."""

from __future__ import annotations

import logging

import pytest
import torch

from tiny_networks import tiny_flux, tiny_unet
from worker.forward import attention
from worker.forward.attention import AttentionChoice, kernels_for
from worker.forward.layers import DEFAULT, AttentionLayers, Kernel
from worker.gpu import Device
from worker.tuning.store import Measured, Origin

FLASH, CUDNN = Kernel("flash", ("FLASH_ATTENTION",)), Kernel("cudnn", ("CUDNN_ATTENTION",))


class Card:
    """A device on which each kernel takes the time that it is said to take."""

    def __init__(self, **times_ms):
        self.times_ms = times_ms
        self.running = None
        self.runs = []

    def run(self, kernel):
        self.runs.append(kernel.name)
        self.running = kernel.name
        if self.times_ms[kernel.name] is None:
            raise RuntimeError("no available kernel")

    def timer(self, work):
        work()
        return self.times_ms[self.running]


def store_in(folder, card="cpu"):
    """Return a store of measurements in `folder`."""
    return Measured(folder, Origin.of(Device(torch.device("cpu"), card, None)))


def choice(card, store, *kernels):
    """Return a choice among torch's own and `kernels` on `card`."""
    return AttentionChoice((DEFAULT, *kernels), network="net", store=store, timer=card.timer)


def test_the_fastest_kernel_is_chosen(tmp_path):
    """Each shape has its own measurement, and its own winner."""
    card = Card(default=2.0, flash=1.0, cudnn=3.0)
    chooser = choice(card, store_in(tmp_path), FLASH, CUDNN)
    assert chooser.kernel("small", card.run) is FLASH
    card.times_ms["cudnn"] = 0.5
    assert chooser.kernel("large", card.run) is CUDNN
    assert chooser.kernel("small", card.run) is FLASH


def test_a_hair_is_no_reason_to_leave_torchs_own_choice(tmp_path):
    """Differences within the noise change nothing."""
    card = Card(default=2.0, flash=1.97)
    assert choice(card, store_in(tmp_path), FLASH).kernel("x", card.run) is DEFAULT


def test_what_was_measured_is_not_measured_again(tmp_path):
    """Neither by this worker nor by the next one on such a card."""
    card = Card(default=2.0, flash=1.0)
    choice(card, store_in(tmp_path), FLASH).kernel("x", card.run)
    num_runs = len(card.runs)
    assert choice(card, store_in(tmp_path), FLASH).kernel("x", card.run) is FLASH
    assert len(card.runs) == num_runs


@pytest.mark.parametrize("change", ["card", "kernels", "shape"])
def test_what_holds_for_one_card_shape_or_set_of_libraries_is_not_taken_for_another(tmp_path, change):
    """A library that is installed later is a reason to measure again."""
    card = Card(default=2.0, flash=1.0, cudnn=9.0)
    choice(card, store_in(tmp_path), FLASH).kernel("x", card.run)
    card.times_ms["flash"] = 4.0
    store = store_in(tmp_path, card="another" if change == "card" else "cpu")
    kernels = (FLASH, CUDNN) if change == "kernels" else (FLASH,)
    assert choice(card, store, *kernels).kernel("y" if change == "shape" else "x", card.run) is DEFAULT


def test_a_kernel_that_cannot_is_left_out(tmp_path, caplog):
    """It says so in a line, and the others are measured."""
    card = Card(default=2.0, flash=None, cudnn=1.0)
    with caplog.at_level(logging.INFO):
        assert choice(card, store_in(tmp_path), FLASH, CUDNN).kernel("x", card.run) is CUDNN
    assert [record.action for record in caplog.records] == ["attention_refused", "attention_measured"]


def test_a_forward_that_fails_by_torchs_own_kernel_fails(tmp_path):
    """Then it is not the kernel's doing, and nothing is kept of it."""
    card = Card(default=None, flash=1.0)
    store = store_in(tmp_path)
    with pytest.raises(RuntimeError, match="no available kernel"):
        choice(card, store, FLASH).kernel("x", card.run)
    card.times_ms["default"] = 0.5
    assert choice(card, store, FLASH).kernel("x", card.run) is DEFAULT


def test_long_forwards_are_measured_in_fewer_rounds(tmp_path):
    """The measurement takes a second or two, not a minute."""
    fast, slow = Card(default=5.0, flash=5.0), Card(default=900.0, flash=900.0)
    for card in (fast, slow):
        choice(card, store_in(tmp_path / str(id(card))), FLASH).kernel("x", card.run)
    assert len(slow.runs) == 4
    assert len(fast.runs) == 16


# -- which there are


def test_on_a_cpu_there_is_no_choice():
    """Nothing is measured there, and nothing changes."""
    assert kernels_for(AttentionLayers(tiny_flux()), on_card=False, allow_lossy=True) == (DEFAULT,)


def test_libraries_that_are_not_installed_are_no_candidates():
    """Torch's own kernels are there on every card."""
    kernels = kernels_for(AttentionLayers(tiny_flux()), on_card=True, allow_lossy=True)
    assert [kernel.name for kernel in kernels] == ["default", "cudnn", "flash", "efficient"]
    assert all(len(set(kernel.order)) == 4 for kernel in kernels[1:])


def test_a_unet_is_never_offered_what_it_would_ignore(monkeypatch):
    """Of the libraries only xformers has a processor for it; Flux's layers take any that is installed."""
    monkeypatch.setattr(attention, "_is_installed", lambda _backend: True)
    unet = kernels_for(AttentionLayers(tiny_unet()), on_card=True, allow_lossy=True)
    assert {kernel.backend for kernel in unet} == {"", "xformers"}
    flux = kernels_for(AttentionLayers(tiny_flux()), on_card=True, allow_lossy=True)
    assert {kernel.backend for kernel in flux} == {"", "flash", "_flash_3", "xformers", "sage"}


def test_attention_in_8_bits_has_to_be_allowed(monkeypatch):
    """It changes pictures beyond rounding."""
    monkeypatch.setattr(attention, "_is_installed", lambda _backend: True)
    kernels = kernels_for(AttentionLayers(tiny_flux()), on_card=True, allow_lossy=False)
    assert not any(kernel.is_lossy for kernel in kernels)
