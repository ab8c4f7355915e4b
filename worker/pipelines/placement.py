"""Carrying out a memory plan: components into their precision and onto the device, and the visits of those in RAM.

The choice was made by farm.plans; which component is needed when is the pipeline's to say (`Placement.on_device`).
Components come in RAM, in any floating-point precision; only 4-bit ones arrive as the loader made them.
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting

from farm.errors import ModelBroken
from farm.plans import DYNAMIC, Precision, Where
from worker.pipelines.quantising import compute_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from farm.plans import ComponentPlan, Plan

_DTYPES: Final = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
    Precision.FP8: torch.float8_e4m3fn,
}
_BLOCKS: Final = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")
"""Children of a denoiser that hold nearly all of its weights; what is outside of them keeps its precision."""
_OUTSIDE_BLOCKS: Final = rf"^(?!({'|'.join(_BLOCKS)})(\.|$))."
_EMBEDDERS: Final = ("x_embedder", "context_embedder", "time_text_embed", "pos_embed", "norm_out")
"""What stays out of 4 bits. Not the last layer: blocks have layers of its name, and names are all that is asked."""
_CONVOLUTIONAL: Final = ("unet", "vae")


class Placement:
    """A model's components as a plan wants them; pipelines ask it for components that may live in RAM.

    Used by the engine's thread alone.
    """

    def __init__(self, components: Mapping[str, nn.Module], plan: Plan, device: torch.device) -> None:
        self.components = dict(components)
        self.plan = plan
        self.device = device
        self._visiting: set[str] = set()

    @contextmanager
    def on_device(self, *names: str) -> Iterator[None]:
        """Have these components on the device while the context is open; nothing happens for those that live there.

        Plans count on text encoders coming one at a time. Leaving drops the copies on the device: weights in RAM are
        the originals, and nothing is copied back.
        """
        with ExitStack() as visits:
            for name in names:
                if self.plan.component(name).where is Where.EVICTED and name not in self._visiting:
                    visits.enter_context(self._visit(name))
            yield

    @contextmanager
    def _visit(self, name: str) -> Iterator[None]:
        module = self.components[name]
        home = [(tensor, tensor.data) for tensor in _tensors(module)]
        self._visiting.add(name)
        try:
            for tensor, data in home:
                tensor.data = data.to(self.device, non_blocking=True)
            yield
        finally:
            for tensor, data in home:
                tensor.data = data
            self._visiting.discard(name)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def place(components: Mapping[str, nn.Module], plan: Plan, device: torch.device) -> Placement:
    """Bring components, by diffusers' names, to where and into what `plan` says; they are changed in place.

    Raises KeyError when the plan has no such component, ValueError when a 4-bit component was not loaded as one.
    """
    for name, module in components.items():
        part = plan.component(name)
        module.eval().requires_grad_(requires_grad=False)
        _set_precision(module, part)
        if part.storage in DYNAMIC:
            compute_in(part.storage, module, _BLOCKS, device)
        match part.where:
            case Where.RESIDENT if part.storage is not Precision.NF4:  # which cannot be moved, and was loaded there
                _move(module, name, device)
            case Where.STREAMED:
                _stream(module, device)
            case Where.EVICTED if device.type == "cuda":
                _pin(module)
        if name == "vae":
            _set_tiles(module, plan)
    return Placement(components, plan, device)


def load_dtype(plan: Plan, component: str) -> torch.dtype:
    """Return the precision that `component` computes in, and is loaded with."""
    return _DTYPES[plan.component(component).compute]


def quantization_config_for(plan: Plan, component: str) -> object | None:
    """Return the `quantization_config` that `from_pretrained` needs to load `component` as planned; None for nothing.

    Only 4 bits are made while loading; 8 bits are a cast that `place` does. Raises ModelBroken without bitsandbytes.
    """
    part = plan.component(component)
    if part.storage is not Precision.NF4:
        return None
    if not can_load_4bit():
        raise ModelBroken(f"{component} is planned in 4 bits, which needs bitsandbytes: pip install bitsandbytes")
    from diffusers import BitsAndBytesConfig  # noqa: PLC0415  asks for bitsandbytes

    config: object = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_DTYPES[part.compute],
        llm_int8_skip_modules=list(_EMBEDDERS),
    )
    return config


def can_load_4bit() -> bool:
    """Return whether bitsandbytes is installed: plans for this worker may count on 4 bits."""
    return importlib.util.find_spec("bitsandbytes") is not None


def _set_precision(module: nn.Module, part: ComponentPlan) -> None:
    if part.storage is Precision.NF4:
        if getattr(module, "quantization_method", None) is None:
            raise ValueError(f"{part.name} is planned in 4 bits, but was loaded without quantization_config")
        return
    dtype = _DTYPES[part.compute]
    # Models that come in the right precision are left alone: diffusers warns of every cast.
    if any(tensor.is_floating_point() and tensor.dtype is not dtype for tensor in _tensors(module)):
        module.to(dtype=dtype)
    if part.storage is Precision.FP8:
        apply_layerwise_casting(
            module,
            storage_dtype=_DTYPES[part.storage],
            compute_dtype=dtype,
            skip_modules_pattern=(_OUTSIDE_BLOCKS,),
        )


def _move(module: Any, name: str, device: torch.device) -> None:
    # Convolutions of UNet and VAE run on tensor cores without a transpose in this layout; CPUs gain nothing.
    if device.type == "cuda" and name in _CONVOLUTIONAL:
        module.to(device, memory_format=torch.channels_last)
    else:
        module.to(device)


def _stream(module: nn.Module, device: torch.device) -> None:
    """Have each layer come to the device for its own forward; on CUDA the next one is fetched meanwhile."""
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=device.type == "cuda",
        # Recording streams would let transfers run ahead of a slow step until the whole model is on the device.
        record_stream=False,
    )


def _tensors(module: nn.Module) -> tuple[torch.Tensor, ...]:
    return (*module.parameters(), *module.buffers())


def _pin(module: nn.Module) -> None:
    """Lock weights in RAM: they come to the device at the speed of the bus."""
    for tensor in _tensors(module):
        tensor.data = tensor.data.pin_memory()


def _set_tiles(vae: Any, plan: Plan) -> None:
    """Decode one image at a time, as plans count on, and in tiles if the plan says so."""
    vae.enable_slicing()
    if plan.vae_tile_px is None:
        return
    # The tiles that enable_tiling takes are as large as the images a VAE was trained on: no help at that size.
    vae.enable_tiling()
    vae.tile_sample_min_size = plan.vae_tile_px
    vae.tile_latent_min_size = plan.vae_tile_px // 2 ** (len(vae.config.block_out_channels) - 1)
