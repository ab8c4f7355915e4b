"""Full-size models with random weights, made on the device: for speed and memory, where the picture is of no account.

Weights are drawn by the classes' own initialisers, so numbers stay finite; tokenizers are the tests' own, of letters.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from farm.catalog import Catalog  # noqa: E402
from farm.plans import Plan, plan_for_row, sizes_of  # noqa: E402
from full_size_models import component_names, make  # noqa: E402  the tests know the published configs
from tiny_flow_models import t5_tokenizer  # noqa: E402
from tiny_models import clip_tokenizer  # noqa: E402
from worker.pipelines.families import family_class  # noqa: E402
from worker.pipelines.fitting import loads_on_device  # noqa: E402
from worker.pipelines.latent import Loaded  # noqa: E402
from worker.pipelines.placement import load_dtype, place  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.lora import LoraLibrary
    from worker.pipelines.latent import LatentModel

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd15": {**BETAS, "prediction_type": "epsilon", "set_alpha_to_one": False, "steps_offset": 1},
    "sdxl": {**BETAS, "prediction_type": "epsilon", "set_alpha_to_one": False, "steps_offset": 1},
    "flux-dev": {
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    },
    "sd35-medium": {"num_train_timesteps": 1000, "shift": 3.0},
}


class RandomModel(NamedTuple):
    """A model as our engine takes it, and its parts as diffusers' pipelines take them."""

    ours: LatentModel
    parts: Mapping[str, Any]


def plan_of(name: str, vram_bytes: int) -> Plan:
    """Return the memory plan of a published model on a card of this size."""
    row = Catalog().row(name)
    return plan_for_row(row, sizes_of(row, ROOT / "no-such-folder"), vram_bytes=vram_bytes, can_load_4bit=False)


def tokenizers(checkpoint: str) -> dict[str, Any]:
    """Return a tokenizer for every text encoder of `checkpoint`."""
    made = {}
    for component in component_names(checkpoint):
        if component.startswith("text_encoder"):
            is_t5 = (checkpoint.startswith("flux"), component) in ((True, "text_encoder_2"), (False, "text_encoder_3"))
            made[component.replace("text_encoder", "tokenizer")] = t5_tokenizer() if is_t5 else clip_tokenizer()
    return made


def load_random(name: str, plan: Plan, device: torch.device, *, loras: LoraLibrary | None = None) -> RandomModel:
    """Return the catalog's model `name` with random weights, laid out as `plan` says."""
    row = Catalog().row(name)
    family = family_class(row.family)
    networks = {}
    for component in component_names(name):
        network = make(name, component, device=device, dtype=load_dtype(plan, component))
        # Placement expects what a loader gives it: weights in RAM where the plan does not keep them on the card.
        networks[component] = network if loads_on_device(plan, component) else network.cpu()
    placement = place(networks, plan, device)
    parts = {**networks, **tokenizers(name)}
    ours = family(
        Loaded(
            name=name,
            parts=parts,
            placement=placement,
            scheduler_config=SCHEDULERS[name],
            options={"force_zeros_for_empty_prompt": True},
            model_hash="0" * 64,
            device=device,
            device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            dtype=load_dtype(plan, family.denoiser),
            max_batch=plan.max_batch,
            max_sequence_length=row.max_sequence_length,
            loras=loras,
        )
    )
    return RandomModel(ours, parts)
