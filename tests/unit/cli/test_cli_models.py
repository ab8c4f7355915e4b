"""The files behind catalog rows, by the command line: fetched, checked, registered, taken out; and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import main as cli_main
from cli import model_files
from cli.exits import CliError
from fake_hub import COMMIT, serving_hub
from farm.catalog import ModelRow, load_catalog
from farm.weights import Hub

ROOT = Path(__file__).parents[3]
UNET_NAMES = ("time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight")
SDXL_FILE_NAMES = ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight")


def safetensors(*names, shape=(1, 4)):
    """Return an intact safetensors file of float32 tensors."""
    size = 4 * shape[0] * shape[1]
    header = {
        name: {"dtype": "F32", "shape": list(shape), "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size * len(names))


REPOSITORY = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{ }",
    "tokenizer/vocab.json": b"{  }",
    "text_encoder/config.json": b"{   }",
    "text_encoder/model.safetensors": safetensors("a"),
    "unet/config.json": b"{    }",
    "unet/diffusion_pytorch_model.safetensors": safetensors(*UNET_NAMES),
    "vae/config.json": b"{     }",
    "vae/diffusion_pytorch_model.safetensors": safetensors("b"),
}
ROW = '[[model]]\nname = "mine"\nfamily = "sd15"\nsource = "someone/model"\nwidth = 64\nheight = 64\n'


@pytest.fixture
def models_dir(tmp_path, monkeypatch):
    """Have a models folder and a catalog file of one's own; return the folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "catalog.toml").write_text(f"# my models\n{ROW}", "utf-8")
    monkeypatch.setenv("FARM_MODELS_DIR", str(folder))
    monkeypatch.setenv("FARM_CATALOG_FILE", str(tmp_path / "catalog.toml"))
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture
def catalog_file(models_dir):
    """Return the catalog file."""
    return models_dir.parent / "catalog.toml"


def farm_models(*arguments):
    """Run `farm models …`; return its output. Raises CliError, as main does."""
    result = CliRunner().invoke(cli_main.app, ["models", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def save_folder(folder):
    """Save the repository as a folder."""
    for name, content in REPOSITORY.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.usefixtures("models_dir")
def test_pull_and_verify_as_users_do(tmp_path, monkeypatch):
    """In a process of its own: HF_ENDPOINT, HF_HOME and HF_TOKEN mean what they mean everywhere; a bit's flip shows."""
    # What a process makes of HF_HOME is told by this one, which has read its own environment long ago.
    monkeypatch.setattr(model_files, "Hub", partial(Hub, cache_dir=tmp_path / "hf" / "hub"))
    with pytest.raises(CliError, match="mine: someone/model has not been downloaded"):
        farm_models("verify", "mine")
    with serving_hub({"someone/model": REPOSITORY}, token="hf_right") as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_right"}
        command = [sys.executable, "-m", "cli.main", "models"]
        how = {"cwd": ROOT, "env": env, "capture_output": True, "text": True}
        pulled = subprocess.run([*command, "pull", "mine"], check=False, **how)
        assert pulled.returncode == 0, pulled.stderr
        assert "mine is here" in pulled.stdout
        assert hub.tokens == {"hf_right"}
    assert farm_models("verify", "mine").count("as the hub has it") == 3
    path = tmp_path / "hf" / "hub" / "models--someone--model" / "snapshots" / COMMIT / "vae"
    weights = path / "diffusion_pytorch_model.safetensors"
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    damaged = subprocess.run([*command, "verify", "mine"], check=False, **how)
    assert damaged.returncode == 1
    assert "corrupt" in damaged.stdout
    assert str(weights) in damaged.stderr.replace("\n", "")


@pytest.mark.usefixtures("models_dir")
def test_pull_says_why_not(monkeypatch, tmp_path):
    """What the hub refuses is one message with the model's name, and one that is away is for later."""
    with serving_hub({}) as hub:
        monkeypatch.setattr(model_files, "Hub", partial(Hub, endpoint=hub.url, cache_dir=tmp_path))
        with pytest.raises(CliError, match="mine: the hub has no repository someone/model"):
            farm_models("pull", "mine")
        hub.status = 500
        with pytest.raises(CliError, match="mine: the hub answers someone/model with status 500; try again later"):
            farm_models("pull", "mine")


@pytest.mark.usefixtures("models_dir")
@pytest.mark.parametrize("command", ["pull", "verify"])
def test_unknown_name(command):
    """A name that no row has is answered with those that there are."""
    with pytest.raises(CliError, match=r"the catalog has no 'nobody'; it has: scenes, .*mine.*sd15-canny"):
        farm_models(command, "nobody")


def test_verify_local_files(models_dir, catalog_file):
    """Local weights are compared with their first reading; a bit that flips in silence is found."""
    save_folder(models_dir / "local")
    catalog_file.write_text(ROW.replace("someone/model", "local"), "utf-8")
    assert farm_models("verify", "mine").count("read for the first time") == 3
    assert farm_models("verify", "mine").count("as it was") == 3
    path = models_dir / "local" / "unet" / "diffusion_pytorch_model.safetensors"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CliError, match=f"corrupt: {path}"):
        farm_models("verify", "mine")


def test_verify_what_is_cut_short(models_dir, catalog_file):
    """A file that lacks its end is named without being read whole."""
    save_folder(models_dir / "local")
    catalog_file.write_text(ROW.replace("someone/model", "local"), "utf-8")
    path = models_dir / "local" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CliError, match=f"mine: {path} is cut short"):
        farm_models("verify", "mine")


