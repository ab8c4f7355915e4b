"""Denoisers that compute in eight bits: which layers torchao is handed, in what form, and what is said without it.

torchao has kernels for cards alone, so what it does to a layer is not tried here; a stand-in of its two calls is.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from farm.catalog import Catalog
from farm.errors import ModelBroken
from farm.plans import Precision, plan_for_row, sizes_of
from farm.plans.published import PUBLISHED
from farm.plans.working import DYNAMIC_SHARE
from worker.bench.published import build
from worker.pipelines.fitting import loads_on_device
from worker.pipelines.placement import load_dtype, place
from worker.pipelines.quantising import check_precision

CPU = torch.device("cpu")
AMPERE, ADA = (8, 6), (8, 9)
GIB = 1 << 30


def plan_of(name, precision, folder, vram_gib=80):
    """Return the plan of a published model whose row asks for `precision`."""
    row = Catalog().row(name).model_copy(update={"precision": precision})
    return plan_for_row(row, sizes_of(row, folder), vram_bytes=vram_gib * GIB)


@pytest.fixture
def torchao(monkeypatch):
    """Put a stand-in where torchao would be; return what it was asked to do."""
    asked = []

    def quantize_(module, config, *, filter_fn, device):
        names = [name for name, layer in module.named_modules() if filter_fn(layer, name)]
        asked.append((config, names, device, module.dtype))

    package, quantization = types.ModuleType("torchao"), types.ModuleType("torchao.quantization")
    package.__spec__ = importlib.machinery.ModuleSpec("torchao", None)
    quantization.quantize_ = quantize_
    quantization.PerRow = lambda: "row"
    quantization.Float8DynamicActivationFloat8WeightConfig = lambda granularity: ("fp8", granularity)
    quantization.Int8DynamicActivationInt8WeightConfig = lambda: "int8"
    package.quantization = quantization
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.quantization", quantization)
    return asked


def flux():
    """Return a small Flux transformer whose sides are multiples of 16, but for what goes in and out."""
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def unet():
    """Return a small UNet with attention; its texts are 24 wide, no multiple of 16."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def test_flux_computes_in_fp8_but_for_its_modulation(torchao, tmp_path):
    """Blocks' linear layers with a scale for each row, of weights in bf16; embedders and modulation stay."""
    plan = plan_of("flux-dev", "fp8-dynamic", tmp_path)
    place({"transformer": flux()}, plan, CPU)
    ((config, names, device, dtype),) = torchao
    assert (config, device, dtype) == (("fp8", "row"), CPU, torch.bfloat16)
    assert {name.split(".")[0] for name in names} == {"transformer_blocks", "single_transformer_blocks"}
    assert "transformer_blocks.0.attn.to_q" in names
    assert "single_transformer_blocks.0.proj_mlp" in names
    assert not any("norm" in name for name in names)


def test_a_unet_computes_in_int8_where_sides_fit(torchao, tmp_path):
    """Layers that read texts of an odd width stay, convolutions and what the step says to them too."""
    place({"unet": unet()}, plan_of("sdxl", "int8-dynamic", tmp_path), CPU)
    ((config, names, _, dtype),) = torchao
    assert (config, dtype) == ("int8", torch.float16)
    assert any(name.endswith("attn1.to_q") for name in names)
    assert not any(name.endswith("attn2.to_k") or "time_emb" in name or "conv" in name for name in names)


def test_fp8_products_come_out_in_bf16(tmp_path):
    """All parts of a model compute in one precision, which with rowwise fp8 is bf16, of SDXL too."""
    plan = plan_of("sdxl", "fp8-dynamic", tmp_path)
    assert {load_dtype(plan, part.name) for part in plan.components} == {torch.bfloat16}
    assert load_dtype(plan_of("sdxl", "int8-dynamic", tmp_path), "unet") is torch.float16


@pytest.mark.parametrize("precision", ["fp8-dynamic", "int8-dynamic"])
def test_what_loses_bits_does_so_on_its_way(precision, tmp_path):
    """The denoiser is read to RAM and made narrow layer by layer: in 16 bits a 24 GB card could not hold it."""
    plan = plan_of("flux-dev", precision, tmp_path, vram_gib=24)
    assert plan.component("transformer").storage == precision
    assert not loads_on_device(plan, "transformer")
    assert loads_on_device(plan, "vae")


@pytest.mark.parametrize("name", ["flux-dev", "sd35-medium", "sd35-large"])
def test_no_plan_counts_on_more_than_is_narrowed(torchao, tmp_path, name):
    """Of each published transformer's blocks so much is linear and no modulation, and hardly more is."""
    transformer = build(name, "transformer")
    plan = plan_of(name, "int8-dynamic", tmp_path)
    place({"transformer": transformer}, plan, torch.device("meta"))
    ((_, names, _, _),) = torchao
    narrowed = sum(transformer.get_submodule(layer).weight.numel() for layer in names)
    size = next(size for size in PUBLISHED[name] if size.name == "transformer")
    assert DYNAMIC_SHARE <= narrowed / size.num_block_values <= DYNAMIC_SHARE + 0.15
    assert plan.component("transformer").weight_bytes >= 2 * size.num_values - narrowed


@pytest.mark.parametrize(
    ("precision", "package"), [("fp8-dynamic", "torchao"), ("int8-dynamic", "torchao"), ("nf4", "bitsandbytes")]
)
def test_a_missing_package_is_named(precision, package):
    """The error says what to install."""
    with pytest.raises(ModelBroken, match=f"{precision} needs {package}.*pip install {package}"):
        check_precision(Precision(precision), ADA)


@pytest.mark.usefixtures("torchao")
def test_a_card_that_cannot_is_told():
    """fp8 wants an Ada card or later; int8 does with an Ampere."""
    check_precision(Precision.INT8_DYNAMIC, AMPERE)
    check_precision(Precision.FP8_DYNAMIC, ADA)
    check_precision(Precision.FP8, (7, 5))
    with pytest.raises(ModelBroken, match=r"compute capability 8\.9 or later, this one has 8\.6"):
        check_precision(Precision.FP8_DYNAMIC, AMPERE)
