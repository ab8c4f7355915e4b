"""The choice of an attention kernel: measured once for a shape, kept, and never at the cost of a forward."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tiny_networks import flux_inputs, tiny_flux, tiny_unet, unet_inputs
from worker.forward import attention
from worker.forward.attention import AttentionChoice, kernels_for
from worker.forward.calls import AttentionCalls
from worker.forward.layers import DEFAULT, AttentionLayers, Kernel
from worker.gpu import Device
from worker.tuning.store import Measured, Origin

FLASH, CUDNN = Kernel("flash", ("FLASH_ATTENTION",)), Kernel("cudnn", ("CUDNN_ATTENTION",))


class Card:
    """A device on which each kernel takes the time that it is said to take, in the place of AttentionCalls."""

    def __init__(self, **times_ms):
        self.times_ms = times_ms
        self.running = None
        self.runs = []

    def of(self, forward):
        forward()
        return self

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


@pytest.fixture
def choose(monkeypatch):
    """Return a function that chooses among torch's own and `kernels` on `card`, for a shape."""

    def choose(card, store, *kernels, shape="x"):
        monkeypatch.setattr(attention, "AttentionCalls", card)
        chooser = AttentionChoice((DEFAULT, *kernels), network="net", store=store, timer=card.timer)
        return chooser.kernel(shape, lambda: None)

    return choose


def test_the_fastest_kernel_is_chosen_for_each_shape(tmp_path, choose):
    """Each shape has its own measurement, and its own winner."""
    card, store = Card(default=2.0, flash=1.0, cudnn=3.0), store_in(tmp_path)
    assert choose(card, store, FLASH, CUDNN, shape="small") is FLASH
    card.times_ms["cudnn"] = 0.5
    assert choose(card, store, FLASH, CUDNN, shape="large") is CUDNN
    assert choose(card, store, FLASH, CUDNN, shape="small") is FLASH


def test_a_hair_is_no_reason_to_leave_torchs_own_choice(tmp_path, choose):
    """Differences within the noise change nothing."""
    assert choose(Card(default=2.0, flash=1.97), store_in(tmp_path), FLASH) is DEFAULT


def test_what_was_measured_is_not_measured_again(tmp_path, choose):
    """Neither by this worker nor by the next one on such a card."""
    card = Card(default=2.0, flash=1.0)
    choose(card, store_in(tmp_path), FLASH)
    num_runs = len(card.runs)
    assert choose(card, store_in(tmp_path), FLASH) is FLASH
    assert len(card.runs) == num_runs


@pytest.mark.parametrize("change", ["card", "kernels", "shape"])
def test_what_holds_for_one_card_shape_or_set_of_libraries_is_not_taken_for_another(tmp_path, choose, change):
    """A library that is installed later is a reason to measure again."""
    card = Card(default=2.0, flash=1.0, cudnn=9.0)
    choose(card, store_in(tmp_path), FLASH)
    card.times_ms["flash"] = 4.0
    store = store_in(tmp_path, card="another" if change == "card" else "cpu")
    kernels = (FLASH, CUDNN) if change == "kernels" else (FLASH,)
    assert choose(card, store, *kernels, shape="y" if change == "shape" else "x") is DEFAULT


def test_a_kernel_that_cannot_is_left_out(tmp_path, choose, caplog):
    """It says so in a line, and the others are measured."""
    card = Card(default=2.0, flash=None, cudnn=1.0)
    with caplog.at_level(logging.INFO):
        assert choose(card, store_in(tmp_path), FLASH, CUDNN) is CUDNN
    assert [record.action for record in caplog.records] == ["attention_refused", "attention_measured"]


def test_attention_that_fails_by_torchs_own_kernel_fails(tmp_path, choose):
    """Then it is not the kernel's doing, and nothing is kept of it."""
    card, store = Card(default=None, flash=1.0), store_in(tmp_path)
    with pytest.raises(RuntimeError, match="no available kernel"):
        choose(card, store, FLASH)
    card.times_ms["default"] = 0.5
    assert choose(card, store, FLASH) is DEFAULT


def test_long_attention_is_measured_in_fewer_rounds(tmp_path, choose):
    """The measurement takes a second or so, not a minute."""
    fast, slow = Card(default=5.0, flash=5.0), Card(default=900.0, flash=900.0)
    for name, card in (("fast", fast), ("slow", slow)):
        choose(card, store_in(tmp_path / name), FLASH)
    assert len(slow.runs) == 4
    assert len(fast.runs) == 16


# -- the attention of a forward


@pytest.mark.parametrize(("network", "inputs", "num_calls"), [(tiny_unet, unet_inputs, 8), (tiny_flux, flux_inputs, 4)])
def test_the_attention_of_a_forward_is_noted_and_computed_by_itself(network, inputs, num_calls):
    """As many times as the network has layers, at their sizes, by the kernel that is to be timed."""
    module = network()
    with torch.inference_mode():
        calls = AttentionCalls.of(lambda: module(**inputs(3)))
        noted = [(tuple(call.queries), tuple(call.keys)) for call in calls.calls]
        assert len(noted) == num_calls
        for kernel in (DEFAULT, Kernel("math", ("MATH",)), Kernel("library", backend="_native_math")):
            with _Computed() as computed:
                calls.run(kernel)
            assert computed.sizes == noted


class _Computed(TorchFunctionMode):
    """Notes the sizes of what attention is computed on."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            tensors = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)]
            self.sizes.append(tuple(tuple(tensor.shape) for tensor in tensors[:2]))
        return func(*args, **kwargs)


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
