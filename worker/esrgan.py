"""ESRGAN's generator: an RRDBNet, sized by the weights it is given, whichever of three programs wrote them.

Residual-in-residual dense blocks (Wang et al., 2018) between a first and a last convolution, with a doubling by nearest
neighbours for every factor of two. Factors below four fold squares of pixels into channels first, as Real-ESRGAN does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn
from torch.nn.functional import interpolate, leaky_relu, pixel_unshuffle

if TYPE_CHECKING:
    from collections.abc import Mapping

_RESIDUAL: Final = 0.2  # how much of a block's outcome joins its input
_SLOPE: Final = 0.2
_COLOURS: Final = 3

_NEW_NAMES: Final = {  # of ESRGAN's own code, by those of Real-ESRGAN, which are ours
    "RRDB_trunk": "body",
    "trunk_conv": "conv_body",
    "upconv": "conv_up",
    "HRconv": "conv_hr",
    "RDB": "rdb",
}
_OLD_BLOCK: Final = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)")
_OLD_LAYER: Final = re.compile(r"model\.(\d+)\.(weight|bias)")
_OLD_BODY: Final = re.compile(r"model\.1\.sub\.\d+\.(weight|bias)")
_MIN_OLD_LAYERS: Final = 4  # outside the body: first, at least one doubling, and the last two


class RRDBNet(nn.Module):
    """Enlarges [1, 3, h, w] of 0 to 1 by `scale`; numbers a little outside may come out."""

    def __init__(
        self, *, num_features: int, num_blocks: int, num_growth: int, num_doublings: int = 2, fold: int = 1
    ) -> None:
        super().__init__()
        self.fold = fold
        self.scale = 2**num_doublings // fold
        self.conv_first = _conv(_COLOURS * fold**2, num_features)
        self.body = nn.ModuleList(_Block(num_features, num_growth) for _ in range(num_blocks))
        self.conv_body = _conv(num_features, num_features)
        self.conv_ups = nn.ModuleList(_conv(num_features, num_features) for _ in range(num_doublings))
        self.conv_hr = _conv(num_features, num_features)
        self.conv_last = _conv(num_features, _COLOURS)

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor]) -> RRDBNet:
        """Build the network that `weights` are for; raises ValueError when they are for another kind of network."""
        state = _named_as_ours(weights)
        try:
            num_features, channels = state["conv_first.weight"].shape[:2]
            fold = {_COLOURS * fold**2: fold for fold in (1, 2, 4)}[channels]
            num_growth = len(state["body.0.rdb1.conv1.weight"])
        except (KeyError, ValueError) as error:
            raise ValueError("these are not the weights of an ESRGAN (RRDBNet)") from error
        network = cls(
            num_features=num_features,
            num_blocks=_count(state, "body."),
            num_growth=num_growth,
            num_doublings=_count(state, "conv_ups."),
            fold=fold,
        )
        if odd := sorted(state.keys() ^ network.state_dict().keys()):
            raise ValueError(f"an ESRGAN of this size has other weights: {len(odd)} differ, {odd[0]} first")
        try:
            network.load_state_dict(state)
        except RuntimeError as error:  # of another shape
            raise ValueError(" ".join(str(error).split())) from error
        return network.eval().requires_grad_(requires_grad=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return [1, 3, h * scale, w * scale]; h and w are multiples of `fold`."""
        first = self.conv_first(pixel_unshuffle(image, self.fold))
        deep = first
        for block in self.body:
            deep = block(deep)
        features = first + self.conv_body(deep)
        for conv in self.conv_ups:
            features = _active(conv(interpolate(features, scale_factor=2, mode="nearest")))
        return cast("torch.Tensor", self.conv_last(_active(self.conv_hr(features))))


class _Block(nn.Module):
    """Three dense blocks in a row, of whose outcome a part joins the input."""

    def __init__(self, num_features: int, num_growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(num_features, num_growth)
        self.rdb2 = _DenseBlock(num_features, num_growth)
        self.rdb3 = _DenseBlock(num_features, num_growth)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + _RESIDUAL * cast("torch.Tensor", self.rdb3(self.rdb2(self.rdb1(features))))


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees all that came before."""

    def __init__(self, num_features: int, num_growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(num_features, num_growth)
        self.conv2 = _conv(num_features + num_growth, num_growth)
        self.conv3 = _conv(num_features + 2 * num_growth, num_growth)
        self.conv4 = _conv(num_features + 3 * num_growth, num_growth)
        self.conv5 = _conv(num_features + 4 * num_growth, num_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        seen = features
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, _active(conv(seen))], dim=1)
        return features + _RESIDUAL * cast("torch.Tensor", self.conv5(seen))


def _conv(num_in: int, num_out: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)


def _active(features: torch.Tensor) -> torch.Tensor:
    return leaky_relu(features, _SLOPE)


def _count(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Return how many modules of a list there are."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _named_as_ours(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give weights the names of our layers; what is unknown keeps its own."""
    plain = {re.sub(r"^params(_ema)?\.", "", name): tensor for name, tensor in weights.items()}
    layers = sorted({int(match[1]) for name in plain if (match := _OLD_LAYER.fullmatch(name))})
    if len(layers) < _MIN_OLD_LAYERS:
        return {_rename_new(name): tensor for name, tensor in plain.items()}
    first, *ups, hr, last = layers
    places = {first: "conv_first", hr: "conv_hr", last: "conv_last"}
    places |= {layer: f"conv_ups.{number}" for number, layer in enumerate(ups)}
    return {_rename_old(name, places): tensor for name, tensor in plain.items()}


def _rename_new(name: str) -> str:
    for theirs, ours in _NEW_NAMES.items():
        name = name.replace(theirs, ours)
    return re.sub(r"^conv_up(\d)\.", lambda match: f"conv_ups.{int(match[1]) - 1}.", name)


def _rename_old(name: str, places: Mapping[int, str]) -> str:
    """Rename a weight of the layout that numbers its layers; `places` has our names of those outside the body."""
    if match := _OLD_BLOCK.fullmatch(name):
        block, dense, conv, kind = match.groups()
        return f"body.{block}.rdb{dense}.conv{conv}.{kind}"
    if match := _OLD_BODY.fullmatch(name):
        return f"conv_body.{match[1]}"
    if match := _OLD_LAYER.fullmatch(name):
        return f"{places[int(match[1])]}.{match[2]}"
    return name
