"""Enlarging by a model: weights in every layout give one network, tiles leave no seams, names lead nowhere else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from farm.errors import ModelBroken, RenderFailed
from worker.esrgan import RRDBNet
from worker.upscale import Upscalers, enlarge_in_tiles

CPU = torch.device("cpu")


def tiny_network(**sizes):
    """Return a random network of two blocks whose output is not all clipped."""
    torch.manual_seed(0)
    network = RRDBNet(**{"num_features": 8, "num_blocks": 2, "num_growth": 4, **sizes}).eval()
    with torch.no_grad():
        network.conv_last.weight *= 20
        network.conv_last.bias += 0.5
    return network.requires_grad_(requires_grad=False)


def picture(width=40, height=24):
    """Return a picture of noise."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def real_esrgan(network):
    """Return weights as Real-ESRGAN names them."""
    names = {f"conv_ups.{i}.": f"conv_up{i + 1}." for i in range(2)}
    return {_replaced(name, names): tensor for name, tensor in network.state_dict().items()}


def esrgan(network):
    """Return weights as ESRGAN's own code names them, in a checkpoint's `params_ema`."""
    names = {"conv_up": "upconv", "conv_body": "trunk_conv", "body": "RRDB_trunk", "conv_hr": "HRconv", "rdb": "RDB"}
    return {f"params_ema.{_replaced(name, names)}": tensor for name, tensor in real_esrgan(network).items()}


def numbered(network):
    """Return weights as the first ESRGAN, built of nested lists, names them."""
    names = {f"body.{i}.rdb": f"model.1.sub.{i}.RDB" for i in range(11)}
    names |= {f".conv{i}.": f".conv{i}.0." for i in range(1, 6)}
    ups = network.conv_ups
    names |= {"conv_first": "model.0", "conv_body": f"model.1.sub.{len(network.body)}"}
    names |= {f"conv_ups.{i}": f"model.{3 + 3 * i}" for i in range(len(ups))}
    names |= {"conv_hr": f"model.{2 + 3 * len(ups)}", "conv_last": f"model.{4 + 3 * len(ups)}"}
    return {_replaced(name, names): tensor for name, tensor in network.state_dict().items()}


def _replaced(name, names):
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


@pytest.fixture
def folder(tmp_path):
    """Return a models folder with two upscalers in two layouts, of factors 2 and 4."""
    (tmp_path / "upscalers").mkdir()
    save_file(real_esrgan(tiny_network(fold=2)), tmp_path / "upscalers" / "soft-x2.safetensors")
    save_file(numbered(tiny_network()), tmp_path / "upscalers" / "sharp.safetensors")
    return tmp_path


@pytest.mark.parametrize("layout", [real_esrgan, esrgan, numbered])
@pytest.mark.parametrize("sizes", [{}, {"fold": 2}, {"num_doublings": 1}, {"num_blocks": 11}], ids=str)
def test_every_layout_gives_the_same_network(layout, sizes):
    """The weights tell how large it is; the names of three programs lead to the same places."""
    network = tiny_network(**sizes)
    image = torch.rand(1, 3, 12, 8)
    again = RRDBNet.of(layout(network))
    assert again.scale == network.scale == (4 if sizes in ({}, {"num_blocks": 11}) else 2)
    torch.testing.assert_close(again(image), network(image), rtol=0, atol=0)
    assert again(image).shape == (1, 3, 12 * network.scale, 8 * network.scale)


