"""A forward with all of its optimisations: the same numbers, and the same bytes where bytes are promised."""

from __future__ import annotations

import pytest
import torch

from recorded_forwards import Replayer
from tiny_networks import UNBATCHED, flux_inputs, tiny_flux, tiny_sd3, tiny_unet, unet_inputs
from worker.forward import Forward, Optimisation, Toolbox
from worker.forward import attention as attention_module
from worker.forward import forward as forward_module
from worker.forward import toolbox as toolbox_module
from worker.forward.graphs import Graphs
from worker.forward.layers import Kernel

NETWORKS = pytest.mark.parametrize(
    ("network", "inputs", "unbatched"), [(tiny_unet, unet_inputs, ()), (tiny_flux, flux_inputs, UNBATCHED)]
)
MATH = Kernel("math", ("MATH",))


class Notes(dict):
    """A store of measurements that forgets at the end of a test."""

    def put(self, key, value, *, rounds=1):
        self[key] = value


@pytest.fixture
def replayer():
    """Return a stand-in for the driver."""
    return Replayer()


@pytest.fixture
def make(replayer, monkeypatch):
    """Return a maker of forwards with everything on but the compiler, whose tests are elsewhere, as if on a 4090."""
    monkeypatch.setattr(attention_module, "_is_installed", lambda _backend: False)
    kernels_for = toolbox_module.kernels_for

    def with_math(*args, **options):
        default, *others = kernels_for(*args, **options)
        return (default, MATH, *others)  # which a CPU computes otherwise, to the last bits

    monkeypatch.setattr(toolbox_module, "kernels_for", with_math)

    def make(module, *, chosen=frozenset(Optimisation) - {Optimisation.COMPILE}, unbatched=(), **options):
        times_ms = iter([9.0] * 7 + [1.0] * 7 + [9.0] * 700)
        toolbox = Toolbox(
            chosen=frozenset(chosen),
            on_card=True,
            card="NVIDIA GeForce RTX 4090",
            store=Notes(),
            timer=lambda work: (work(), next(times_ms))[1],
            graphs=Graphs(replayer),
        )
        made = {"name": "tiny", "denoiser": "unet", "plan": None, "dtype": torch.float32, **options}
        return toolbox.forward(module, unbatched=unbatched, **made)

    return make


def plain(module, inputs):
    """Return what the module makes of `inputs`."""
    with torch.inference_mode():
        return module(**inputs, return_dict=False)[0]


def fast(forward, inputs, *, exact=False):
    """Return what `forward` makes of them."""
    with torch.inference_mode():
        return forward(exact=exact, **inputs)


@NETWORKS
def test_with_everything_on_the_numbers_are_the_same(make, replayer, network, inputs, unbatched):
    """Recorded, fused and with another kernel a forward differs by rounding, at every number of rows."""
    module, forward = network(), make(network(), unbatched=unbatched)
    for num_rows in (1, 2, 5, 17, 2):
        given = inputs(num_rows, seed=num_rows)
        torch.testing.assert_close(fast(forward, given), plain(module, given), rtol=1e-4, atol=1e-4)
    assert forward.optimisations == ("attention", "fused", "graphs")
    assert replayer.num_replays == 5


@NETWORKS
def test_an_exact_forward_has_the_bytes_of_the_module_itself(make, replayer, network, inputs, unbatched):
    """Whatever was chosen or measured for others before, an invariant lane's bytes are those of a plain worker."""
    module, forward = network(), make(network(), unbatched=unbatched)
    given = inputs(4)
    for _ in range(2):
        assert not torch.equal(fast(forward, given), plain(module, given))
        assert torch.equal(fast(forward, given, exact=True), plain(module, given))
    assert replayer.num_replays == 4  # recorded both


def test_an_exact_forward_is_never_padded(make):
    """Its shape is the lane's, and no other."""
    module = tiny_unet()
    rows = []
    module.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["sample"])), with_kwargs=True
    )
    forward = make(module, chosen={Optimisation.GRAPHS})
    assert fast(forward, unet_inputs(17), exact=True).shape[0] == 17
    assert set(rows) == {17}
    fast(forward, unet_inputs(17))
    assert set(rows) == {17, 18}


def test_a_forward_without_a_toolbox_is_the_module(make):
    """Off is off: not a bit changes, and nothing stands between."""
    module = tiny_unet()
    given = unet_inputs(3)
    assert torch.equal(fast(Forward(module), given), plain(module, given))
    assert torch.equal(fast(make(module, chosen=()), given), plain(module, given))


def test_everything_a_unet_may_be_told_is_an_input_of_its_recording(make, replayer):
    """Residuals of ControlNets, a guidance embedding, SDXL's sizes: each is read anew at each step."""
    config = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 8,
        "time_cond_proj_dim": 6,
    }
    module, forward = tiny_unet(**config), make(tiny_unet(**config), chosen={Optimisation.GRAPHS})
    for seed in (1, 2):
        chance = torch.Generator().manual_seed(seed)

        def some(*shape, chance=chance):
            return torch.randn(2, *shape, generator=chance)

        given = unet_inputs(
            2,
            seed=seed,
            timestep_cond=some(6),
            added_cond_kwargs={"text_embeds": some(8), "time_ids": some(6)},
            down_block_additional_residuals=[some(8, 8, 8), some(8, 8, 8), some(8, 4, 4), some(16, 4, 4)],
            mid_block_additional_residual=some(16, 4, 4),
        )
        assert torch.equal(fast(forward, given), plain(module, given))
    assert len(replayer.recordings) == 1
    given = given | {"down_block_additional_residuals": None, "mid_block_additional_residual": None}
    assert torch.equal(fast(forward, given), plain(module, given))
    assert len(replayer.recordings) == 2


