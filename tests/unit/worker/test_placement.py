"""Carrying out memory plans on small models: precision, visits to the device, streaming, tiles."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from farm.errors import ModelBroken
from farm.plans import ComponentPlan, Phase, Plan, Precision, Where
from worker.pipelines import placement as placement_module
from worker.pipelines.placement import load_dtype, place, quantization_config_for

CPU = torch.device("cpu")


def unet():
    """Return a small random UNet with attention."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def flux():
    """Return a small random Flux transformer."""
    torch.manual_seed(0)
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


def vae():
    """Return a small random VAE that was trained, so it says, on images of 64 pixels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def text_encoder():
    """Return a small random CLIP text model."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return CLIPTextModel(config).eval()


def plan(*components, **fields):
    """Return a plan of components given as (name, storage, where); numbers play no part here."""
    parts = tuple(
        ComponentPlan(name, storage, Precision.FP32, where, weight_bytes=0) for name, storage, where in components
    )
    whole = Plan(
        family="sd15",
        width=64,
        height=64,
        guided=False,
        vram_bytes=0,
        margin_bytes=0,
        components=parts,
        vae_tile_px=None,
        max_batch=1,
        steady_bytes=0,
        phases=(Phase("denoise", ()),),
    )
    return replace(whole, **fields)


def run_unet(model):
    """Return the prediction of a UNet for one fixed input."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 5, 16, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([10.0, 500.0]), encoder_hidden_states=states, return_dict=False)[0]


def run_flux(model):
    """Return the prediction of a Flux transformer for one fixed input."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 16, 4, generator=generator),
            encoder_hidden_states=torch.randn(1, 6, 16, generator=generator),
            pooled_projections=torch.randn(1, 8, generator=generator),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(6, 3),
            return_dict=False,
        )[0]


def bytes_of(module):
    """Return what a module's parameters take."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def test_a_resident_float32_plan_changes_nothing():
    """On a CPU the plan is the model as it is, frozen; visits do nothing."""
    model = unet()
    expected = run_unet(model)
    placed = place({"unet": model}, plan(("unet", Precision.FP32, Where.RESIDENT)), CPU)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    with placed.on_device("unet"):
        assert [parameter.data_ptr() for parameter in model.parameters()] == before
        assert torch.equal(run_unet(model), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("name", "make", "run"), [("unet", unet, run_unet), ("transformer", flux, run_flux)])
def test_fp8_storage_shrinks_the_blocks_and_moves_predictions_little(name, make, run):
    """Layers of the blocks take a byte a weight, the rest keeps four; predictions stay within 8 bits' reach."""
    model = make()
    expected, before = run(model), bytes_of(model)
    blocks = placement_module._BLOCKS
    place({name: model}, plan((name, Precision.FP8, Where.RESIDENT)), CPU)
    for key, parameter in model.named_parameters():
        in_blocks = key.startswith(blocks)
        is_layer = parameter.dim() > 1
        if in_blocks and is_layer:
            assert parameter.dtype is torch.float8_e4m3fn, key
        if not in_blocks:
            assert parameter.dtype is torch.float32, key
    assert bytes_of(model) < 0.5 * before
    for _ in range(2):  # layers narrow again after each forward
        predicted = run(model)
        error = (predicted - expected).norm() / expected.norm()
        assert 1e-5 < error < 0.1
        assert predicted.dtype is torch.float32
    assert any(parameter.dtype is torch.float8_e4m3fn for parameter in model.parameters())


@pytest.fixture
def arrivals(monkeypatch):
    """Record what is copied to the device; returns the list of sizes, in order."""
    copied = []
    original = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        if args and args[0] == torch.device("cpu", 0):
            copied.append(tensor.numel())
            return tensor.clone()
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return copied


DEVICE = torch.device("cpu", 0)  # equals no device that tensors are on, so that moves can be told


def evicting(*names):
    """Return a plan under which these components visit."""
    return plan(*((name, Precision.FP32, Where.EVICTED) for name in names))


