"""Files come from the hub: those that are needed and no others; and whatever goes wrong there is told in words."""

from __future__ import annotations

import errno
import json
import shutil
import socket
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from fake_hub import COMMIT, REVISION, serving_hub
from farm.catalog import ModelRow, Source
from farm.errors import HubDown, ModelBroken
from farm.weights import Hub, Weights

TOKEN = "hf_right"


def safetensors(*names, num_values=1):
    """Return an intact safetensors file of float32 tensors."""
    size = 4 * num_values
    header = {
        name: {"dtype": "F32", "shape": [num_values], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size * len(names))


UNET = safetensors("time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight")
MODEL = {
    "model_index.json": b"{}",
    "README.md": b"a model",
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": safetensors("a"),
    "text_encoder/pytorch_model.bin": b"a pickle",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": UNET,
    "unet/diffusion_pytorch_model.fp16.safetensors": UNET,
    "unet/diffusion_pytorch_model.non_ema.safetensors": UNET,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": safetensors("c"),
    "safety_checker/model.safetensors": safetensors("d"),
    "v1-5.safetensors": safetensors("e"),
}
for _name in MODEL:  # the cache keeps one copy of what is the same
    if _name.endswith((".json", ".txt")):
        MODEL[_name] = json.dumps({"file": _name}).encode()

ROW = ModelRow(name="tiny", family="sd15", source="someone/model", width=64, height=64)
CONFIGS = {name for name in MODEL if name.endswith((".json", ".txt"))}


@pytest.fixture
def hub():
    """Serve one repository to those who have the token."""
    with serving_hub({"someone/model": dict(MODEL)}, token=TOKEN) as hub:
        yield hub


@pytest.fixture
def weights(hub, tmp_path):
    """Return the weights of a farm that has nothing of its own, and the right token."""
    return weights_of(hub, tmp_path)


def weights_of(hub, tmp_path, token=TOKEN):
    """Return the weights of a farm whose hub is `hub`."""
    return Weights(tmp_path / "models", Hub(endpoint=hub.url, token=token, cache_dir=tmp_path / "cache"))


def test_only_what_is_needed_is_downloaded(hub, weights):
    """Configs, tokenizers and one set of safetensors for each part; the token is sent with every request."""
    files = weights.model(ROW)
    assert set(hub.downloaded) == CONFIGS | {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",  # nothing else is there
    }
    assert hub.tokens == {TOKEN}
    assert files.folder.name == COMMIT
    assert {part: chosen.variant for part, chosen in files.parts.items()} == {
        "text_encoder": None,
        "unet": None,
        "vae": "fp16",
    }


def test_half_precision_is_preferred_when_asked_for(hub, weights):
    """A card that computes in 16 bits downloads half as much."""
    weights.model(ROW, prefer_fp16=True)
    assert {name for name in hub.downloaded if name.startswith("unet/diffusion")} == {
        "unet/diffusion_pytorch_model.fp16.safetensors"
    }


def test_a_second_time_nothing_is_downloaded(hub, weights):
    """What is in the cache stays there."""
    first = weights.model(ROW)
    hub.downloaded.clear()
    assert weights.model(ROW) == first
    assert hub.downloaded == []


@pytest.mark.parametrize("revision", [None, REVISION])
def test_the_hub_is_not_needed_once_all_is_here(hub, weights, revision):
    """A hub that does not answer is no harm when the files were downloaded before."""
    row = ROW.model_copy(update={"revision": revision})
    first = weights.model(row)
    hub.status = 503
    assert weights.model(row) == first


def test_hub_away(hub, weights):
    """A hub that does not answer breaks no model: it is for later."""
    hub.status = 503
    with pytest.raises(HubDown, match="the hub answers someone/model with status 503"):
        weights.model(ROW)


def test_nobody_at_the_hubs_address(tmp_path):
    """A refused connection is for later as well."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # nor can anybody else listen there
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        weights = Weights(tmp_path, Hub(endpoint=gone, cache_dir=tmp_path))
        with pytest.raises(HubDown, match="the hub cannot be reached for someone/model"):
            weights.model(ROW)


def test_hub_goes_away_during_the_download(hub, weights, monkeypatch):
    """An answer that stops coming between listing and download is for later."""
    monkeypatch.setattr("farm.weights.hub.Hub._check_room", lambda *_: setattr(hub, "status", 502))
    with pytest.raises(HubDown):
        weights.model(ROW)


def test_gated_repository(hub, weights):
    """A licence that was not accepted: where to accept it, and which variable takes the token."""
    hub.gated.add("someone/model")
    with pytest.raises(ModelBroken, match=r"accept it at https://huggingface\.co/someone/model, and set HF_TOKEN"):
        weights.model(ROW)


def test_without_a_token(hub, tmp_path, monkeypatch):
    """A private repository looks like a missing one, so both are named."""
    monkeypatch.setattr(huggingface_hub.utils._headers, "get_token", lambda: None)  # that of whoever runs the tests
    with pytest.raises(ModelBroken, match=r"no repository someone/model, or it is private .*\(HF_TOKEN"):
        weights_of(hub, tmp_path, token=None).model(ROW)


def test_wrong_token(hub, tmp_path):
    """A token that the hub does not know is refused."""
    with pytest.raises(ModelBroken, match="the hub refuses the token for someone/model"):
        weights_of(hub, tmp_path, token="hf_wrong").model(ROW)


def test_missing_repository(weights):
    """A repository that is not there is named."""
    with pytest.raises(ModelBroken, match="the hub has no repository someone/other"):
        weights.model(ROW.model_copy(update={"source": "someone/other"}))


def test_missing_revision(weights):
    """A revision that is not there is named."""
    with pytest.raises(ModelBroken, match="someone/model has no revision 'v2'"):
        weights.model(ROW.model_copy(update={"revision": "v2"}))


def test_pickles_are_not_even_downloaded(hub, weights):
    """A repository whose weights are pickled is refused from its list of files."""
    del hub.repositories["someone/model"]["text_encoder/model.safetensors"]
    with pytest.raises(ModelBroken, match="text_encoder holds only pickled weights, which can run code"):
        weights.model(ROW)
    assert hub.downloaded == []


def test_one_file_of_a_repository(hub, weights):
    """A source with a file name brings this file and no other."""
    path = weights.file(Source(source="someone/model", filename="v1-5.safetensors", revision=REVISION))
    assert path.read_bytes() == MODEL["v1-5.safetensors"]
    assert hub.downloaded == ["v1-5.safetensors"]


@pytest.mark.parametrize(
    ("filename", "reason"),
    [
        ("v1-6.safetensors", "someone/model has no file 'v1-6.safetensors', only .*v1-5.safetensors"),
        ("text_encoder/pytorch_model.bin", "only pickled weights"),
        ("README.md", "README.md is no .safetensors file"),
    ],
)
def test_file_that_cannot_be_had(hub, weights, filename, reason):
    """A missing file, a pickle and something else are told apart, and nothing is downloaded."""
    with pytest.raises(ModelBroken, match=reason):
        weights.file(Source(source="someone/model", filename=filename))
    assert hub.downloaded == []


def test_part_of_its_own(hub, weights):
    """A VAE's or a ControlNet's repository has its config and weights at its root; a whole model's has a folder."""
    hub.repositories["someone/vae"] = {
        "config.json": b"{}",
        "diffusion_pytorch_model.safetensors": safetensors("c"),
        "sdxl_vae.safetensors": safetensors("c"),
    }
    alone = weights.part(Source(source="someone/vae"), "vae")
    assert [path.name for path in alone.weights] == ["diffusion_pytorch_model.safetensors"]
    assert set(hub.downloaded) == {"config.json", "diffusion_pytorch_model.safetensors"}
    within = weights.part(Source(source="someone/model"), "vae")
    assert within.folder.name == "vae"


def test_no_room_on_the_disk(hub, weights, monkeypatch):
    """A download that the disk has no room for is refused before it begins, with the numbers."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ModelBroken, match=r"no room on the disk for someone/model: 0\.0 GB are to be downloaded"):
        weights.model(ROW)
    assert hub.downloaded == []


def test_disk_becomes_full(weights, monkeypatch):
    """A disk that others fill meanwhile is told from a hub that is away."""

    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fill)
    with pytest.raises(ModelBroken, match="the disk became full"):
        weights.model(ROW)


def test_offline(weights, monkeypatch):
    """HF_HUB_OFFLINE is named where it is what keeps a model away: waiting does not change it."""

    def refuse(*_, **__):
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ModelBroken, match="has not been downloaded, and HF_HUB_OFFLINE is set"):
        weights.model(ROW)


def test_progress(hub, weights, monkeypatch):
    """Whoever waits hears of bytes, never of fewer than before, up to all of them, and of nothing after that."""
    monkeypatch.setattr("farm.weights.hub._WATCH_S", 0.0)  # as often as can be: beside every change
    hub.repositories["someone/model"]["vae/diffusion_pytorch_model.fp16.safetensors"] = safetensors(
        "c", num_values=100_000
    )
    heard = []
    weights.model(ROW, on_progress=lambda done, total: heard.append((done, total)))
    total = sum(len(hub.repositories["someone/model"][name]) for name in set(hub.downloaded))
    assert heard[-1] == (total, total)
    assert all(0 <= done <= total for done, _ in heard)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