def test_add_tells_the_family_from_the_file(models_dir, catalog_file):
    """A file from civitai needs no more than a name: what it is stands in its tensors."""
    (models_dir / "dream.safetensors").write_bytes(safetensors(*SDXL_FILE_NAMES))
    assert "an SDXL model" in farm_models("add", "dream", "--source", "dream.safetensors", "--steps", 12)
    row = load_catalog(catalog_file).row("dream")
    assert row == ModelRow(
        name="dream",
        family="sdxl",
        source="dream.safetensors",
        width=1024,
        height=1024,
        num_inference_steps=12,
        guidance_scale=5.0,
        scheduler="dpmpp_2m_karras",
    )
    text = catalog_file.read_text("utf-8")
    assert text.startswith(f"# my models\n{ROW}")


def test_add_a_folder(models_dir, catalog_file):
    """A diffusers folder tells its family too; outside of the models folder it is named in full."""
    save_folder(models_dir.parent / "elsewhere")
    farm_models("add", "other", "--source", models_dir.parent / "elsewhere")
    row = load_catalog(catalog_file).row("other")
    assert (row.family, row.source, row.width) == ("sd15", str(models_dir.parent / "elsewhere"), 512)


@pytest.mark.usefixtures("models_dir")
def test_add_a_repository(catalog_file):
    """Everything that a row can say about a source arrives in it, quoted as TOML wants it."""
    arguments = "--source someone/other --family sdxl --revision v2 --filename a.safetensors --config someone/base"
    farm_models(
        "add", "other", *arguments.split(), "--vae", "someone/vae", "--description", 'a "nice" \\ model é\n[[x]]'
    )
    row = load_catalog(catalog_file).row("other")
    assert (row.source, row.revision, row.filename, row.config) == (
        *("someone/other", "v2", "a.safetensors", "someone/base"),
    )
    assert row.vae is not None
    assert row.vae.source == "someone/vae"
    assert row.description == 'a "nice" \\ model é\n[[x]]'


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["mine", "--source", "a/b", "--family", "sd15"], "the catalog has a model 'mine' already"),
        (["sdxl", "--source", "a/b", "--family", "sd15"], "the catalog has a model 'sdxl' already"),
        (["x", "--source", "a/b"], "a/b is not here, so its family cannot be told: say --family"),
        (["x", "--source", "nowhere.safetensors"], "there is no folder or file"),
        (["x", "--source", "page.safetensors"], "is no safetensors file"),
        (["x", "--source", "model.ckpt"], "only pickled weights"),
        (["x", "--source", "lora.safetensors"], "lora.safetensors is a LoRA, not a model that can be rendered with"),
        (["x", "--source", "dream.safetensors", "--family", "sd15"], "is an SDXL model, not a model of family sd15"),
        (["Not A Name", "--source", "a/b", "--family", "sd15"], "name: String should match pattern"),
        (["x", "--source", "a/b", "--family", "sd15", "--scheduler", "nobodys"], "nobodys"),
        (["x", "--source", "a/b", "--family", "flux", "--scheduler", "ddim"], "ddim"),
    ],
)
def test_add_refuses(models_dir, catalog_file, arguments, reason):
    """What makes no sense is refused, and the file stays as it was."""
    (models_dir / "page.safetensors").write_bytes(b"<html>")
    (models_dir / "model.ckpt").write_bytes(b"")
    (models_dir / "lora.safetensors").write_bytes(safetensors("lora_unet_a.lora_down.weight"))
    (models_dir / "dream.safetensors").write_bytes(safetensors(*SDXL_FILE_NAMES))
    before = catalog_file.read_text("utf-8")
    with pytest.raises(CliError, match=reason):
        farm_models("add", *arguments)
    assert catalog_file.read_text("utf-8") == before


def test_add_needs_a_file(models_dir, monkeypatch):
    """Without a catalog file both ways to name one are told; one that is named is begun."""
    monkeypatch.delenv("FARM_CATALOG_FILE")
    with pytest.raises(CliError, match="--catalog FILE, or FARM_CATALOG_FILE"):
        farm_models("add", "x", "--source", "a/b", "--family", "sd15")
    path = models_dir / "new" / "catalog.toml"
    farm_models("add", "x", "--source", "a/b", "--family", "sd15", "--catalog", path)
    assert "x" in load_catalog(path)


@pytest.mark.usefixtures("models_dir")
def test_remove(catalog_file):
    """One row leaves, with what belongs to it; comments and the others stay."""
    other = '[[model]]  # a comment\nname = "other"\nfamily = "sd15"\nsource = "a/b"\nwidth = 64\nheight = 64\n'
    lora = '[[lora]]\nname = "style"\nfamily = "sd15"\nsource = "a/lora"\n'
    nested = '[model.vae]\nsource = "a/vae"\n'
    catalog_file.write_text(f"# mine\n{ROW}{nested}\n{other}{lora}", "utf-8")
    farm_models("remove", "mine")
    assert catalog_file.read_text("utf-8") == f"# mine\n{other}{lora}"
    with pytest.raises(CliError, match="has no model 'mine'; it has: other"):
        farm_models("remove", "mine")
    with pytest.raises(CliError, match="has no model 'scenes'"):
        farm_models("remove", "scenes")


@pytest.mark.usefixtures("models_dir")
def test_remove_what_was_added(catalog_file):
    """A row that was added, whatever its words, is the one that goes."""
    before = tomllib.loads(catalog_file.read_text("utf-8"))
    farm_models("add", "x", "--source", "a/b", "--family", "sd15", "--description", "[[model]]\nname = 'mine'")
    farm_models("remove", "x")
    assert tomllib.loads(catalog_file.read_text("utf-8")) == before
