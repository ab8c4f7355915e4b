"""What a result is worth nothing without: hardware, driver, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from farm.machine import num_cores, processor
from worker.gpu import driver_version, read_telemetry

if TYPE_CHECKING:
    from worker.gpu import Device

ROOT: Final = Path(__file__).resolve().parents[2]
_LIBRARIES: Final = ("torch", "diffusers", "transformers", "xformers", "torchao")
_BUSY_MIB: Final = 1024
"""What an idle card may hold: a desktop, the contexts of tools."""


def describe(device: Device) -> dict[str, Any]:
    """Return what a result file says of the machine; a field that does not apply is left out."""
    versions = {name: version for name in _LIBRARIES if (version := _version(name))}
    about: dict[str, Any] = {
        "device": device.kind,
        "cpu": f"{num_cores()} cores, {processor()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
        "farm": _version("diffusion-farm") or "unknown",
    }
    if device.torch.type == "cuda":
        properties = torch.cuda.get_device_properties(device.torch)
        about |= {
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver_version(),
            "cuda": torch.version.cuda,
        }
    else:
        about["device"] = f"CPU: {processor()}, {num_cores()} cores"
    if busy := neighbours(device):
        about["busy"] = busy
    if commit := find_commit():
        about["commit"] = commit
    return about


def neighbours(device: Device) -> str:
    """Return what others do on this device, empty when nobody is known to: figures beside them are not its own."""
    telemetry = read_telemetry(device)
    if telemetry is not None and telemetry.memory_used_mib is not None:
        others_mib = telemetry.memory_used_mib - torch.cuda.memory_reserved(device.torch) // 2**20
        return f"other processes hold {others_mib} MiB of the card" if others_mib > _BUSY_MIB else ""
    if device.torch.type == "cpu" and (load := os.getloadavg()[0]) > num_cores():
        return f"a load average of {load:.1f}"
    return ""


def default_result(device: Device) -> Path:
    """Return where a result goes: bench/results/ in a checkout, else a file in the current folder."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.kind.lower()).strip("-")
    if (ROOT / "bench" / "results").is_dir():
        return ROOT / "bench" / "results" / f"farm-bench-{slug}.json"
    return Path(f"farm-bench-{slug}.json")


def find_commit() -> str:
    """Return the commit of this checkout, with a + when files differ from it; empty without git."""
    try:
        asked = ["describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(["git", "-C", ROOT, *asked], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
