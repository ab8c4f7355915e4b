"""LoRA files as the programs that train them write them: diffusers with PEFT, and kohya's scripts."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


def _adapted(module, targets, *, rank, alpha, generator):
    """Return a copy of `module` with a LoRA that does something, its state, and the module itself."""
    module = copy.deepcopy(module)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian")
    module.add_adapter(config)
    state = get_peft_model_state_dict(module, adapter_name="default")
    state = {name: torch.randn(tensor.shape, generator=generator) * 0.3 for name, tensor in sorted(state.items())}
    return module, state


def save_peft_lora(pipeline, path: Path, *, seed: int, rank: int = 3, alpha: float = 5.0, with_text: bool = True):
    """Save a random LoRA of `pipeline`'s denoiser and first text encoder as diffusers' training scripts do."""
    generator = torch.Generator("cpu").manual_seed(seed)
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    targets = UNET_TARGETS if name == "unet" else ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp"]
    denoiser, layers = _adapted(getattr(pipeline, name), targets, rank=rank, alpha=alpha, generator=generator)
    modules = {name: denoiser}
    arguments = {f"{name}_lora_layers": layers}
    if with_text:
        text, layers = _adapted(pipeline.text_encoder, TEXT_TARGETS, rank=rank, alpha=alpha, generator=generator)
        modules["text_encoder"] = text
        arguments["text_encoder_lora_layers"] = layers
    type(pipeline).save_lora_weights(path.parent, weight_name=path.name, **arguments, **_collate_lora_metadata(modules))


def save_kohya_lora(pipeline, path: Path, *, seed: int, rank: int = 2, alphas=(3.0,), rename=lambda name: name):
    """Save a random LoRA as kohya's scripts do: flat names, lora_down, lora_up and alpha of each layer.

    `rename` turns a module's flat name into another architecture's (SDXL's scripts write SAI's block names).
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    prefixes = {"unet": "lora_unet"}
    if getattr(pipeline, "text_encoder_2", None) is None:
        prefixes["text_encoder"] = "lora_te"
    else:
        prefixes |= {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    state = {}
    for part, prefix in prefixes.items():
        targets = (
            ("to_q", "to_k", "to_v", "to_out.0")
            if part == "unet"
            else ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
        )
        for name, module in getattr(pipeline, part).named_modules():
            if name.endswith(targets):
                out_features, in_features = module.weight.shape
                # transformers used to keep CLIP's layers under one more name, which is what the scripts write
                full = name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
                flat = f"{prefix}_{rename(full.replace('.', '_'))}"
                state[f"{flat}.lora_down.weight"] = torch.randn(rank, in_features, generator=generator) * 0.3
                state[f"{flat}.lora_up.weight"] = torch.randn(out_features, rank, generator=generator) * 0.3
                state[f"{flat}.alpha"] = torch.tensor(alphas[len(state) // 3 % len(alphas)])
    save_file(state, path)
