"""torch.compile: how often it compiles, what happens when it cannot, and that weights may change beneath it."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from tiny_networks import UNBATCHED, flux_inputs, tiny_flux, tiny_unet, unet_inputs
from worker.forward.bundle import Bundle
from worker.forward.compiled import Compiled, keep_compilations_in

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

ONE_LEVEL = {
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


class Small(torch.nn.Module):
    """A module that is compiled as a UNet is, in a hundredth of the time: for what the module has no part in."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 4).requires_grad_(requires_grad=False)

    def forward(self, sample, *, return_dict=True):
        """Return the output as diffusers' modules do without `return_dict`."""
        assert not return_dict
        return (self.layer(sample),)


def small_inputs(num_rows=2):
    """Return arguments for it."""
    return {"sample": torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(1))}


class Backend:
    """A compiler that leaves graphs as they are, and counts them and their runs."""

    def __init__(self, failure=None):
        self.failure = failure
        self.num_graphs = 0
        self.num_runs = 0

    def __call__(self, graph, _inputs):
        if self.failure is not None:
            raise self.failure
        self.num_graphs += 1

        def run(*args):
            self.num_runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """Have nothing compiled before, nor after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def backend():
    """Return a compiler that counts."""
    return Backend()


def run(compiled, inputs, unbatched=()):
    """Run `compiled` on `inputs` as the engine does."""
    with torch.inference_mode():
        return compiled(Bundle.of({**inputs, "return_dict": False}, unbatched))[0]


def eager(module, inputs):
    """Run `module` as it is."""
    with torch.inference_mode():
        return module(**inputs, return_dict=False)[0]


def test_a_unet_is_compiled_once_for_any_number_of_rows(backend):
    """Rows come and go and each has its own timestep: what is compiled anew is another size or length of text."""
    module = tiny_unet(**ONE_LEVEL)
    compiled = Compiled(module, backend=backend)
    for num_rows in (2, 6, 3, 8):
        inputs = unet_inputs(num_rows, seed=num_rows)
        torch.testing.assert_close(run(compiled, inputs), eager(module, inputs))
    assert backend.num_graphs == 1
    for num_rows in (2, 4):
        run(compiled, unet_inputs(num_rows, tokens=154))
    assert backend.num_graphs == 2
    run(compiled, unet_inputs(1))  # of which torch makes a constant
    run(compiled, unet_inputs(3))
    assert backend.num_graphs == 3
    assert backend.num_runs == 8


def test_flux_is_compiled_block_by_block(backend):
    """Blocks of a kind share what is compiled, but for the first, and in time there is one for any size.

    They are compiled in place, and yet run as they are where that is asked.
    """
    module = tiny_flux()
    compiled = Compiled(module, backend=backend)
    assert compiled.is_regional
    before = eager(module, flux_inputs())
    run(compiled, flux_inputs(2), UNBATCHED)
    assert (backend.num_graphs, backend.num_runs) == (3, 4)
    with compiled.eagerly():
        assert torch.equal(eager(module, flux_inputs()), before)
    assert backend.num_runs == 4, "in place, and yet a forward that must be exact computes without"
    run(compiled, flux_inputs(3, side=6), UNBATCHED)
    num_graphs = backend.num_graphs
    assert num_graphs <= 6
    for inputs in (flux_inputs(5), flux_inputs(4, side=6), flux_inputs(2, side=8)):
        torch.testing.assert_close(run(compiled, inputs, UNBATCHED), eager(module, inputs))
    assert backend.num_graphs == num_graphs


def test_only_what_is_in_demand_is_compiled():
    """A size that is asked for now and then never waits for a compiler."""
    compiled = Compiled(Small(), after=2)
    assert [compiled.is_due("512") for _ in range(4)] == [False, False, True, True]
    assert not compiled.is_due("768")


def test_weights_that_change_in_place_need_no_new_compilation(backend):
    """A LoRA comes and goes between two steps, and the next one has it."""
    module = Small()
    compiled = Compiled(module, backend=backend)
    before = run(compiled, small_inputs())
    with torch.inference_mode():
        module.layer.weight.copy_(module.layer.weight * 2)
    after = run(compiled, small_inputs())
    torch.testing.assert_close(after, eager(module, small_inputs()))
    assert not torch.allclose(after, before)
    assert (backend.num_graphs, backend.num_runs) == (1, 2)


def test_without_a_compiler_everything_runs_as_it_is(caplog):
    """One line in the log says why, and nobody tries again."""
    module = Small()
    compiled = Compiled(module, backend=Backend(RuntimeError("no C compiler was found")), after=0)
    assert compiled.is_due("512")
    with caplog.at_level(logging.WARNING):
        output = run(compiled, small_inputs())
    assert torch.equal(output, eager(module, small_inputs()))
    (record,) = [each for each in caplog.records if each.name.startswith("worker") and each.levelno >= logging.WARNING]
    assert record.action == "compile_failed"
    assert "no C compiler" in record.getMessage()
    assert not compiled.is_due("512")


def test_inputs_that_no_forward_takes_are_no_fault_of_the_compiler(backend):
    """They fail as they would without, and compiling goes on for others."""
    compiled = Compiled(Small(), backend=backend, after=0)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(compiled, {"sample": torch.zeros(2, 5)})
    assert compiled.is_due("512")


def test_running_out_of_memory_is_the_engines_to_answer():
    """A smaller batch may fit: that is no reason to give up compiling."""
    compiled = Compiled(Small(), after=0)

    def full(**_inputs):
        raise torch.OutOfMemoryError("full")

    compiled._run = full
    with pytest.raises(torch.OutOfMemoryError):
        run(compiled, small_inputs())
    assert compiled.is_due("512")


@pytest.mark.slow
@pytest.mark.long
def test_a_real_compiler_computes_the_same(tmp_path, monkeypatch):
    """Torch's own compiler, with what it makes kept in a folder of ours: the numbers are the plain module's."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is taken away again afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compilations_in(tmp_path / "compile")
    module = tiny_flux()
    compiled = Compiled(module)
    for num_rows in (2, 2):
        inputs = flux_inputs(num_rows, seed=num_rows)
        torch.testing.assert_close(run(compiled, inputs, UNBATCHED), eager(module, inputs), rtol=1e-4, atol=1e-4)
    assert not compiled._is_broken
    assert any((tmp_path / "compile").rglob("*"))


def test_a_folder_that_somebody_has_set_is_kept(tmp_path, monkeypatch):
    """Who sets torch's own variable has a reason."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    keep_compilations_in(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
