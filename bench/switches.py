"""What changing models costs a worker: RAM over 200 switches, and a load from disk, with and without reading ahead.

    python bench/switches.py                     both, some minutes; writes bench/results/switches.json
    python bench/switches.py --switches 20       a rehearsal
    python bench/switches.py --no-trim           without giving freed memory back, for comparison; writes nothing

The real engine, loader and reader ahead, with random models of three families on the CPU. Weights are random: nothing
is downloaded. The page cache is emptied of a model's files by POSIX_FADV_DONTNEED, so that cold loads read the disk.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from farm.catalog import Catalog  # noqa: E402
from farm.settings import Settings  # noqa: E402
from tiny_flow_models import save_tiny_flux  # noqa: E402
from tiny_models import save_tiny_sd15, save_tiny_sdxl, tiny_row, tiny_unit  # noqa: E402
from worker import ram  # noqa: E402
from worker.engine import Engine  # noqa: E402
from worker.gpu import Device  # noqa: E402
from worker.models import WorkerModels  # noqa: E402
from worker.prefetch import read_through  # noqa: E402

if TYPE_CHECKING:
    from farm.jobs import Unit

RESULTS = ROOT / "bench" / "results" / "switches.json"
MB = 1e6
TURNS = ("sd15", "sdxl", "flux")
NUM_TURNS = len(TURNS)
WARM_UP = 30
"""Switches until libraries have loaded what they load late, and every cache has been used."""
NUM_COLD_LOADS = 5
NEARLY_NONE = 0.01  # pages that others touch meanwhile
WRITABLE_COPY = mmap.PROT_READ | mmap.PROT_WRITE  # what ctypes asks of memory that it takes the address of


def save_models(folder: Path) -> Catalog:
    """Save random models in 16 bits: two Stable Diffusions of some 35 MB, one tiny Flux, and one of 0.4 GB."""
    save_tiny_sd15(folder / "sd15", block_out_channels=(128, 256), attention_head_dim=8)
    save_tiny_sdxl(folder / "sdxl", block_out_channels=(128, 256))
    save_tiny_flux(folder / "flux", guidance_embeds=True)
    save_tiny_sd15(folder / "large", block_out_channels=(448, 896), attention_head_dim=8)
    for path in folder.rglob("*.safetensors"):
        # As models are published. In 32 bits a CPU would use the file's own pages, and nothing would be loaded.
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return Catalog(
        [
            tiny_row(folder / "sd15", name="sd15"),
            tiny_row(folder / "sdxl", name="sdxl", family="sdxl"),
            tiny_row(folder / "flux", name="flux", family="flux", guidance="embedded"),
            tiny_row(folder / "large", name="large"),
        ]
    )


def unit_for(model: str, index: int) -> Unit:
    """Return a unit whose prompt, seed and number of steps differ from its predecessors'."""
    own: dict[str, Any] = {"guided": False, "scheduler": "flow_euler"} if model == "flux" else {}
    return tiny_unit(
        model=model, index=index, seed=index, prompt=f"picture {index}", num_inference_steps=1 + index % 3, **own
    )


def weights_of(folder: Path) -> list[Path]:
    """Return a model's files of weights."""
    return sorted(folder.rglob("*.safetensors"))