def test_weights_patched_in_place_show_in_recordings_of_fused_layers(make):
    """A LoRA that comes between two steps is in the next one, without anything being made anew."""
    module = tiny_unet()
    forward = make(tiny_unet())
    fast(forward, unet_inputs())
    with torch.inference_mode():
        for each in (module, forward.module):
            for name, layer in each.named_modules():
                if name.endswith(("to_q", "to_v")):
                    layer.weight.copy_(layer.weight * 1.5 + 0.1)
    torch.testing.assert_close(fast(forward, unet_inputs()), plain(module, unet_inputs()), rtol=1e-4, atol=1e-4)


def test_hooks_that_compute_are_seen_by_recordings_made_before_them(make, replayer):
    """LoRAs beside weights of few bits are hooks: what was recorded without them is recorded anew, and again after."""
    module, forward = tiny_unet(), make(tiny_unet(), chosen={Optimisation.GRAPHS})
    without = fast(forward, unet_inputs())
    handle = forward.module.conv_out.register_forward_hook(lambda _module, _args, output: output + 1)
    forward.have_hooks(has_hooks=True)
    torch.testing.assert_close(fast(forward, unet_inputs()), without + 1)
    handle.remove()
    forward.have_hooks(has_hooks=False)
    assert torch.equal(fast(forward, unet_inputs()), plain(module, unet_inputs()))
    assert len(replayer.recordings) == 3


def test_running_out_of_memory_costs_recordings_before_anything_else(make):
    """A forward that has no room beside recordings is made without them, and nobody hears of it."""
    module, forward = tiny_unet(), make(tiny_unet(), chosen={Optimisation.GRAPHS})
    fast(forward, unet_inputs(1))
    full = [True]

    def no_room(_module, _args):
        if full and full.pop():
            raise torch.OutOfMemoryError("full")

    forward.module.register_forward_pre_hook(no_room)
    assert torch.equal(fast(forward, unet_inputs(3)), plain(module, unet_inputs(3)))
    assert not forward.give_up_memory()


def test_memory_that_is_short_without_recordings_is_the_engines_to_answer(make):
    """It halves the batch, as ever."""
    forward = make(tiny_unet(), chosen={Optimisation.GRAPHS})

    def no_room(_module, _args):
        raise torch.OutOfMemoryError("full")

    forward.module.register_forward_pre_hook(no_room)
    with pytest.raises(torch.OutOfMemoryError):
        fast(forward, unet_inputs(3))


def test_parts_that_are_called_directly_are_exact_where_they_must_be(make):
    """Caches run some blocks by themselves: within an exact lane these are as they came."""
    module, forward = tiny_flux(), make(tiny_flux(), unbatched=UNBATCHED)
    fast(forward, flux_inputs())
    attn = forward.module.transformer_blocks[0].attn
    with forward.directly(exact=False):
        assert attn.fused_projections
    with forward.directly(exact=True):
        assert not attn.fused_projections
        assert torch.equal(plain(forward.module, flux_inputs()), plain(module, flux_inputs()))


def test_sd3_is_recorded_and_not_fused(make):
    """What a model has no use for is left out, and the rest is used."""
    module = tiny_sd3()
    forward = make(module, denoiser="transformer")
    assert forward.optimisations == ("attention", "graphs")


# -- what changes pictures beyond rounding


def test_adding_up_in_fp16_is_for_fast_forwards_of_geforce_cards_alone_and_declared(make):
    """The switch is torch's and holds for all: it is on within such a forward, and nowhere else."""
    module = tiny_unet()
    seen = []
    module.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_fp16_accumulation))
    forward = make(module, chosen={Optimisation.FP16_ACCUMULATION}, dtype=torch.float16)
    fast(forward, unet_inputs())
    fast(forward, unet_inputs(), exact=True)
    assert seen == [True, False]
    assert not torch.backends.cuda.matmul.allow_fp16_accumulation
    assert forward.approximations == ("matrix products added up in fp16",)


def test_a_row_that_forbids_approximations_has_none(make):
    """`allow_lossy = false` is obeyed, whatever the card likes."""
    forward = make(tiny_unet(), dtype=torch.float16, allow_lossy=False)
    assert forward.approximations == ()
    assert "fp16-accumulation" not in forward.optimisations


def test_attention_in_8_bits_is_declared_where_it_may_be_chosen(make, monkeypatch):
    """Sage has to be asked for, installed, and of use to the model."""
    chosen = {Optimisation.SAGE}
    assert make(tiny_flux(), chosen=chosen, unbatched=UNBATCHED).approximations == ()
    monkeypatch.setattr(attention_module, "_is_installed", lambda _backend: True)
    forward = make(tiny_flux(), chosen=chosen, unbatched=UNBATCHED)
    assert forward.approximations == ("attention in 8 bits where that is faster (sage)",)
    assert make(tiny_unet(), chosen=chosen).approximations == ()


def test_shapes_of_about_as_many_rows_share_a_measurement():
    """Rows count to the next power of four, sizes and texts as they are."""
    shape_of = forward_module._shape_of
    bundles = [forward_module.Bundle.of(unet_inputs(rows)) for rows in (5, 16, 17)]
    assert shape_of(bundles[0]) == shape_of(bundles[1]) != shape_of(bundles[2])
    assert shape_of(bundles[0]) != shape_of(forward_module.Bundle.of(unet_inputs(5, tokens=154)))
