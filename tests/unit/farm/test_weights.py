"""Files are chosen by name, recognised by their tensors, and known by digests that are read once."""

from __future__ import annotations

import hashlib
import json
import os
from types import SimpleNamespace

import pytest

from farm.catalog import ModelRow
from farm.errors import Fatal, ModelBroken
from farm.plans import Precision
from farm.plans.working import FACTS
from farm.weights import Digests, Hub, TensorInfo, Weights, choose_weights, digests, recognise
from farm.weights.choose import COMPONENTS, FP16_FAMILIES, choose_model

PLAIN = "diffusion_pytorch_model.safetensors"
HALF = "diffusion_pytorch_model.fp16.safetensors"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
HALF_SHARDS = [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.mark.parametrize(
    ("names", "prefer_fp16", "variant", "chosen"),
    [
        ([PLAIN], False, None, [PLAIN]),
        ([PLAIN, HALF], False, None, [PLAIN]),
        ([PLAIN, HALF], True, "fp16", [HALF]),
        ([HALF], False, "fp16", [HALF]),
        ([PLAIN], True, None, [PLAIN]),
        ([*SHARDS, "model.safetensors.index.json"], False, None, SHARDS),
        ([*SHARDS, *HALF_SHARDS], True, "fp16", HALF_SHARDS),
        (["model.safetensors", *SHARDS], False, None, ["model.safetensors"]),
        ([*SHARDS, HALF_SHARDS[0]], True, None, SHARDS),  # half of the halves is no help
        (["model.safetensors", "model.ema.safetensors", "pytorch_model.bin"], False, None, ["model.safetensors"]),
    ],
)
def test_choice_of_weights(names, prefer_fp16, variant, chosen):
    """One complete set of safetensors is chosen, in 16 bits when that is preferred or nothing else is there."""
    found = choose_weights(names, "here", prefer_fp16=prefer_fp16)
    assert (found.variant, list(found.names)) == (variant, chosen)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "here holds no weights"),
        (["model.ema.safetensors"], "here holds no weights"),
        (["pytorch_model.bin", "config.json"], "only pickled weights, which can run code"),
        (["model.ckpt"], "only pickled weights, which can run code"),
        (SHARDS[:1], "here has only 1 of the 2 files of its weights"),
    ],
)
def test_no_weights_to_choose(names, reason):
    """Without a whole set of safetensors the reason is named."""
    with pytest.raises(ModelBroken, match=reason):
        choose_weights(names, "here", prefer_fp16=False)


def test_families_that_cards_compute_in_fp16():
    """Plans and files agree on them; other families are not brought in fp16, which has less range than bf16."""
    assert {family for family, facts in FACTS.items() if facts.precision is Precision.FP16} == FP16_FAMILIES


@pytest.mark.parametrize(("family", "denoiser", "expected"), [("sdxl", "unet", "fp16"), ("flux", "transformer", None)])
def test_half_precision_is_for_families_that_compute_in_it(tmp_path, family, denoiser, expected):
    """Where there are both, a card takes fp16 files for SDXL and not for Flux."""
    marks = {
        "unet": ("time_embedding.linear_1.weight", "add_embedding.linear_1.weight"),
        "transformer": ("single_transformer_blocks.0.x",),
    }
    for part in COMPONENTS[family]:
        (tmp_path / "model" / part).mkdir(parents=True)
        for name in (PLAIN, HALF):
            write_safetensors(tmp_path / "model" / part / name, *marks.get(part, ("x",)))
    row = ModelRow(
        name="x",
        family=family,
        source="model",
        width=64,
        height=64,
        scheduler="flow_euler" if family == "flux" else "euler",
    )
    files = Weights(tmp_path, Hub(is_asked=False)).model(row, prefer_fp16=True)
    assert files.parts[denoiser].variant == expected


def write_safetensors(path, *names):
    """Write a file of one number per name."""
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(names)))


def test_sd3_may_do_without_its_t5():
    """A repository without the T5 is complete, one without another encoder is not."""
    parts = [part for part in COMPONENTS["sd3"] if not part.endswith("_3")]
    names = [f"{part}/{'tokenizer' if 'tokenizer' in part else 'model'}.safetensors" for part in parts]
    weights_of = [part for part in COMPONENTS["sd3"] if "tokenizer" not in part]
    assert "text_encoder_2/model.safetensors" in choose_model(names, "sd3", weights_of, prefer_fp16=False)
    with pytest.raises(ModelBroken, match="text_encoder_2 holds no weights"):
        choose_model([name for name in names if "encoder_2" not in name], "sd3", weights_of, prefer_fp16=False)


UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
CASES = {
    "a Stable Diffusion 1 model": ("sd15", {FIRST: (320, 4, 3, 3), "cond_stage_model.transformer.x": (1,)}),
    "a Stable Diffusion 2 model": ("sd15", {FIRST: (320, 4, 3, 3), "cond_stage_model.model.x": (1,)}),
    "an SDXL model": ("sdxl", {FIRST: (320, 4, 3, 3), f"{UNET}label_emb.0.0.weight": (1,)}),
    "an SDXL refiner": (None, {FIRST: (384, 4, 3, 3), "conditioner.embedders.0.model.ln_final.weight": (1,)}),
    "a UNet of 8 input channels, made for editing and not for prompts and masks": (
        None,
        {FIRST: (320, 8, 3, 3)},
    ),
    "a Flux.1 [schnell] model": ("flux", {"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}),
    "a Flux.1 [dev] model": ("flux", {"double_blocks.0.x": (1,), f"{UNET}guidance_in.in_layer.weight": (1,)}),
    "a Flux.2 model": (None, {"double_blocks.0.x": (1,), "double_stream_modulation_img.lin.weight": (1,)}),
    "a Chroma model": (None, {"double_blocks.0.x": (1,), "distilled_guidance_layer.in_proj.weight": (1,)}),
    "a Stable Diffusion 3.5 Large model": (
        "sd3",
        {f"joint_blocks.{i}.x_block.attn.qkv.weight": (1,) for i in range(38)},
    ),
    "a Stable Diffusion 3.5 Medium model": ("sd3", {"joint_blocks.0.x_block.attn2.qkv.weight": (1,)}),
    "a Stable Diffusion 3 model": ("sd3", {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (1,)}),
    "a LoRA": (None, {"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}),
    "a ControlNet": (None, {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (1,)}),
    "a VAE": (None, {"decoder.conv_in.weight": (512, 4, 3, 3)}),
    "a textual inversion embedding": (None, {"emb_params": (8, 768)}),
    "a text encoder": (None, {"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)}),
    "an upscaler": (None, {"model.0.weight": (64, 3, 3, 3), "conv_first.weight": (64, 3, 3, 3)}),
    "something unknown (its first tensor is 'what')": (None, {"what": (1,)}),
    "an empty file": (None, {}),
}


@pytest.mark.parametrize("words", CASES)
def test_recognised(words):
    """A file is called by what people call it, and has a family if it can be rendered with."""
    family, shapes = CASES[words]
    kind = recognise({name: TensorInfo("F16", shape, 2) for name, shape in shapes.items()})
    assert (kind.words, kind.family) == (words, family)
    assert (kind.config is not None) == (family is not None)


@pytest.fixture
def file(tmp_path):
    """Return a file to hash."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def counted(monkeypatch):
    """Count the files that are read to be hashed."""
    seen = []
    compute = digests.compute
    monkeypatch.setattr(digests, "compute", lambda path, *_: seen.append(path) or compute(path))
    return seen


def test_digest_is_read_once(file, tmp_path, counted):
    """A file that has not changed is not read again, not even by another process; one that has, is."""
    cache = tmp_path / "digests.json"
    expected = hashlib.sha256(b"weights").hexdigest()
    assert Digests(cache).of(file) == Digests(cache).of(file) == expected
    assert counted == [file]
    file.write_bytes(b"changed")
    os.utime(file, ns=(1, 1))
    assert Digests(cache).of(file) == hashlib.sha256(b"changed").hexdigest()
    assert len(counted) == 2
    assert list(tmp_path.glob("digests.json*")) == [cache]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2]}', '{"a": ["x", 2, "y"]}', "\x00"])
def test_broken_cache_of_digests(file, tmp_path, content):
    """A cache that is damaged is begun anew."""
    cache = tmp_path / "digests.json"
    cache.write_text(content, "utf-8")
    assert Digests(cache).of(file) == hashlib.sha256(b"weights").hexdigest()
    assert len(json.loads(cache.read_text("utf-8"))) == 1


def test_digests_where_nothing_can_be_written(file, tmp_path):
    """A folder that is not there, or not to be written to, costs time and nothing else."""
    assert Digests(tmp_path / "nowhere" / "digests.json").of(file) == hashlib.sha256(b"weights").hexdigest()
    assert Digests(None).of(file) == hashlib.sha256(b"weights").hexdigest()


def test_progress_of_hashing(file):
    """Whoever waits hears of bytes."""
    heard = []
    Digests(None).of(file, on_progress=lambda *both: heard.append(both))
    assert heard == [(7, 7)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("model.ckpt", "model.ckpt holds only pickled weights"),
        ("model.gguf", "model.gguf is no .safetensors file"),
        ("model.safetensors", "model.safetensors is no safetensors file, or it is cut short"),
        ("nowhere.safetensors", "there is no folder or file .*nowhere.safetensors"),
        ("folder/nowhere", "the hub has no"),
    ],
)
def test_local_file_that_is_no_model(tmp_path, source, reason):
    """A pickle, another format, a page that was saved instead of a file: each is told by its name."""
    for name in ("model.ckpt", "model.gguf", "model.safetensors"):
        (tmp_path / name).write_bytes(b"<html>")

    def fetch(*_, **__):
        raise ModelBroken("the hub has no folder/nowhere")

    hub = SimpleNamespace(fetch=fetch)
    with pytest.raises(Fatal, match=reason):
        Weights(tmp_path, hub).model(ModelRow(name="x", family="sd15", source=source, width=64, height=64))


def test_file_in_a_local_folder(tmp_path):
    """A file name picks one file of a local folder as it does of a repository."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "vae.safetensors").write_bytes(b"")
    row = ModelRow(name="x", family="sd15", source="folder", filename="vae.safetensors", width=64, height=64)
    assert Weights(tmp_path, Hub()).file(row) == tmp_path / "folder" / "vae.safetensors"