def switch_models(catalog: Catalog, folder: Path, num_switches: int) -> dict[str, Any]:
    """Render one image of each model in turn, one of them resident; return what the process held after each."""
    models = WorkerModels(
        Settings(models_dir=folder, max_resident_models=1), catalog, Device(torch.device("cpu"), "cpu", None)
    )
    engine = Engine(models.load, max_batch=2, fits=models.fits, read_ahead=models.read_ahead)
    models.start()
    engine.start()
    held_mb = []
    for index in range(num_switches):
        engine.submit(unit_for(TURNS[index % NUM_TURNS], index)).result(timeout=120)
        held_mb.append((ram.held_bytes() or 0) / MB)
        if (index + 1) % 20 == 0:
            print(
                f"{index + 1:4} switches: {held_mb[-1]:.0f} MB, {engine.stats().loading_s:.0f} s of loads", flush=True
            )
    engine.stop()
    models.stop()
    stats = engine.stats()
    # What is held depends on which of the three is resident: one number for each time round.
    rounds = np.array(held_mb[WARM_UP : num_switches // NUM_TURNS * NUM_TURNS]).reshape(-1, NUM_TURNS).mean(axis=1)
    slope_mb = float(np.polyfit(np.arange(len(rounds)), rounds, 1)[0]) / NUM_TURNS if len(rounds) > 1 else 0.0
    return {
        "switches": num_switches,
        "weights_mb": {name: sum(x.stat().st_size for x in weights_of(folder / name)) / MB for name in stats.load_s},
        "load_s": {name: round(seconds, 3) for name, seconds in stats.load_s.items()},
        "loads": stats.loads,
        "unloads": stats.unloads,
        "growth_kb_per_switch": round(slope_mb * 1000, 1),
        "held_mb": [round(each, 1) for each in held_mb],
    }


def evict(folder: Path) -> None:
    """Have the kernel forget what it has cached of a model's files; fails if it does not."""
    for path in weights_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        assert cached_share(path) < NEARLY_NONE, f"{path} is still in RAM"


def cached_share(path: Path) -> float:
    """Return which share of a file's pages is in the page cache, without touching them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=WRITABLE_COPY) as pages:
        num_pages = -(-len(pages) // mmap.PAGESIZE)
        is_there = (ctypes.c_ubyte * num_pages)()
        start = ctypes.c_char.from_buffer(pages)
        try:
            failed = ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(pages)), is_there
            )
        finally:
            del start
        assert not failed, os.strerror(ctypes.get_errno())
        return sum(byte & 1 for byte in is_there) / num_pages


def load_cold_and_warm(catalog: Catalog, folder: Path) -> dict[str, Any]:
    """Time one model to its first picture: from disk, from the page cache, and from disk after reading ahead."""
    models = WorkerModels(Settings(models_dir=folder), catalog, Device(torch.device("cpu"), "cpu", None))
    seconds: dict[str, list[float]] = {"cold": [], "warm": [], "read_ahead": [], "reading_ahead": []}
    time_to_first_picture(models)  # hashes the files
    for _ in range(NUM_COLD_LOADS):
        evict(folder / "large")
        seconds["cold"].append(time_to_first_picture(models))
        seconds["warm"].append(time_to_first_picture(models))
        evict(folder / "large")
        began = time.perf_counter()
        for path in weights_of(folder / "large"):
            read_through(path, lambda _done, _all: None)
        seconds["reading_ahead"].append(time.perf_counter() - began)
        assert all(cached_share(path) > 1 - NEARLY_NONE for path in weights_of(folder / "large")), "RAM is short"
        seconds["read_ahead"].append(time_to_first_picture(models))
    num_bytes = sum(path.stat().st_size for path in weights_of(folder / "large"))
    return {
        "weights_mb": num_bytes / MB,
        "best_s": {name: round(min(each), 3) for name, each in seconds.items()},
        "median_s": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
    }


def time_to_first_picture(models: WorkerModels) -> float:
    """Return the seconds in which an engine without a model loads one and makes one step with it."""
    engine = Engine(models.load, max_batch=1)
    engine.start()
    began = time.perf_counter()
    engine.submit(unit_for("large", 0)).result(timeout=120)
    elapsed_s = time.perf_counter() - began
    engine.stop()
    del engine
    gc.collect()  # its model is not to take the RAM of the next one
    return elapsed_s


def main() -> None:
    """Run both parts and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--switches", type=int, default=200)
    parser.add_argument("--no-trim", action="store_true")
    parser.add_argument("--only-loading", action="store_true", help="keep what results/ says of switches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.no_trim:
        ram.give_back = lambda: None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalog = save_models(folder)
        found = {
            "hardware": f"{os.cpu_count()} cores, {ram.total_bytes() / 2**30:.0f} GiB",
            "torch": torch.__version__,
            "switching": (
                json.loads(RESULTS.read_text("utf-8"))["switching"]
                if options.only_loading
                else switch_models(catalog, folder, options.switches)
            ),
            "loading": load_cold_and_warm(catalog, folder),
        }
    print(json.dumps({**found, "switching": {**found["switching"], "held_mb": "…"}}, indent=2))
    if not options.no_trim:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
