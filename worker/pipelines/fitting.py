"""The memory plan of a model whose files are at hand, on the device that there is.

What a plan is and which are tried is farm/plans' business; carrying one out is placement.py's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from farm.errors import FarmError
from farm.plans import DYNAMIC, ModelSizes, Precision, Where, plan_for_row, sizes_of
from farm.plans.sizes import measure
from farm.plans.working import CONTEXT_BYTES
from farm.weights import read_header
from worker import ram
from worker.budget import Footprint
from worker.pipelines.placement import can_load_4bit
from worker.pipelines.quantising import check_precision

if TYPE_CHECKING:
    from pathlib import Path

    from farm.catalog import ModelRow
    from farm.plans import Plan
    from farm.weights import ModelFiles


def plan_model(row: ModelRow, files: ModelFiles, device: torch.device, *, memory_bytes: int) -> Plan:
    """Return the plan by which the model of `files` is loaded.

    Raises NoPlan, with the numbers, when none fits, and ModelBroken when the row asks for a precision that this worker
    cannot make.
    """
    kind: Literal["cuda", "cpu"] = "cuda" if device.type == "cuda" else "cpu"
    if kind == "cuda" and row.precision is not None:
        check_precision(Precision(row.precision), torch.cuda.get_device_capability(device))
    return plan_for_row(
        row,
        sizes_in(files),
        vram_bytes=memory_bytes,
        device_kind=kind,
        # 4 bits are made while diffusers reads a folder; a denoiser from a single file comes otherwise.
        can_load_4bit=can_load_4bit() and not {"unet", "transformer"} & files.held.keys(),
    )


def footprint_of(
    row: ModelRow, models_dir: Path, device: torch.device, *, memory_bytes: int, max_batch: int
) -> Footprint | None:
    """Return what the model will take once it is loaded, None when that cannot be told; nothing is downloaded.

    Lanes have at most `max_batch` seats. Of files that are not here yet the published sizes count.
    """
    on_card = device.type == "cuda"
    try:
        plan = plan_for_row(
            row,
            sizes_of(row, models_dir),
            vram_bytes=memory_bytes,
            device_kind="cuda" if on_card else "cpu",
            can_load_4bit=can_load_4bit() and row.filename is None,
        )
    # Whatever is wrong with a model's files, its loader says so in words.
    except (FarmError, OSError, ValueError, LookupError, StopIteration):
        return None
    seats = min(max_batch, row.max_batch or max_batch)
    return Footprint.of(plan, max_batch=seats, on_card=on_card)


def sizes_in(files: ModelFiles) -> ModelSizes:
    """Return the sizes of a model's parts, read from the headers of its files."""
    tensors = {
        part: {name: info for path in chosen.paths(files.folder / part) for name, info in read_header(path).items()}
        for part, chosen in files.parts.items()
    }
    if files.single is not None:
        whole = read_header(files.single)
        tensors |= {part: {name: whole[full] for name, full in held.items()} for part, held in files.held.items()}
    if files.vae is not None:
        tensors["vae"] = {name: info for path in files.vae.weights for name, info in read_header(path).items()}
    return ModelSizes(tuple(measure(part, held) for part, held in tensors.items()), f"headers under {files.folder}")


def with_safe_vae(plan: Plan, *, overflows: bool) -> Plan:
    """Return `plan` with a VAE that computes in bf16 where fp16 would overflow.

    There diffusers' pipelines go to fp32 without a word, which takes ten times as long; bf16 has the range of fp32 at
    the speed and size of fp16, for a little precision that no eye sees.
    """
    if not overflows or plan.component("vae").compute is not Precision.FP16:
        return plan
    vae = replace(plan.component("vae"), storage=Precision.BF16, compute=Precision.BF16)
    return replace(plan, components=tuple(vae if part.name == "vae" else part for part in plan.components))


def loads_on_device(plan: Plan, part: str) -> bool:
    """Return whether a part is to be read straight to the device, and not to RAM to go on from there.

    What loses bits on the way is too large for the device before it has lost them; only 4 bits are made while reading.
    """
    planned = plan.component(part)
    return planned.where is Where.RESIDENT and planned.storage not in {Precision.FP8, *DYNAMIC}


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that a model may count on: of the card, less what others use of it; of RAM, all."""
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        # What this process holds already is the room of models that make way; its context is in every plan.
        return min(total_bytes, free_bytes + torch.cuda.memory_reserved(device) + CONTEXT_BYTES)
    return ram.total_bytes()
