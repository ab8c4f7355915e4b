"""ControlNets beside a UNet: loaded by name when a unit asks for them, a few at a time, and run before each forward.

Which image steers how strongly, and from which share of the steps to which, is each seat's own; which ControlNets run
is what the rows of a forward have in common.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from diffusers import ControlNetModel
from safetensors import SafetensorError

from farm.errors import Fatal, HubDown, RenderFailed
from farm.weights import Hub, Weights
from worker.pipelines.base import conv_layout, pack
from worker.pipelines.parts import load_part
from worker.pipelines.pixels import control_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from farm.catalog import ControlNetRow
    from farm.jobs import ControlNet, Unit
    from worker.pipelines.base import Inputs, Ride

_MAX_LOADED: Final = 3
"""ControlNets kept beside a model: 0.7 GB each for SD 1.5, 2.5 GB for SDXL."""


class Control(NamedTuple):
    """One ControlNet's part in a unit's run."""

    spec: ControlNet
    image: torch.Tensor  # [1, 3, h, w] of 0 to 1

    def scale(self, call: int, calls: int) -> float:
        """Return how strongly it acts in `call`, rounded to steps as diffusers does."""
        is_off = call / calls < self.spec.guidance_start or (call + 1) / calls > self.spec.guidance_end
        return 0.0 if is_off else self.spec.conditioning_scale


class Residuals(NamedTuple):
    """What ControlNets add to a UNet's blocks, for every row of a forward; None where they are silent."""

    down: list[torch.Tensor] | None = None
    middle: torch.Tensor | None = None


class ControlNets:
    """The ControlNets of one model."""

    def __init__(self, load: Callable[[str], Any], *, max_loaded: int = _MAX_LOADED) -> None:
        """Prepare to `load` ControlNets by name; the one longest unused leaves for one more than `max_loaded`."""
        self._load = load
        self._max_loaded = max_loaded
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    def controls(
        self, unit: Unit, inputs: Inputs, *, unet: Any, device: torch.device, dtype: torch.dtype
    ) -> tuple[Control, ...]:
        """Return the controls of a unit at the size of its pass.

        Raises RenderFailed, naming the ControlNet, when one cannot be loaded or was made for other models.
        """
        for spec in unit.controlnets:
            _check_fits(spec.model, self._net(spec.model), unet)
        return tuple(
            Control(spec, control_tensor(pixels, unit.width, unit.height).to(device, dtype))
            for spec, pixels in zip(unit.controlnets, inputs.controls, strict=True)
        )

    def residuals(
        self,
        rides: Sequence[Ride],
        places: Sequence[int],
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        **texts: Any,
    ) -> Residuals:
        """Run the ControlNets of `rides`, which all have the same, and return their sum.

        `places` say which ride each row is of; `latents` and `timesteps` are those of all rows, `texts` is what the
        UNet is told of the words.
        """
        total = Residuals()
        for place, first in enumerate(rides[0].conditioning.controls):
            controls = [ride.conditioning.controls[place] for ride in rides]
            strengths = [control.scale(ride.call, ride.calls) for control, ride in zip(controls, rides, strict=True)]
            if not any(strengths):
                continue
            images = torch.cat([controls[row].image for row in places])
            scales = pack([strengths[row] for row in places], latents.device).to(latents.dtype).view(-1, 1, 1, 1)
            down, middle = self._net(first.spec.model)(
                latents, timesteps, controlnet_cond=images, return_dict=False, **texts
            )
            total = _add(total, [sample * scales for sample in down], middle * scales)
        return total

    def _net(self, name: str) -> Any:
        if name not in self._loaded:
            while len(self._loaded) >= self._max_loaded:
                self._loaded.popitem(last=False)
            self._loaded[name] = self._load(name)
        self._loaded.move_to_end(name)
        return self._loaded[name]


def _add(total: Residuals, down: list[torch.Tensor], middle: torch.Tensor) -> Residuals:
    if total.down is None or total.middle is None:
        return Residuals(down, middle)
    return Residuals([one + other for one, other in zip(total.down, down, strict=True)], total.middle + middle)


def _check_fits(name: str, net: Any, unet: Any) -> None:
    ours, theirs = (part.config.cross_attention_dim for part in (unet, net))
    if ours != theirs:
        raise RenderFailed(f"ControlNet {name!r} reads texts of width {theirs}, this model's are {ours} wide")


def load_controlnet(
    name: str,
    rows: Mapping[str, ControlNetRow],
    *,
    models_dir: Path,
    hub: Hub,
    device: torch.device,
    dtype: torch.dtype,
) -> ControlNetModel:
    """Load a ControlNet of the catalog onto `device`.

    Raises RenderFailed, naming it and the reason: the units that ask for it fail, and no others; HubDown when it is for
    the hub to come back.
    """
    if name not in rows:
        raise RenderFailed(f"this worker's catalog has no ControlNet {name!r}")
    row = rows[name]
    try:
        files = Weights(models_dir, hub).part(row, "controlnet", prefer_fp16=dtype == torch.float16)
        if files.folder is None or files.chosen is None:
            raise RenderFailed("one file does not say what network it holds; a folder with a config.json does")
        net = load_part(ControlNetModel, files.folder, variant=files.chosen.variant, dtype=dtype, device=device)
        if net.config.global_pool_conditions:
            raise RenderFailed("it steers one half of the guidance only (guess mode), which is not supported")
    except torch.OutOfMemoryError:
        raise  # the engine can make room
    except HubDown:
        raise
    # What diffusers raises for a broken folder is any of these.
    except (Fatal, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RenderFailed(f"ControlNet {name!r} ({row.source}): {reason}") from error
    net.to(device).to(memory_format=conv_layout(device))
    net.eval().requires_grad_(requires_grad=False)
    return net
