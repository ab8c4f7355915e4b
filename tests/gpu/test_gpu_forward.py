"""Forwards as the driver records them: its numbers, its memory, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recorded_forwards import Replayer
from tiny_networks import UNBATCHED, flux_inputs, tiny_flux, tiny_unet, unet_inputs
from worker.downloads import Download
from worker.forward import Forward, Optimisation, Toolbox, chosen_of
from worker.forward.graphs import CudaCapturer, Graphs
from worker.tuning.store import Measured, Origin

pytestmark = pytest.mark.gpu
NETWORKS = pytest.mark.parametrize(
    ("network", "inputs", "unbatched"), [(tiny_unet, unet_inputs, ()), (tiny_flux, flux_inputs, UNBATCHED)]
)


@pytest.fixture
def graphs(card):
    """Return recordings by the driver; of a CPU, by its stand-in."""
    return Graphs(CudaCapturer(card.torch) if card.torch.type == "cuda" else Replayer())


def dtype_on(card):
    """Return what models compute in there."""
    return torch.float16 if card.torch.type == "cuda" else torch.float32


@pytest.fixture
def run(card):
    """Return a function that runs a forward on the device, in fp16 there."""

    def placed(name, value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(card.torch, torch.float32 if name in {"timestep", *UNBATCHED} else dtype_on(card))

    def run(forward, given, *, exact=False):
        with torch.inference_mode():
            return forward(exact=exact, **{name: placed(name, value) for name, value in given.items()})

    return run


@NETWORKS
def test_recordings_have_the_bytes_of_the_module(network, inputs, unbatched, graphs, *, card, run):
    """The same kernels, launched otherwise: for each number of rows, and with weights patched in between."""
    module = network().to(card.torch, dtype_on(card))
    plain, recorded = Forward(module), Forward(module, unbatched=unbatched, graphs=graphs)
    for _ in range(2):
        for num_rows in (1, 2, 5, 17, 2):
            given = inputs(num_rows, seed=num_rows)
            assert torch.equal(run(recorded, given, exact=True), run(plain, given))
        with torch.inference_mode():
            for parameter in module.parameters():
                parameter.copy_(parameter * 1.01)
    assert len(graphs) == 4
    assert graphs.give_up()
    assert torch.equal(run(recorded, inputs(3)), run(plain, inputs(3)))


def test_a_forward_that_waits_for_the_device_stays_unrecorded(card, graphs):
    """A capture that fails leaves stream, device and the next forward as they were."""

    class Waiting(torch.nn.Module):
        def forward(self, x, *, return_dict):
            return (x * float(x.sum().item()),)

    stream = torch.cuda.current_stream() if card.torch.type == "cuda" else None
    forward = Forward(Waiting(), graphs=graphs)
    for _ in range(2):
        ones = torch.ones(2, 2, device=card.torch)
        assert torch.equal(forward(exact=False, x=ones).cpu(), torch.full((2, 2), 4.0))
    if stream is not None:
        assert torch.cuda.current_stream() == stream
        assert len(graphs) == 0


@NETWORKS
def test_with_everything_on_the_numbers_are_near(network, inputs, unbatched, graphs, *, card, run, tmp_path):
    """Compiled, fused, measured and recorded: the plain module's numbers, to the rounding of fp16."""
    toolbox = Toolbox.of("auto", card, store=Measured(tmp_path, Origin.of(card)), cache_dir=None, max_batch=8)
    toolbox = replace(toolbox, graphs=graphs, on_card=True, chosen=chosen_of("auto", on_card=True), compile_after=1)
    if card.torch.type == "cpu":
        toolbox = replace(toolbox, backend="eager")
    plain = Forward(network().to(card.torch, dtype_on(card)))
    module = network().to(card.torch, dtype_on(card))
    forward = toolbox.forward(module, name="tiny", denoiser="unet", plan=None, dtype=torch.float16, unbatched=unbatched)
    assert {Optimisation.GRAPHS, Optimisation.COMPILE} <= set(forward.optimisations)
    for num_rows in (2, 2, 2, 4, 2):
        given = inputs(num_rows, seed=num_rows)
        torch.testing.assert_close(run(forward, given), run(plain, given), rtol=2e-2, atol=2e-2)


def test_a_picture_comes_while_the_device_goes_on(card):
    """A download begun before later work brings what was there before it."""
    tensor = torch.ones(1024, 1024, 3, dtype=torch.uint8, device=card.torch)
    download = Download(tensor, tensor.any())
    if card.torch.type == "cuda":
        tensor.fill_(7)
    pixels, is_drawn = download.wait()
    assert download.is_here
    assert (pixels == 1).all()
    assert is_drawn
