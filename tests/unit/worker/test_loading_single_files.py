"""One file in an original layout is the same model as the folder it was made from, to the last tensor and pixel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.errors import ModelBroken
from original_layouts import (
    InFolder,
    bfl,
    comfy_flux,
    compvis,
    compvis_2,
    ldm_vae,
    sgm,
    stability_sd3,
    stability_sd3_with_text,
    write,
)
from tiny_flow_models import save_tiny_flux, save_tiny_sd3
from tiny_models import save_tiny_sd15, save_tiny_sd21, save_tiny_sdxl, tiny_row, tiny_unit
from worker.engine import Engine
from worker.pipelines import loading
from worker.pipelines.loading import load_pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from worker.pipelines.base import Pipeline

CPU = torch.device("cpu")
FLOW = {"scheduler": "flow_euler", "max_sequence_length": 16}

CASES = {
    "sd15": (save_tiny_sd15, compvis, {"family": "sd15"}),
    "sd21": (save_tiny_sd21, compvis_2, {"family": "sd15"}),
    "sdxl": (save_tiny_sdxl, sgm, {"family": "sdxl"}),
    "flux-dev": (
        lambda folder: save_tiny_flux(folder, guidance_embeds=True),
        bfl,
        {"family": "flux", "guidance": "embedded", **FLOW},
    ),
    "flux-schnell-whole": (
        lambda folder: save_tiny_flux(folder, guidance_embeds=False),
        comfy_flux,
        {"family": "flux", "guidance": "embedded", **FLOW},
    ),
    "sd3": (save_tiny_sd3, stability_sd3, {"family": "sd3", **FLOW}),
    "sd3-whole": (
        save_tiny_sd3,
        stability_sd3_with_text,
        {"family": "sd3", **FLOW},
    ),
}


@dataclass
class Case:
    """One model as a folder and as a single file whose configs are in that folder: both pipelines, and their parts."""

    folder: tuple[Pipeline, dict[str, object]]
    file: tuple[Pipeline, dict[str, object]]
    path: Path
    scheduler: str


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Return one model, loaded in both ways."""
    save, layout, fields = CASES[request.param]
    models_dir = tmp_path_factory.mktemp(request.param)
    folder = save(models_dir / "folder")
    path = write(layout, folder, models_dir / "model.safetensors")
    row = tiny_row(folder, **fields)
    return Case(
        folder=load_with_parts(row, models_dir),
        file=load_with_parts(tiny_row(path, config="folder", **fields), models_dir),
        path=path,
        scheduler="euler" if row.scheduler_group == "diffusion" else "flow_euler",
    )


def load_with_parts(row, models_dir):
    """Load a model; return it, and the parts that its family was given."""
    kept = {}
    real = loading.family_class(row.family)

    class Recorder(real):
        def __init__(self, loaded):
            kept.update(loaded.parts)
            super().__init__(loaded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "family_class", lambda _: Recorder)
        return load_pipeline(row, models_dir=models_dir, device=CPU), kept


def test_every_tensor_is_the_same(case):
    """All parts have the same tensors, of the same types, in the same state, whichever way they came."""
    (_, expected), (_, found) = case.folder, case.file
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        if not isinstance(part, torch.nn.Module):
            continue
        assert type(found[name]) is type(part)
        ours, theirs = found[name].state_dict(), part.state_dict()
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert ours[key].dtype == tensor.dtype, key
            assert torch.equal(ours[key], tensor), f"{name} {key}"
        assert not found[name].training
        assert not any(parameter.requires_grad for parameter in found[name].parameters())


def test_pixels_are_the_same(case):
    """Both render the same bytes."""
    images = []
    for pipeline, _ in (case.folder, case.file):
        engine = Engine(lambda _, pipeline=pipeline: pipeline, max_batch=2)
        engine.start()
        images.append(engine.submit(tiny_unit(scheduler=case.scheduler)).result(timeout=60).pixels)
        engine.stop()
    assert np.array_equal(*images)
    assert images[0].std() > 0


def test_hash_is_the_files_own(case):
    """A single file is known by its own sha256, as on civitai."""
    pipeline, _ = case.file
    assert pipeline.model_hash == hashlib.sha256(case.path.read_bytes()).hexdigest()


def test_flux_dev_with_the_configs_of_schnell(tmp_path):
    """Whether a Flux takes its guidance as an input is told by the file, not by the config that is lent to it."""
    dev = save_tiny_flux(tmp_path / "dev", guidance_embeds=True)
    save_tiny_flux(tmp_path / "schnell", guidance_embeds=False, seed=1)
    fields = {"family": "flux", "guidance": "embedded", **FLOW}
    path = write(bfl, dev, tmp_path / "model.safetensors")
    found = load_with_parts(tiny_row(path, config="schnell", **fields), tmp_path)[1]["transformer"]
    expected = load_with_parts(tiny_row(dev, **fields), tmp_path)[1]["transformer"].state_dict()
    assert found.config.guidance_embeds
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert found.state_dict().keys() == expected.keys()


