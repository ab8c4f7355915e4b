"""What only a CUDA card can show of forwards: recordings by the driver, its numbers, and its memory."""

from __future__ import annotations

import pytest
import torch

from tiny_networks import UNBATCHED, flux_inputs, tiny_flux, tiny_unet, unet_inputs
from worker.downloads import Download
from worker.forward import Forward, Optimisation, Toolbox, chosen_of
from worker.forward.graphs import CudaCapturer, Graphs
from worker.gpu import choose_device
from worker.tuning.store import Measured, Origin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
NETWORKS = pytest.mark.parametrize(
    ("network", "inputs", "unbatched"), [(tiny_unet, unet_inputs, ()), (tiny_flux, flux_inputs, UNBATCHED)]
)


def on_card(given):
    """Return `given` on the card, in fp16 but for timesteps."""
    return {
        name: value.cuda().to(torch.float32 if name in {"timestep", *UNBATCHED} else torch.float16)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in given.items()
    }


def run(forward, given, *, exact=False):
    """Return what `forward` makes of `given`."""
    with torch.inference_mode():
        return forward(exact=exact, **on_card(given))


@NETWORKS
def test_recordings_have_the_bytes_of_the_module(network, inputs, unbatched):
    """The same kernels, launched otherwise: for every number of rows, and with weights patched in between."""
    module = network().cuda().half()
    plain = Forward(module)
    graphs = Graphs(CudaCapturer(torch.device("cuda")))
    recorded = Forward(module, unbatched=unbatched, graphs=graphs)
    for _ in range(2):
        for num_rows in (1, 2, 5, 17, 2):
            given = inputs(num_rows, seed=num_rows)
            assert torch.equal(run(recorded, given, exact=True), run(plain, given))
        with torch.inference_mode():
            for parameter in module.parameters():
                parameter.copy_(parameter * 1.01)
    assert len(graphs) == 4
    assert graphs.give_up()
    given = inputs(3)
    assert torch.equal(run(recorded, given), run(plain, given))


def test_a_forward_that_waits_for_the_device_stays_unrecorded():
    """A failed capture leaves the stream, the device and the next forward as they were."""

    class Waiting(torch.nn.Module):
        def forward(self, x, *, return_dict):
            return (x * float(x.sum().item()),)

    before = torch.cuda.current_stream()
    forward = Forward(Waiting(), graphs=Graphs(CudaCapturer(torch.device("cuda"))))
    for _ in range(2):
        assert torch.equal(forward(exact=False, x=torch.ones(2, 2, device="cuda")).cpu(), torch.full((2, 2), 4.0))
    assert torch.cuda.current_stream() == before


@NETWORKS
def test_with_everything_on_the_numbers_are_near(network, inputs, unbatched, tmp_path):
    """Compiled, fused, measured and recorded: the plain module's numbers, to the rounding of fp16."""
    plain = Forward(network().cuda().half())
    device = choose_device("cuda")
    toolbox = Toolbox(
        chosen=chosen_of("auto", on_card=True),
        on_card=True,
        card=device.kind,
        store=Measured(tmp_path, Origin.of(device)),
        timer=Toolbox.of("off", device, store=Measured(None, Origin.of(device)), cache_dir=None, max_batch=8).timer,
        graphs=Graphs(CudaCapturer(device.torch)),
        compile_after=1,
    )
    module = network().cuda().half()
    forward = toolbox.forward(module, name="tiny", denoiser="unet", plan=None, dtype=torch.float16, unbatched=unbatched)
    assert {Optimisation.GRAPHS, Optimisation.COMPILE} <= set(forward.optimisations)
    for num_rows in (2, 2, 2, 4, 2):
        given = inputs(num_rows, seed=num_rows)
        torch.testing.assert_close(run(forward, given), run(plain, given), rtol=2e-2, atol=2e-2)


def test_a_picture_comes_while_the_device_goes_on():
    """A download begun before later work brings what was there before it."""
    tensor = torch.ones(1024, 1024, 3, dtype=torch.uint8, device="cuda")
    download = Download(tensor, tensor.any())
    tensor.fill_(7)
    pixels, is_drawn = download.wait()
    assert download.is_here
    assert (pixels == 1).all()
    assert is_drawn
