"""What a worker has to make its models fast, and what it says of each."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from farm.errors import Fatal
from tiny_networks import tiny_sd3, tiny_unet, unet_inputs
from worker.forward import Toolbox
from worker.gpu import Device
from worker.tuning.store import Measured, Origin

CPU = Device(torch.device("cpu"), "cpu", None)


def toolbox_of(setting, *, cache_dir=None):
    """Return the toolbox of a worker on a CPU."""
    return Toolbox.of(setting, CPU, store=Measured(None, Origin.of(CPU)), cache_dir=cache_dir, max_batch=8)


def forward_of(toolbox, module):
    """Return the forward of a model."""
    return toolbox.forward(module, name="tiny", denoiser="unet", plan=None, dtype=torch.float32)


def test_a_cpu_worker_with_nothing_set_changes_nothing_and_says_nothing(caplog):
    """By default a CPU computes as it always has."""
    module = tiny_unet()
    with caplog.at_level(logging.INFO):
        forward = forward_of(toolbox_of("auto"), module)
    assert forward.optimisations == forward.approximations == ()
    assert not caplog.records
    assert not hasattr(module.mid_block.attentions[0].transformer_blocks[0].attn1, "to_qkv")


def test_what_a_cpu_can_do_is_done_when_it_is_asked_for(caplog):
    """One line says what is on, and why the rest of what was asked for is not."""
    with caplog.at_level(logging.INFO):
        forward = forward_of(toolbox_of("fused,graphs"), tiny_unet())
    assert forward.optimisations == ("fused",)
    (record,) = caplog.records
    assert record.getMessage() == "model tiny, optimised by fused; not graphs: there is no CUDA device"
    assert (record.action, record.model, record.optimisations) == ("model_optimised", "tiny", ["fused"])
    with torch.inference_mode():
        assert forward(exact=False, **unet_inputs(2)).shape == (2, 4, 8, 8)


def test_a_model_that_has_a_use_for_nothing_is_left_as_it_is(caplog):
    """It says so, and its forward is the module's."""
    with caplog.at_level(logging.INFO):
        forward = forward_of(toolbox_of("fused"), tiny_sd3())
    assert forward.optimisations == ()
    assert "optimised by nothing; not fused" in caplog.text


def test_a_name_that_is_none_stops_the_worker():
    """Before any model is loaded."""
    with pytest.raises(Fatal, match="'grahps'"):
        toolbox_of("grahps")


@pytest.mark.parametrize(("setting", "is_set"), [("compile", True), ("auto", False), ("off", False)])
def test_what_is_compiled_is_kept_where_measurements_are(setting, is_set, tmp_path, monkeypatch):
    """Only where something is compiled, torch is told the folder."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is taken away again afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    toolbox_of(setting, cache_dir=tmp_path / "compile")
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (str(tmp_path / "compile") if is_set else None)