def test_an_evicted_component_visits_and_leaves(arrivals):
    """It is copied once for a visit, computes the same there, and its weights at home are the originals afterwards."""
    model = text_encoder()
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(tokens)[0]
    home = [parameter.data_ptr() for parameter in model.parameters()]
    placed = place({"text_encoder": model}, evicting("text_encoder"), DEVICE)
    assert arrivals == []
    with placed.on_device("text_encoder"), torch.no_grad():
        assert len(arrivals) == len(home) + len(list(model.buffers()))
        assert not set(home) & {parameter.data_ptr() for parameter in model.parameters()}
        assert torch.equal(model(tokens)[0], expected)
    assert [parameter.data_ptr() for parameter in model.parameters()] == home


def test_a_visit_within_a_visit_copies_nothing(arrivals):
    """Whoever opens the inner context neither copies again nor sends the component home early."""
    model = text_encoder()
    home = next(model.parameters()).data_ptr()
    placed = place({"text_encoder": model}, evicting("text_encoder"), DEVICE)
    with placed.on_device("text_encoder"):
        num_copied = len(arrivals)
        with placed.on_device("text_encoder"):
            assert len(arrivals) == num_copied
        assert next(model.parameters()).data_ptr() != home
    assert next(model.parameters()).data_ptr() == home


def test_a_component_goes_home_after_an_error(arrivals):
    """An encoder that fails, or that runs out of memory on its way in, leaves nothing on the device."""
    model = text_encoder()
    home = [parameter.data_ptr() for parameter in model.parameters()]
    placed = place({"text_encoder": model}, evicting("text_encoder"), DEVICE)
    with pytest.raises(RuntimeError, match="no words"), placed.on_device("text_encoder"):
        raise RuntimeError("no words")
    assert arrivals
    assert [parameter.data_ptr() for parameter in model.parameters()] == home
    with placed.on_device("text_encoder"):
        assert [parameter.data_ptr() for parameter in model.parameters()] != home


@pytest.mark.usefixtures("arrivals")
def test_components_visit_together_when_named_together():
    """Two names bring two components; one that the plan does not know is a mistake told with the names."""
    models = {"text_encoder": text_encoder(), "text_encoder_2": text_encoder()}
    placed = place(models, evicting(*models), DEVICE)
    home = {name: next(model.parameters()).data_ptr() for name, model in models.items()}
    with placed.on_device(*models):
        assert all(next(model.parameters()).data_ptr() != home[name] for name, model in models.items())
    with (
        pytest.raises(KeyError, match="no component 'unet', only text_encoder, text_encoder_2"),
        placed.on_device("unet"),
    ):
        pass


@pytest.mark.usefixtures("arrivals")
@pytest.mark.parametrize("is_loaded_inside", [False, True])
def test_visits_work_in_inference_mode(is_loaded_inside):
    """Loaded inside or outside of the engine's inference mode, weights come and go, and come again."""
    with torch.inference_mode(is_loaded_inside):
        model = text_encoder()
    placed = place({"text_encoder": model}, evicting("text_encoder"), DEVICE)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        expected = text_encoder()(tokens)[0]
        for _ in range(2):
            with placed.on_device("text_encoder"):
                assert torch.equal(model(tokens)[0], expected)


