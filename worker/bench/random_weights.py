"""Models with random weights: made on the device, for speed, or written to disk, for start-up.

Nothing is downloaded and the pictures are of no account; shapes, sizes and precisions are those of the networks that
`builders` make. Weights are drawn by the classes' own initialisers, so numbers stay finite. Tokenizers know letters.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch
from accelerate import init_empty_weights
from transformers import CLIPTokenizer, PreTrainedModel, T5Tokenizer

from farm.plans import ModelSizes, plan_for_row
from farm.plans.sizes import measure
from farm.weights import TensorInfo
from worker.bench.reference import pipeline_of
from worker.bench.work import Work, work_of
from worker.pipelines.families import family_class
from worker.pipelines.fitting import loads_on_device, memory_of
from worker.pipelines.latent import Loaded
from worker.pipelines.placement import load_dtype, place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from farm.catalog import Family, ModelRow
    from farm.plans import Plan
    from worker.forward import Toolbox
    from worker.gpu import Device
    from worker.lora import LoraLibrary
    from worker.pipelines.latent import LatentModel

_BETAS: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_EPSILON: Final = {**_BETAS, "prediction_type": "epsilon", "set_alpha_to_one": False, "steps_offset": 1}
_SHIFTED: Final = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
_SCHEDULERS: Final[Mapping[Family, Mapping[str, Any]]] = {
    "sd15": {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, **_EPSILON},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1000, **_EPSILON},
    "flux": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        **_SHIFTED,
    },
    "sd3": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
}
_HASH: Final = "0" * 64


class RandomModel:
    """The model of `row` with random weights, on `device`."""

    weights = "random"

    def __init__(
        self,
        row: ModelRow,
        builders: Mapping[str, Callable[[], torch.nn.Module]],
        device: Device,
        *,
        toolbox: Toolbox | None = None,
    ) -> None:
        """Prepare to make it by `builders`, one for each part with weights, by diffusers' names."""
        self.row = row
        self.device = device
        self._toolbox = toolbox
        self._builders = builders

    @cached_property
    def _on_meta(self) -> Mapping[str, torch.nn.Module]:
        with torch.device("meta"):
            return {name: build().eval() for name, build in self._builders.items()}

    def work(self) -> Work:
        """Return the work of one image at the row's own size."""
        return work_of(self._on_meta, self.row, width=self.row.width, height=self.row.height)

    @property
    def num_values(self) -> int:
        """How many weights it has."""
        return sum(tensor.numel() for network in self._on_meta.values() for tensor in network.parameters())

    def plan(self, memory_bytes: int | None = None) -> Plan:
        """Return the memory plan, of the device's memory where none is given. Raises NoPlan."""
        sizes = ModelSizes(
            tuple(
                measure(name, {key: TensorInfo("F16", tuple(x.shape), 0) for key, x in network.state_dict().items()})
                for name, network in self._on_meta.items()
            ),
            "its configs",
        )
        return plan_for_row(
            self.row,
            sizes,
            vram_bytes=memory_bytes or memory_of(self.device.torch),
            device_kind="cuda" if self.device.torch.type == "cuda" else "cpu",
            # 4 bits are made while a file is read.
            can_load_4bit=False,
        )

    def load(self, memory_bytes: int | None = None, *, loras: LoraLibrary | None = None) -> LatentModel:
        """Make the weights and lay them out as `plan` says."""
        plan, device = self.plan(memory_bytes), self.device.torch
        family = family_class(self.row.family)
        networks = {}
        for name, build in self._builders.items():
            # Placement expects what a loader gives it: weights in RAM where the plan does not keep them on the card.
            make_it = make if loads_on_device(plan, name) else make_in_ram
            networks[name] = make_it(build, device=device, dtype=load_dtype(plan, name))
        return family(
            Loaded(
                name=self.row.name,
                parts={**networks, **tokenizers_of(networks)},
                placement=place(networks, plan, device),
                scheduler_config={**_SCHEDULERS[self.row.family], **self.row.scheduler_config},
                options={"force_zeros_for_empty_prompt": True},
                model_hash=_HASH,
                device=device,
                device_name=self.device.kind,
                dtype=load_dtype(plan, family.denoiser),
                max_batch=min(plan.max_batch, self.row.max_batch or plan.max_batch),
                max_sequence_length=self.row.max_sequence_length,
                loras=loras,
                toolbox=self._toolbox,
                allow_lossy=self.row.allow_lossy,
            )
        )

    def reference(self, dtype: torch.dtype) -> Any:
        """Return diffusers' own pipeline with weights of its own, whole on the device."""
        networks = {name: make(build, device=self.device.torch, dtype=dtype) for name, build in self._builders.items()}
        return pipeline_of(self.row, {**networks, **tokenizers_of(networks)}, _scheduler(self.row))

    def write(self, models_dir: Path, dtype: torch.dtype) -> None:
        """Write it under `models_dir` to where its row says that it is, as diffusers saves a model."""
        device = self.device.torch
        folder = models_dir / self.row.source
        for name, build in self._builders.items():
            network: Any = make(build, device=device, dtype=dtype)
            own = models_dir / self.row.vae.source if name == "vae" and self.row.vae else folder / name
            network.save_pretrained(own, safe_serialization=True)
        for name, tokenizer in tokenizers_of(self._on_meta).items():
            tokenizer.save_pretrained(folder / name)
        _scheduler(self.row).save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text(json.dumps({"force_zeros_for_empty_prompt": True}), "utf-8")


def make(build: Callable[[], torch.nn.Module], *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Return a network with random weights, made where and as what it is to be: gigabytes never travel."""
    with _default_dtype(dtype), torch.device(device):
        return build().eval().requires_grad_(requires_grad=False)


def make_in_ram(build: Callable[[], torch.nn.Module], *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Return a network in RAM, its weights drawn on the device one by one: it may be too large for that as a whole.

    Drawn as torch's own layers do it, which takes a CPU minutes: matrices evenly within 1 / sqrt(inputs).
    """
    with init_empty_weights(include_buffers=False):
        network: Any = build().eval().to(dtype)
    for module in network.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001  the only place where a weight is replaced
            if parameter is not None:
                module._parameters[name] = _drawn(parameter, name, device, dtype)  # noqa: SLF001
    if isinstance(network, PreTrainedModel):
        network.tie_weights()  # T5's embedding has two names
    made: torch.nn.Module = network
    return made


def _drawn(parameter: torch.nn.Parameter, name: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Parameter:
    values = torch.zeros(parameter.shape, device=device, dtype=dtype)
    if values.dim() > 1:
        bound = (values[0].numel()) ** -0.5
        values.uniform_(-bound, bound)
    elif name == "weight":  # of a norm
        values.fill_(1)
    return torch.nn.Parameter(values.cpu(), requires_grad=False)


def tokenizers_of(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer for each text encoder among `networks`, by diffusers' names."""
    return {
        name.replace("text_encoder", "tokenizer"): (
            t5_tokenizer() if network.config.model_type == "t5" else clip_tokenizer()
        )
        for name, network in networks.items()
        if name.startswith("text_encoder")
    }


def clip_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows letters, alone and at the end of a word."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *[letter + "</w>" for letter in letters]]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer that knows letters."""
    letters = [(chr(code), -6.0) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _scheduler(row: ModelRow) -> Any:
    config = _SCHEDULERS[row.family]
    return getattr(diffusers, config["_class_name"]).from_config(
        {key: value for key, value in config.items() if not key.startswith("_")}
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
