"""What is measured: models of random weights, on the device and written to disk, and models that are there."""

import pytest
import torch
from transformers import T5Config, T5EncoderModel

import tiny_models
from farm.catalog import ModelRow, Source
from tiny_flow_models import save_tiny_flux
from tiny_models import save_tiny_sd15, save_tiny_sdxl, tiny_row
from worker.bench.disk import DiskModel
from worker.bench.driving import Driver
from worker.bench.random_weights import RandomModel, make, make_in_ram
from worker.bench.reference import measure_reference
from worker.bench.units import native_unit
from worker.gpu import Device

CPU = Device(torch.device("cpu"), "cpu", None)
SD15 = {"text_encoder": tiny_models._text_encoder, "unet": tiny_models._unet, "vae": tiny_models._vae}


@pytest.fixture
def row() -> ModelRow:
    """Return a row whose source is the hub's, with a VAE of another repository."""
    row = tiny_row("tiny/model", num_inference_steps=2, width=32, height=32)
    return row.model_copy(update={"vae": Source(source="tiny/vae")})


def test_random_weights_render(row):
    """A model that nobody trained goes through the engine as any other."""
    model = RandomModel(row, SD15, CPU)
    assert model.num_values == sum(x.numel() for build in SD15.values() for x in build().parameters())
    with Driver(model.load(), max_batch=2) as driver:
        images = driver.render([native_unit(row, i) for i in range(3)])
    assert {image.pixels.shape for image in images} == {(32, 32, 3)}
    assert model.plan().summary == "everything on the card"
    assert model.work().step > model.work().encode > 0


def test_what_is_written_is_a_model_of_the_catalog(row, tmp_path):
    """Weights on disk lie where the row says, the VAE in its own place, and load as a worker loads them."""
    RandomModel(row, SD15, CPU).write(tmp_path, torch.float16)
    written = DiskModel(row, tmp_path, CPU)
    assert written.is_here()
    assert (tmp_path / "tiny" / "vae" / "diffusion_pytorch_model.safetensors").exists()
    assert {path.relative_to(tmp_path).parts[1] for path in written.files.weights.values()} == {"model", "vae"}
    with Driver(written.load(), max_batch=1) as driver:
        driver.render([native_unit(row, 0)])
    assert written.work() == RandomModel(row, SD15, CPU).work()


def test_a_model_that_is_not_here_is_not_looked_for_elsewhere(tmp_path):
    """Nothing is downloaded: a model of the hub that nobody has fetched is not here."""
    assert not DiskModel(tiny_row("nobody/has-this"), tmp_path, CPU).is_here()


@pytest.mark.parametrize(
    ("save", "fields"),
    [
        (save_tiny_sd15, {}),
        (save_tiny_sdxl, {"family": "sdxl"}),
        (
            lambda folder: save_tiny_flux(folder, guidance_embeds=True),
            {"family": "flux", "guidance": "embedded", "scheduler": "flow_euler", "max_sequence_length": 40},
        ),
    ],
    ids=["sd15", "sdxl", "flux"],
)
def test_diffusers_renders_the_same_files(save, fields, tmp_path):
    """The pipeline that rates are held against renders what ours renders, several at a time too."""
    row = tiny_row(save(tmp_path / "tiny"), num_inference_steps=2, **fields)
    model = DiskModel(row, tmp_path, CPU)
    assert model.is_here()
    pipeline = model.reference(torch.float32)
    assert measure_reference(pipeline, row, batch=2) > 0


def test_diffusers_renders_random_weights(row):
    """The same with weights that are made: its own ones, whole on the device."""
    pipeline = RandomModel(row, SD15, CPU).reference(torch.float32)
    ticks = iter([0.0, 8.0, 8.0, 10.0, 20.0, 24.0])
    # Three rounds of 8, 2 and 4 seconds, of which the first one is not counted.
    assert measure_reference(pipeline, row, batch=3, clock=lambda: next(ticks)) == pytest.approx(1.5)


def test_a_network_too_large_for_the_device_is_made_in_ram():
    """Its weights are there, finite, in the right precision, and shared ones still shared."""
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    plain = make(lambda: T5EncoderModel(config), device=CPU.torch, dtype=torch.bfloat16)
    network = make_in_ram(lambda: T5EncoderModel(config), device=CPU.torch, dtype=torch.bfloat16)
    expected = {name: (x.shape, x.dtype) for name, x in plain.state_dict().items()}
    assert {name: (x.shape, x.dtype) for name, x in network.state_dict().items()} == expected
    assert all(x.device.type == "cpu" and x.isfinite().all() for x in network.state_dict().values())
    assert network.shared.weight is network.encoder.embed_tokens.weight
    assert network(torch.zeros(1, 3, dtype=torch.long))[0].isfinite().all()
    assert network.encoder.block[0].layer[1].DenseReluDense.wo.weight.abs().max() <= 32**-0.5 * 1.01
    assert (network.encoder.final_layer_norm.weight == 1).all()


def test_one_prompt_of_the_benchmark_fits_one_chunk(row):
    """No image of a benchmark is longer in words than another: its rows share a forward."""
    loaded = RandomModel(row, SD15, CPU).load()
    forms = {loaded.encode(native_unit(row, index), ()).form for index in (0, 5, 99_999)}
    assert len(forms) == 1
