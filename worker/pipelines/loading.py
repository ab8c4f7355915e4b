"""From a catalog row to a pipeline on a device: find the files, plan the memory, load the parts, or say why not.

Only safetensors are read, never pickle. Every failure names model, source and reason: a ModelBroken, or a HubDown when
it is for the hub to come back. Where files are is farm/weights' business, what fits where farm/plans'.
"""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError

from farm.errors import Fatal, HubDown, ModelBroken
from farm.weights import DIGESTS_FILE, Digests, Hub, Weights, has_weights
from worker.pipelines.controlnet import ControlNets, load_controlnet
from worker.pipelines.families import family_class
from worker.pipelines.fitting import loads_on_device, memory_of, plan_model, with_safe_vae
from worker.pipelines.latent import Loaded
from worker.pipelines.parts import load_part, load_tokenizer, silence
from worker.pipelines.placement import load_dtype, place, quantization_config_for
from worker.pipelines.single_file import load_from_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from farm.catalog import ControlNetRow, ModelRow
    from farm.plans import Plan
    from farm.weights import ModelFiles
    from worker.forward import Toolbox
    from worker.lora import LoraLibrary
    from worker.pipelines.latent import LatentModel

log: Final = logging.getLogger(__name__)

_FIRST_WORD_S: Final = 2.0
_WORDS_S: Final = 15.0


def load_pipeline(
    row: ModelRow,
    *,
    models_dir: Path,
    device: torch.device,
    device_name: str | None = None,
    memory_bytes: int | None = None,
    hub: Hub | None = None,
    loras: LoraLibrary | None = None,
    controlnets: Mapping[str, ControlNetRow] | None = None,
    toolbox: Toolbox | None = None,
) -> LatentModel:
    """Load the model of `row` for `device`, as the best memory plan that fits says; on a CPU all is float32.

    `memory_bytes` is how much memory to plan for, the device's by default; without a `toolbox` forwards run as they
    are. Raises ModelBroken or HubDown, naming model, source and reason.
    """
    silence()
    hub = hub or Hub()
    try:
        files = Weights(models_dir, hub).model(
            row, prefer_fp16=device.type == "cuda", on_progress=_telling(f"downloading {row.name}")
        )
        plan = _plan(row, files, device, memory_bytes or memory_of(device))
        digests = Digests(models_dir / DIGESTS_FILE)
        model_hash = files.model_hash(digests, _telling(f"hashing the weights of {row.name}"))
        family = family_class(row.family)
        dtype = load_dtype(plan, family.denoiser)
        began = time.monotonic()
        parts = _load_parts(family, files, plan, device, _telling(f"loading {row.name}"))
        networks = {name: part for name, part in parts.items() if has_weights(name)}
        placement = place(networks, plan, device)
        _tell_pace(row.name, files, time.monotonic() - began)
        index = files.folder / "model_index.json"
        config = _read_json(files.folder / "scheduler" / "scheduler_config.json")
        return family(
            Loaded(
                name=row.name,
                parts=parts,
                placement=placement,
                scheduler_config={**config, **files.kind.prediction, **row.scheduler_config},
                options=_read_json(index) if index.is_file() else {},
                model_hash=model_hash,
                device=device,
                device_name=device_name or _kind(device),
                dtype=dtype,
                max_batch=min(plan.max_batch, row.max_batch or plan.max_batch),
                max_sequence_length=row.max_sequence_length,
                embeddings_dir=models_dir / "embeddings",
                loras=loras,
                controlnets=ControlNets(
                    partial(
                        load_controlnet,
                        rows=controlnets or {},
                        models_dir=models_dir,
                        hub=hub,
                        device=device,
                        dtype=dtype,
                    )
                ),
                toolbox=toolbox,
                allow_lossy=row.allow_lossy,
            )
        )
    except torch.OutOfMemoryError:
        raise  # the engine can make room
    except HubDown as error:
        raise HubDown(f"model {row.name} ({row.source}): {error}") from error
    # What transformers and diffusers raise for a broken folder is any of these.
    except (Fatal, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelBroken(f"model {row.name} ({row.source}): {reason}") from error


def _plan(row: ModelRow, files: ModelFiles, device: torch.device, memory_bytes: int) -> Plan:
    """Return the memory plan, with a VAE that does not overflow."""
    plan = plan_model(row, files, device, memory_bytes=memory_bytes)
    overflows = family_class(row.family).heeds_force_upcast
    if overflows:
        overflows = _read_json(files.config_folder("vae") / "config.json").get("force_upcast", True)
    plan = with_safe_vae(plan, overflows=overflows)
    log.info("model %s: %s", row.name, plan.summary, extra={"action": "model_planned", "model": row.name})
    return plan


def _load_parts(
    family: type[LatentModel], files: ModelFiles, plan: Plan, device: torch.device, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Load all parts that there are; `tell` hears how many bytes of how many are there, as they will be kept."""
    parts: dict[str, Any] = {}
    num_bytes = sum(part.weight_bytes for part in plan.components)
    for name in family.component_types:
        if files.has(name):
            parts[name] = _load_part(family.component_types[name], name, files, plan, device)
            tell(sum(plan.component(part).weight_bytes for part in parts if has_weights(part)), num_bytes)
    return parts


def _load_part(cls: Any, part: str, files: ModelFiles, plan: Plan, device: torch.device) -> Any:
    """Load one part from where it is: a folder, the model's single file, or the source of a VAE of its own."""
    if not has_weights(part):
        return load_tokenizer(cls, files.folder / part)
    folder = files.config_folder(part)
    home = device if loads_on_device(plan, part) else torch.device("cpu")
    dtype = load_dtype(plan, part)
    own = files.vae if part == "vae" else None
    if own is not None and own.file is not None:
        return load_from_file(cls, own.file, own.names, folder, dtype=dtype, device=home)
    if own is None and files.single is not None and part in files.held:
        return load_from_file(cls, files.single, files.held[part], folder, dtype=dtype, device=home)
    chosen = own.chosen if own is not None else files.parts[part]
    return load_part(
        cls,
        folder,
        variant=chosen.variant if chosen is not None else None,
        dtype=dtype,
        device=home,
        quantization_config=quantization_config_for(plan, part),
    )


def _tell_pace(name: str, files: ModelFiles, elapsed_s: float) -> None:
    """Log how long the weights took from disk to where they live; downloads and hashing are not in it."""
    gigabytes = sum(path.stat().st_size for path in files.weights.values()) / 1e9
    log.info(
        "model %s loaded: %.2f GB in %.1f s, %.2f GB/s",
        name,
        gigabytes,
        elapsed_s,
        gigabytes / max(elapsed_s, 1e-6),
        extra={"action": "model_loaded", "model": name},
    )


def _telling(what: str) -> Callable[[int, int], None]:
    """Return an `on_progress` that logs how far `what` is, now and then, once it takes longer than a moment."""
    began = time.monotonic()
    due = began + _FIRST_WORD_S

    def tell(done_bytes: int, num_bytes: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _WORDS_S
            log.info("%s: %.1f of %.1f GB", what, done_bytes / 1e9, num_bytes / 1e9, extra={"action": "model_progress"})

    return tell


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")  # noqa: TRY004  of a file, not of a caller
    return content


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