@pytest.fixture
def sd15(tmp_path):
    """Return the folder and the single file of a small SD 1.5."""
    folder = save_tiny_sd15(tmp_path / "folder")
    return folder, write(compvis, folder, tmp_path / "model.safetensors")


def load(path, **fields):
    """Load a file whose configs are in `folder` beside it."""
    row = tiny_row(path, **{"config": "folder", **fields})
    return load_pipeline(row, models_dir=path.parent, device=CPU)


def change(path, edit):
    """Rewrite a file after `edit` has changed its tensors."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_parts_that_the_file_lacks_come_from_its_config_folder(sd15):
    """A pruned file without VAE and text encoder is completed."""
    _, path = sd15
    whole = load(path)
    change(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if not name.startswith("model.")])
    pruned = load(path)
    latents = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        assert torch.equal(pruned.decode(latents), whole.decode(latents))


def test_other_vae_from_a_single_file(sd15, tmp_path):
    """A VAE as people share it, alone in a file, takes the place of the model's own."""
    _, path = sd15
    other = save_tiny_sd15(tmp_path / "other", seed=1)
    save_file(
        {name: tensor.contiguous() for name, tensor in ldm_vae(InFolder(other)).items()}, tmp_path / "vae.safetensors"
    )
    latents = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        replaced = load(path, vae={"source": "vae.safetensors"}).decode(latents)
        expected = load_pipeline(tiny_row(other), models_dir=tmp_path, device=CPU).decode(latents)
        own = load(path).decode(latents)
    assert torch.equal(replaced, expected)
    assert not torch.equal(replaced, own)


@pytest.mark.parametrize(("marks", "expected"), [((), "epsilon"), (("v_pred", "ztsnr"), "v_prediction")])
def test_file_says_what_it_predicts(sd15, marks, expected):
    """Files that are marked as predicting velocity overrule the config that is taken from elsewhere."""
    _, path = sd15
    change(path, lambda tensors: tensors.update({mark: torch.tensor([]) for mark in marks}))
    config = load(path).scheduler_config
    assert config["prediction_type"] == expected
    assert config.get("rescale_betas_zero_snr", False) == ("ztsnr" in marks)


def test_inpainting_model(sd15):
    """A file whose UNet takes mask and masked picture needs no config of its own."""
    _, path = sd15
    change(path, widen(9))
    assert load(path).takes_mask


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_file_in_float32(sd15, dtype):
    """A file in 16 bits, or in plain 8, is computed with in float32 on a CPU."""
    _, path = sd15
    change(path, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert load(path).dtype == torch.float32
    engine = Engine(lambda _: load(path), max_batch=1)
    engine.start()
    assert engine.submit(tiny_unit()).result(timeout=60).pixels.std() > 0
    engine.stop()


def drop_a_weight(tensors):
    """Drop one tensor of the UNet."""
    del tensors["model.diffusion_model.time_embed.0.weight"]


def scale_in_8_bits(tensors):
    """Add what files with scaled 8-bit weights have."""
    tensors["scaled_fp8"] = torch.zeros(2)


def widen(channels):
    """Return what gives the UNet so many channels."""
    first = torch.full((8, channels, 3, 3), 0.1)
    return lambda tensors: tensors.update({"model.diffusion_model.input_blocks.0.0.weight": first})


def make_other_shapes(tensors):
    """Give a layer of the UNet another shape."""
    tensors["model.diffusion_model.time_embed.0.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (
            drop_a_weight,
            "model.safetensors lacks 1 weights of the UNet2DConditionModel, time_embedding.linear_1.weight",
        ),
        (scale_in_8_bits, "quantised weights"),
        (widen(8), "8 input channels"),
        (make_other_shapes, "size mismatch for time_embedding.linear_1.weight"),
    ],
)
def test_file_that_cannot_be_loaded(sd15, edit, reason):
    """What is wrong with a file is told with the model's name."""
    _, path = sd15
    change(path, edit)
    with pytest.raises(ModelBroken) as caught:
        load(path)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"model tiny ({path}): ")


def test_wrong_family(tmp_path):
    """An SDXL file in a row of SD 1.5 is called an SDXL model."""
    path = write(sgm, save_tiny_sdxl(tmp_path / "folder"), tmp_path / "model.safetensors")
    with pytest.raises(ModelBroken, match=r"model\.safetensors is an SDXL model, and the catalog says .* sd15"):
        load(path)


def test_config_folder_that_is_missing(sd15):
    """The error says what was wanted of which folder, and what for."""
    _, path = sd15
    with pytest.raises(ModelBroken, match=r"is a Stable Diffusion 1 model; its configs, tokenizers are taken from no"):
        load(path, config="nowhere")