def test_the_forward_is_esrgans():
    """A network of one block and one feature, computed by hand from its definition."""
    network = tiny_network(num_blocks=1, num_doublings=1)
    image = torch.rand(1, 3, 4, 4)
    state = network.state_dict()

    def conv(name, features):
        return torch.nn.functional.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def active(features):
        return torch.where(features > 0, features, 0.2 * features)

    first = features = conv("conv_first", image)
    for dense in ("body.0.rdb1", "body.0.rdb2", "body.0.rdb3"):
        seen = [features]
        for number in range(1, 5):
            seen.append(active(conv(f"{dense}.conv{number}", torch.cat(seen, 1))))
        features = features + 0.2 * conv(f"{dense}.conv5", torch.cat(seen, 1))
    features = first + conv("conv_body", first + 0.2 * features)
    features = active(conv("conv_ups.0", features.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    torch.testing.assert_close(network(image), conv("conv_last", active(conv("conv_hr", features))))


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("size", [(40, 24), (37, 23), (16, 16), (3, 50)])
def test_tiles_leave_no_seams(fold, size):
    """Where a tile sees all that acts on a pixel, the whole picture comes out as if it were one tile."""
    network = tiny_network(fold=fold, num_blocks=1)
    whole = enlarge_in_tiles(network, picture(*size), tile_px=64)
    tiled = enlarge_in_tiles(network, picture(*size), tile_px=16, overlap_px=48)
    assert whole.shape == (size[1] * network.scale, size[0] * network.scale, 3)
    assert len(np.unique(whole)) > 50
    assert np.abs(whole.astype(int) - tiled).max() <= 1  # a sum in another order may round the other way
    assert np.abs(whole.astype(int) - tiled).mean() < 0.01


def test_a_tile_that_sees_too_little_does_leave_seams():
    """The test above would see them."""
    network = tiny_network(num_blocks=1)
    whole = enlarge_in_tiles(network, picture(), tile_px=64)
    blind = enlarge_in_tiles(network, picture(), tile_px=16, overlap_px=0)
    assert np.abs(whole.astype(int) - blind).max() > 1


def test_any_factor_by_any_model(folder):
    """A smaller model is applied again, a larger result brought down; the file's digest comes along."""
    upscalers = Upscalers(folder, CPU)
    for name in ("soft-x2", "sharp"):
        digest = hashlib.sha256((folder / "upscalers" / f"{name}.safetensors").read_bytes()).hexdigest()
        for factor in (2, 3, 4):
            enlarged, told = upscalers.enlarge(name, picture(16, 8), factor)
            assert enlarged.shape == (8 * factor, 16 * factor, 3)
            assert told == digest
    twice = enlarge_in_tiles(tiny_network(fold=2), enlarge_in_tiles(tiny_network(fold=2), picture(16, 8)))
    np.testing.assert_array_equal(upscalers.enlarge("soft-x2", picture(16, 8), 4)[0], twice)


@pytest.mark.parametrize("name", ["gone", "../upscalers/sharp", "", "."])
def test_unknown_upscalers_are_refused_with_the_choices(folder, name):
    """Names are files of one folder, and never lead out of it."""
    with pytest.raises(RenderFailed, match=r"no upscaler .*there are: lanczos, sharp, soft-x2"):
        Upscalers(folder, CPU).find(name)
    with pytest.raises(RenderFailed, match=r"there are: lanczos$"):
        Upscalers(None, CPU).find("sharp")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"unet.weight": torch.ones(1)}, "not the weights of an ESRGAN"),
        ({**real_esrgan(tiny_network()), "more.weight": torch.ones(1)}, "other weights: 1 differ, more.weight first"),
        ({**real_esrgan(tiny_network()), "conv_last.bias": torch.ones(4)}, "size mismatch for conv_last.bias"),
    ],
)
def test_other_models_are_named_as_such(folder, weights, reason):
    """A file that is no ESRGAN fails the unit with a reason, not the worker."""
    save_file(weights, folder / "upscalers" / "odd.safetensors")
    with pytest.raises(ModelBroken, match=f"upscaler odd: .*{reason}"):
        Upscalers(folder, CPU).enlarge("odd", picture(), 2)


def test_a_file_that_is_no_safetensors_is_named_as_such(folder):
    """Renaming a pickle does not make it one."""
    (folder / "upscalers" / "odd.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(ModelBroken, match="upscaler odd"):
        Upscalers(folder, CPU).enlarge("odd", picture(), 2)
