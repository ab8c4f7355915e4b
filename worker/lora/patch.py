"""LoRAs in a model's weights: added in place when a lane asks for them, and taken out to the last bit.

The matrices are multiplied out and added once per change, so that a step costs what it costs without them, and
captured graphs stay valid. What was there before is kept on the CPU and copied back: subtracting would leave rounding
behind, and an image must not depend on who was rendered before.

Weights that a memory plan keeps in fewer than 16 bits would round most of a LoRA away. They stay as they are, and the
two thin matrices are computed beside them at each step.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from farm.errors import RenderFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from torch.utils.hooks import RemovableHandle

    from farm.catalog import Family
    from farm.prompts import Lora
    from worker.lora.files import LoraLayer, LoraLibrary, LoraWeights

_DENOISERS: Final = ("unet", "transformer")
_WIDE_BYTES: Final = 2  # of a number that a LoRA can be added to


class LoraPatch:
    """The LoRAs that are in one model's weights at the moment."""

    def __init__(self, library: LoraLibrary, family: Family, parts: Mapping[str, Any]) -> None:
        """Watch over `parts`: the denoiser and the text encoders, by diffusers' names."""
        self._library = library
        self._family = family
        self._parts = parts
        self._denoiser_config = next(parts[name].config for name in _DENOISERS if name in parts)
        self._beside: list[RemovableHandle] = []  # what is computed beside weights that are kept in few bits
        self._before: dict[Any, torch.Tensor] = {}  # weights as they were, by module: a module may have two names
        self.current: tuple[Lora, ...] = ()
        self.hashes: dict[str, str] = {}  # sha256 by name, of the current ones
        self.text_key: Hashable = ()  # files and weights of the current ones that change what words become

    def apply(self, loras: tuple[Lora, ...]) -> None:
        """Put exactly `loras` into the weights.

        Raises RenderFailed, naming the LoRA and the reason, with no LoRA in the weights.
        """
        if loras == self.current:
            return
        self._restore()
        weights = [(lora, self._library.get(lora.name, self._family, self._denoiser_config)) for lora in loras]
        for lora, file in weights:
            self._check(lora, file)
        try:
            for lora, file in weights:
                self._add(lora, file)
        except BaseException:
            self._restore()
            raise
        self.current = loras
        self.hashes = {lora.name: file.sha256 for lora, file in weights}
        self.text_key = tuple(
            (file.sha256, lora.weight) for lora, file in weights if any(part not in _DENOISERS for part in file.layers)
        )

    @property
    def is_beside(self) -> bool:
        """Whether something is computed beside weights now, in hooks: the layers' forwards are not what they were."""
        return bool(self._beside)

    def _check(self, lora: Lora, file: LoraWeights) -> None:
        """Raise RenderFailed unless every layer of `file` fits a module of this model."""
        for part, layers in file.layers.items():
            if part not in self._parts:
                raise RenderFailed(f"LoRA {lora.name!r} changes a {part}, which this model does not have")
            for name, layer in layers.items():
                ours = _shape_of(self._module(lora, part, name))
                shape = (layer.up.shape[0], *layer.down.shape[1:])
                if ours != shape:
                    raise RenderFailed(
                        f"LoRA {lora.name!r} is for another model: its {part}.{name} is {list(shape)}, "
                        f"this model's {list(ours)}"
                    )

    def _add(self, lora: Lora, file: LoraWeights) -> None:
        for part, layers in file.layers.items():
            for name, layer in layers.items():
                module = self._module(lora, part, name)
                weight = module.weight
                if _is_narrow(weight):
                    self._beside.append(module.register_forward_hook(_branch(layer, lora.weight * layer.scale)))
                    continue
                if module not in self._before:  # else another LoRA has been added to it already
                    self._before[module] = weight.detach().to("cpu", copy=True)
                total = weight.to(torch.float32) + _product(layer, weight.device) * (lora.weight * layer.scale)
                weight.copy_(total)

    def _restore(self) -> None:
        for module, before in self._before.items():
            module.weight.copy_(before)
        self._before.clear()
        for handle in self._beside:
            handle.remove()
        self._beside.clear()
        self.current = self.text_key = ()
        self.hashes = {}

    def _module(self, lora: Lora, part: str, name: str) -> Any:
        # Older files know CLIP's layers under `text_model`, which newer libraries dropped.
        for known in (name, name.removeprefix("text_model.")):
            with suppress(AttributeError):
                return self._parts[part].get_submodule(known)
        raise RenderFailed(f"LoRA {lora.name!r} is for another model: there is no {part}.{name} here")


def _is_narrow(weight: torch.Tensor) -> bool:
    """Return whether a weight is kept in fewer than 16 bits; torchao's are of a class of their own and say 16."""
    is_packed = type(weight) not in {torch.Tensor, torch.nn.Parameter}
    return is_packed or not weight.is_floating_point() or weight.element_size() < _WIDE_BYTES


def _shape_of(module: Any) -> tuple[int, ...]:
    """Return the shape of a module's weight as it was before it was packed into 4 bits."""
    if isinstance(module, torch.nn.Linear):
        return (module.out_features, module.in_features)
    return tuple(module.weight.shape)


def _branch(layer: LoraLayer, scale: float) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    """Return a forward hook that adds scale * up(down(x)) to what a module gives for x."""

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        down, up = layer.down.to(x), layer.up.to(x)
        if isinstance(module, torch.nn.Conv2d):
            thin = functional.conv2d(x, down, None, module.stride, module.padding, module.dilation)
            return output + scale * functional.conv2d(thin, up.view(*up.shape[:2], 1, 1))
        return output + scale * functional.linear(functional.linear(x, down), up)

    return add


def _product(layer: LoraLayer, device: torch.device) -> torch.Tensor:
    """Return up @ down in float32, in the shape of the module's weight."""
    up = layer.up.to(device, torch.float32).flatten(1)
    down = layer.down.to(device, torch.float32)
    return (up @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
