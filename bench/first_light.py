"""What a new card is to show, one command after the other, unattended, each in less than ten minutes.

    python bench/first_light.py                     all of it, in the order of what it tells us
    python bench/first_light.py --only sd15,sdxl    some of it
    python bench/first_light.py --list              the commands, as Markdown

Each command is one that can be run by hand; bench/README.md has them with what is expected of each. One that fails or
takes too long leaves its log and lets the others run. Logs go to bench/results/first_light/, figures where each command
puts them. Weights are random: nothing is downloaded. The tests need what `make venv` installs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
LOGS: Final = ROOT / "bench" / "results" / "first_light"
LIMIT_S: Final = 600.0
PROGRAMS: Final = {
    "farm": ("-m", "cli.main"),
    "pytest": ("-m", "pytest"),
    "python": (),
}


class Check(NamedTuple):
    """One command: what it is called, what it shows, what we expect, and how it is run by hand."""

    name: str
    shows: str
    predicted: str
    command: str


_ALONE: Final = "--no-compare --no-mixed"
_SD15: Final = f"farm bench --models sd15 --batches 1,8 {_ALONE}"
_SDXL: Final = f"farm bench --models sdxl --batches 1,4 {_ALONE}"
_FLUX: Final = f"farm bench --models flux-dev --batches 1 {_ALONE}"

CHECKS: Final = (
    Check(
        "card", "the card's own ceilings", "4090: 165 fp16, 330 fp8; H100: 798 bf16 TFLOP/s", "farm bench --models none"
    ),
    Check(
        "images",
        "pictures of all families in 16 bits, in mixed company, are diffusers' own; `invariant` ones have the same"
        " bytes in any company, SD 1.5 at full size included",
        "all pass",
        "pytest tests/gpu/test_gpu_images.py",
    ),
    Check(
        "forward",
        "forwards recorded by the driver have the plain ones' bytes, padded and patched; compiled and fused they are"
        " near; a capture that fails leaves the device as it was",
        "all pass",
        "pytest tests/gpu/test_gpu_forward.py",
    ),
    Check(
        "limits",
        "a real out-of-memory error halves the batch and keeps every seat; a second worker on the card refuses",
        "all pass",
        "pytest tests/gpu/test_gpu_limits.py",
    ),
    Check(
        "seats",
        "seats of lanes are measured: curves of SD 1.5 and SDXL at full size, and memory that ends meanwhile",
        "2 to 4 s each; SD 1.5 8 to 16 seats, SDXL 2 to 4; no image lost",
        "pytest tests/gpu/test_gpu_caps.py -o log_cli=true --log-cli-level=INFO",
    ),
    Check("sd15", "SD 1.5 512², 20 steps", "H100: 11.5/s, 4 x diffusers", "farm bench --models sd15 --compiled"),
    Check(
        "sdxl",
        "SDXL 1024², 30 steps",
        "H100: 0.87 s, 2 x diffusers",
        "farm bench --models sdxl --batches 1,2,4,8",
    ),
    Check(
        "sdxl-compiled",
        "the same beside diffusers compiled",
        "",
        "farm bench --models sdxl --batches 1,4 --no-mixed --compiled --label compared",
    ),
    Check(
        "flux-dev",
        "Flux dev 1024², 28 steps",
        "H100: 3.75 s, 1.5 x diffusers",
        "farm bench --models flux-dev --batches 1,2",
    ),
    Check(
        "flux-schnell",
        "Flux schnell 1024², 4 steps",
        "0.52 s on an H100, at 70% of its ceiling",
        "farm bench --models flux-schnell --batches 1,2,4",
    ),
    Check(
        "plain-sd15", "what the next ones are held against: nothing but channels last", "1", f"{_SD15} --optimise off"
    ),
    Check("attention-sd15", "attention kernels chosen by measurement", "1.0 to 1.1", f"{_SD15} --optimise attention"),
    Check("fused-sd15", "query, key and value in one product", "1.00 to 1.03", f"{_SD15} --optimise fused"),
    Check(
        "graphs-sd15",
        "CUDA graphs",
        "batch 1: 1.3 to 1.8 on a fast card; batch 8: 1.0 to 1.1",
        f"{_SD15} --optimise graphs",
    ),
    Check("compile-sd15", "torch.compile, the UNet whole", "1.2 to 1.7", f"{_SD15} --optimise compile"),
    Check(
        "fp16-sd15",
        "products added up in fp16",
        "GeForce: 1.25; others: 1",
        f"{_SD15} --optimise fp16-accumulation",
    ),
    Check("plain-sdxl", "SDXL without any", "1", f"{_SDXL} --optimise off"),
    Check("compile-sdxl", "torch.compile, the UNet whole", "1.2 to 1.4", f"{_SDXL} --optimise compile"),
    Check(
        "fp16-sdxl", "products added up in fp16", "GeForce: 1.25; others: 1", f"{_SDXL} --optimise fp16-accumulation"
    ),
    Check("plain-flux", "Flux without any", "1", f"{_FLUX} --optimise off"),
    Check(
        "compile-flux",
        "torch.compile by regions",
        "1.4 to 1.6 (H100: 6.57 s eager, 4.21 s)",
        f"{_FLUX} --optimise compile",
    ),
    Check("graphs-flux", "CUDA graphs: Flux is no slave of its launches", "1.00 to 1.02", f"{_FLUX} --optimise graphs"),
    Check("fp8-flux", "products in fp8, by rows", "1.42 of bf16 with compile", f"{_FLUX} --precision fp8-dynamic"),
    Check(
        "int8-flux",
        "products in int8, by rows",
        "less than fp8 where there is fp8",
        f"{_FLUX} --precision int8-dynamic",
    ),
    Check("fp8-plain-flux", "the same without compile", "below 1", f"{_FLUX} --precision fp8-dynamic --optimise off"),
    Check("fp8-sdxl", "products of SDXL's linear layers in fp8", "1.1 to 1.2", f"{_SDXL} --precision fp8-dynamic"),
    Check(
        "guidance-sdxl",
        "guidance for the first 60% of the run",
        "1.25: a fifth of the rows is spared",
        f"{_SDXL} --acceleration '{{\"guidance_end\": 0.6}}'",
    ),
    Check(
        "deep-sdxl",
        "deep features for three calls; without graphs and compile, which it cannot have",
        "1.5 to 2",
        f"{_SDXL} --acceleration '{{\"deep_cache_interval\": 3}}'",
    ),
    Check(
        "cache-flux",
        "first-block cache; random weights change more from call to call than trained ones (`--weights disk`)",
        "1.3 to 1.5 with trained weights",
        f"{_FLUX} --acceleration '{{\"first_block_cache\": 0.1}}'",
    ),
    Check(
        "flux-in-24",
        "Flux as planned for 24 GiB, under a cap of 24: each phase's peak beside the plan's, time per image",
        "14 GiB at the peak of a step; as fast as uncapped but for the cast to 16 bits",
        f"{_FLUX} --vram 24",
    ),
    Check("flux-in-12", "Flux streamed or in fewer bits", "the plan's peaks", f"{_FLUX} --vram 12"),
    Check("sdxl-in-8", "SDXL with evicted text encoders", "the plan's peaks", f"{_SDXL} --vram 8"),
    Check("sd15-in-4", "SD 1.5 on a small card", "the plan's peaks", f"{_SD15} --vram 4"),
    Check(
        "start-sd15",
        "a worker's start to its first image, cold and warm",
        "imports 5 to 8 s; weights at the disk's speed",
        f"farm bench --models sd15 --batches 1 {_ALONE} --startup",
    ),
    Check("start-sdxl", "the same of SDXL", "7 GB more", f"farm bench --models sdxl --batches 1 {_ALONE} --startup"),
    Check(
        "start-flux",
        "the same of Flux; 34 GB of disk",
        "34 GB at 2 to 5 GB/s",
        f"farm bench --models flux-dev --batches 1 {_ALONE} --startup",
    ),
    Check(
        "farm-sd15",
        "the whole farm over the bare engine",
        "0.97",
        f"farm bench --models sd15 --batches 8 {_ALONE} --end-to-end",
    ),
    Check("farm-sdxl", "the same of SDXL", "0.99", f"farm bench --models sdxl --batches 4 {_ALONE} --end-to-end"),
    Check("lora-swap", "a LoRA of rank 32 into SDXL and out again", "below 0.2 s", "python bench/lora_swap.py"),
)


def argv_of(command: str) -> tuple[str, ...]:
    """Return how a command of the list is run with this Python."""
    program, *arguments = shlex.split(command)
    return (sys.executable, *PROGRAMS[program], *arguments)


def as_markdown(checks: Sequence[Check]) -> str:
    """Return the list as bench/README.md has it; what was measured is filled in there."""
    lines = ["| | what it shows | command | predicted | measured |", "|---|---|---|---|---|"]
    lines += [f"| {each.name} | {each.shows} | `{each.command}` | {each.predicted} | |" for each in checks]
    return "\n".join(lines) + "\n"


def run(check: Check, logs: Path, *, limit_s: float) -> str:
    """Run one check, its words into a log; return how it ended."""
    logs.mkdir(parents=True, exist_ok=True)
    # A missing card is a failure here, and never a skip.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "REQUIRE_GPU": "1"}
    with (logs / f"{check.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(argv_of(check.command), cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return f"cut off after {limit_s:.0f} s"
    return "done" if code == 0 else f"FAILED with code {code}"


def main() -> int:
    """Run the checks asked for, or list them; return 1 when any did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of checks, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds that each may take")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or [each.name for each in CHECKS]
    if unknown := set(names) - {each.name for each in CHECKS}:
        parser.error(f"there is no check {', '.join(sorted(unknown))}; --list shows all")
    chosen = [each for each in CHECKS if each.name in names]
    if options.list:
        print(as_markdown(chosen), end="")
        return 0
    ends = []
    for check in chosen:
        print(f"{check.name}: {check.command}", flush=True)
        began = time.monotonic()
        ends.append(run(check, LOGS, limit_s=options.limit_s))
        print(f"  {ends[-1]} after {time.monotonic() - began:.0f} s; {LOGS / check.name}.log", flush=True)
    return int(any(end != "done" for end in ends))


if __name__ == "__main__":
    sys.exit(main())