@pytest.mark.parametrize("storage", [Precision.FP8, Precision.FP32])
def test_placing_works_in_inference_mode(storage):
    """The engine loads and computes in inference mode: narrow and streamed components as well."""
    expected = run_unet(unet())
    where = Where.RESIDENT if storage is Precision.FP8 else Where.STREAMED
    with torch.inference_mode():
        model = unet()
        place({"unet": model}, plan(("unet", storage, where)), CPU)
        for _ in range(2):
            predicted = run_unet(model)
            assert (predicted - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize(("name", "make", "run"), [("unet", unet, run_unet), ("transformer", flux, run_flux)])
def test_a_streamed_denoiser_computes_the_same_bits(name, make, run):
    """Layer by layer, step after step, exactly what the resident model gives; every layer has its hook."""
    model = make()
    expected = run(copy.deepcopy(model))
    place({name: model}, plan((name, Precision.FP32, Where.STREAMED)), CPU)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    assert layers
    assert all(layer._diffusers_hook.get_hook("group_offloading") is not None for layer in layers)
    for _ in range(2):
        assert torch.equal(run(model), expected)


def test_a_streamed_text_encoder_computes_the_same_bits():
    """Models of transformers stream as well as diffusers' do."""
    model = text_encoder()
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(tokens)[0]
        placed = place({"text_encoder": model}, plan(("text_encoder", Precision.FP32, Where.STREAMED)), CPU)
        with placed.on_device("text_encoder"):
            assert torch.equal(model(tokens)[0], expected)


def test_tiles_have_the_size_of_the_plan(monkeypatch):
    """The VAE sees no more than a tile at a time, though by its own config the image is a single one."""
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    whole, tiled = vae(), vae()
    place({"vae": whole}, plan(("vae", Precision.FP32, Where.RESIDENT)), CPU)
    place({"vae": tiled}, plan(("vae", Precision.FP32, Where.RESIDENT), vae_tile_px=32), CPU)
    seen = []
    decoder = tiled.decoder.forward
    monkeypatch.setattr(
        tiled.decoder, "forward", lambda tile, *rest: seen.append(tile.shape[-2:]) or decoder(tile, *rest)
    )
    with torch.no_grad():
        expected = whole.decode(latents, return_dict=False)[0]
        image = tiled.decode(latents, return_dict=False)[0]
    assert len(seen) > 1
    assert all(max(size) <= 16 for size in seen)
    assert image.shape == expected.shape
    assert whole.use_slicing
    assert not whole.use_tiling


def test_four_bits_are_the_loaders_part(monkeypatch):
    """Only 4-bit components want a config to load with; without bitsandbytes that is a clear end of the model."""
    four = plan(("transformer", Precision.NF4, Where.RESIDENT), ("vae", Precision.FP32, Where.RESIDENT))
    assert quantization_config_for(four, "vae") is None
    monkeypatch.setattr(placement_module, "can_load_4bit", lambda: False)
    with pytest.raises(ModelBroken, match="transformer is planned in 4 bits, which needs bitsandbytes"):
        quantization_config_for(four, "transformer")
    with pytest.raises(ValueError, match="transformer is planned in 4 bits, but was loaded without"):
        place({"transformer": flux()}, four, CPU)


def test_the_four_bit_config_leaves_the_embedders_alone(monkeypatch):
    """nf4 with doubly quantised scales, computing in the plan's precision, embedders kept."""
    monkeypatch.setattr(placement_module, "can_load_4bit", lambda: True)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.49.0")
    config = quantization_config_for(plan(("transformer", Precision.NF4, Where.RESIDENT)), "transformer")
    assert config.quantization_method() == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.float32
    linear = {name for name, layer in flux().named_modules() if isinstance(layer, torch.nn.Linear)}
    skipped = {
        name
        for name in linear
        if name.rpartition(".")[2] in config.llm_int8_skip_modules
        or any(f"{key}." in name for key in config.llm_int8_skip_modules)
    }
    assert skipped
    assert not any(name.startswith(placement_module._BLOCKS) for name in skipped)


def test_components_load_in_what_they_compute_in():
    """An fp8 transformer is loaded in 16 bits and narrowed by `place`."""
    part = ComponentPlan("transformer", Precision.FP8, Precision.BF16, Where.RESIDENT, 0)
    assert load_dtype(plan(components=(part,)), "transformer") is torch.bfloat16


def test_an_unplanned_component_is_a_mistake():
    """What the plan does not know has no place."""
    with pytest.raises(KeyError, match="no component 'unet', only vae"):
        place({"unet": unet()}, plan(("vae", Precision.FP32, Where.RESIDENT)), CPU)
