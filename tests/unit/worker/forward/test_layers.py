"""Attention layers: fused and single projections are the same weights, and every kernel the same sums."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from tiny_networks import flux_inputs, tiny_flux, tiny_sd3, tiny_unet, unet_inputs
from worker.forward.layers import PLAIN, AttentionLayers, Kernel, Look

FUSED = Look(is_fused=True)

NETWORKS = pytest.mark.parametrize(("network", "inputs"), [(tiny_unet, unet_inputs), (tiny_flux, flux_inputs)])


def forward(module, inputs):
    """Return the output of `module`."""
    with torch.inference_mode():
        return module(**inputs, return_dict=False)[0]


@NETWORKS
def test_one_product_computes_what_three_compute(network, inputs):
    """Fused projections are really used, and differ from single ones by rounding alone."""
    module = network()
    before = forward(module, inputs())
    layers = AttentionLayers(module)
    layers.fuse()
    calls = []
    for name, layer in module.named_modules():
        if name.endswith(("to_qkv", "to_kv", "to_added_qkv", "to_k", "add_k_proj")):
            layer.register_forward_hook(lambda *_, name=name: calls.append(name.rpartition(".")[2]))
    with layers.using(FUSED):
        fused = forward(module, inputs())
    assert "to_qkv" in calls
    assert not {"to_k", "add_k_proj"} & set(calls)
    torch.testing.assert_close(fused, before, rtol=1e-4, atol=1e-4)


@NETWORKS
def test_single_projections_are_as_they_were_to_the_last_bit(network, inputs):
    """Laying weights together changes nothing for who computes with them one by one, before and after."""
    module = network()
    before = forward(module, inputs())
    layers = AttentionLayers(module)
    layers.fuse()
    for look in (PLAIN, FUSED, PLAIN):
        with layers.using(look):
            after = forward(module, inputs())
    assert torch.equal(after, before)


@NETWORKS
def test_what_is_patched_into_a_single_projection_is_in_the_fused_one(network, inputs):
    """A LoRA is added to `to_q` where it lies: there is no second copy that would not know of it."""
    module, reference = network(), network()
    layers = AttentionLayers(module)
    layers.fuse()
    for each in (module, reference):
        for name, layer in each.named_modules():
            if name.endswith(("to_q", "to_v", "add_q_proj")):
                layer.weight.copy_(layer.weight * 1.5 + 0.1)
    expected = forward(reference, inputs())
    with layers.using(FUSED):
        torch.testing.assert_close(forward(module, inputs()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [tiny_unet, tiny_flux])
def test_fusing_takes_no_memory(network):
    """The weights of single projections are parts of the fused ones."""
    module = network()
    before = sum(parameter.untyped_storage().nbytes() for parameter in module.parameters())
    AttentionLayers(module).fuse()
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}
    assert sum(storages.values()) == before


def test_sd3_is_left_alone():
    """The fused processor that diffusers has for it leaves out the norms of SD 3.5's queries and keys."""
    assert not AttentionLayers(tiny_sd3()).can_fuse
    assert AttentionLayers(tiny_unet()).can_fuse
    assert AttentionLayers(tiny_flux()).can_fuse


def test_only_dispatched_layers_heed_attention_backends():
    """On a UNet diffusers ignores a backend without a word, so none may be offered for it."""
    assert AttentionLayers(tiny_flux()).is_dispatched
    assert not AttentionLayers(tiny_unet()).is_dispatched


def test_a_kernel_of_torch_is_preferred_within_and_no_longer_after():
    """The order holds while the context is open, for whoever computes then."""
    layers = AttentionLayers(tiny_unet())
    before = _cur_sdpa_kernel_backends(with_priority=True)
    kernel = Kernel("efficient", ("EFFICIENT_ATTENTION", "FLASH_ATTENTION", "MATH"))
    with layers.using(Look(kernel=kernel)):
        now = _cur_sdpa_kernel_backends(with_priority=True)
    assert now == [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_a_kernel_of_a_library_is_set_on_the_layers_that_have_a_choice():
    """Flux's layers are told by diffusers' name, and told no longer when another kernel is wanted."""
    module = tiny_flux()
    layers = AttentionLayers(module)
    processor = module.transformer_blocks[0].attn.processor
    with layers.using(Look(kernel=Kernel("library", backend="_native_math"))):
        assert processor._attention_backend == "_native_math"
        inside = forward(module, flux_inputs())
    with layers.using(PLAIN):
        assert processor._attention_backend is None
        torch.testing.assert_close(forward(module, flux_inputs()), inside, rtol=1e-4, atol=1e-4)


def test_xformers_takes_the_place_of_a_unets_processors():
    """On a UNet a library's kernel is a processor of its own, for single projections."""
    module = tiny_unet()
    layers = AttentionLayers(module)
    layers.fuse()
    attention = module.mid_block.attentions[0].transformer_blocks[0].attn1
    own = attention.processor
    with layers.using(Look(is_fused=True, kernel=Kernel("library xformers", backend="xformers"))):
        assert type(attention.processor).__name__ == "XFormersAttnProcessor"
    with layers.using(PLAIN):
        assert attention.processor is own
