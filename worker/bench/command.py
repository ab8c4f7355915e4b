"""The command line of `python -m worker.bench`: reads settings once, builds what is to be measured, measures it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farm.catalog import load_catalog
from farm.errors import FarmError
from farm.jobs import Acceleration
from farm.plans.published import find_published
from farm.requests import AccelerationSpec
from farm.settings import Settings
from worker.bench import table
from worker.bench.results import ResultFile, read_results
from worker.bench.voice import Voice
from worker.launcher import find_gpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.catalog import Catalog
    from worker.bench.on_disk import Subject
    from worker.forward import Toolbox
    from worker.gpu import Device

_MODELS: Final = {"cuda": "sd15,sdxl,flux-dev", "cpu": "scenes"}
_BATCHES: Final = {"cuda": "1,2,4,8,16,32", "cpu": "1,2,4,8"}
_SECONDS: Final = {"cuda": 8.0, "cpu": 4.0}
_GIB: Final = 1 << 30
_FAILED: Final = 1
_USAGE: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or render tables; return the exit code: 1 when anything failed or was refused, 2 for bad usage."""
    options = parser().parse_args(arguments)
    try:
        if options.table:
            return _show_tables(options.table, options.into)
        return _measure(options, Voice(as_events=options.events))
    except (FarmError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return _USAGE
    except KeyboardInterrupt:
        print("cut off; what was measured is in the file", file=sys.stderr)  # noqa: T201
        return 130


def parser() -> argparse.ArgumentParser:
    """Return what understands the options; `farm bench` passes its own on."""
    made = argparse.ArgumentParser(prog="farm bench", description="Measure this card.")
    add = made.add_argument
    add("--models", metavar="NAMES", help="models of the catalog, separated by commas; none for the card alone")
    add("--batches", metavar="SIZES", help="batch sizes, separated by commas")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--card", type=int, default=0, metavar="N", help="which of several cards: 0 is the first; others stay idle")
    add("--weights", choices=("auto", "random", "disk"), default="auto", help="auto: those on disk, else random ones")
    add("--steps", type=int, metavar="N", help="denoising steps; the model's own by default")
    add("--seconds", type=float, metavar="S", help="length of a measurement, at least")
    add("--vram", type=float, metavar="GIB", help="pass for a card of so much memory, and compare with its plan")
    add("--no-compare", action="store_true", help="leave out diffusers' own pipeline")
    add("--compiled", action="store_true", help="diffusers' pipeline compiled, too")
    add("--no-mixed", action="store_true", help="leave out the mixed load")
    add("--startup", action="store_true", help="time from a worker's start to its first image")
    add("--end-to-end", action="store_true", help="a whole farm on this card beside the bare engine")
    add("--optimise", metavar="LIST", help="as FARM_OPTIMISE, for these results alone: off, or some of what auto is")
    add("--precision", metavar="NAME", help="as FARM_PRECISION, for these results alone: fp8-dynamic and the like")
    add("--acceleration", metavar="JSON", help="what pictures give up to be made sooner, as in a job")
    add("--label", default="", help="name that sets these results apart from others of the same models")
    add("--scratch", type=Path, metavar="DIR", help="folder for weights that are written, with room for them")
    add("--out", type=Path, metavar="FILE", help="result file")
    add("--json", action="store_true", help="print the result file at the end")
    add("--events", action="store_true", help=argparse.SUPPRESS)
    add("--table", nargs="+", type=Path, metavar="FILE", help="measure nothing: print result files as Markdown")
    add("--into", type=Path, metavar="PAGE", help="with --table: put it between the marks in this page")
    return made


def _measure(options: argparse.Namespace, voice: Voice) -> int:
    # Tables need none of these, and they take seconds to import.
    import diffusers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from worker.bench.machine import default_result, describe  # noqa: PLC0415
    from worker.bench.model_run import Wishes  # noqa: PLC0415
    from worker.bench.session import run_session  # noqa: PLC0415
    from worker.forward import Toolbox  # noqa: PLC0415
    from worker.gpu import choose_device  # noqa: PLC0415
    from worker.pipelines.parts import silence  # noqa: PLC0415
    from worker.tuning.store import TUNING_FOLDER, Measured, Origin  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    silence()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    settings = _settings(options)
    if options.device != "cpu":
        show_one_card(options.card)
    device = choose_device(options.device)
    kind = device.torch.type
    if options.vram is not None and kind != "cuda":
        raise ValueError("--vram caps the memory of a card, and there is none")
    batches = sorted({int(size) for size in _list(options.batches or _BATCHES[kind])})
    tuning_dir = settings.tuning_dir or settings.models_dir / TUNING_FOLDER
    toolbox = Toolbox.of(
        settings.optimise,
        device,
        store=Measured(tuning_dir, Origin.of(device)),
        cache_dir=tuning_dir / "compile",
        max_batch=max(batches),
    )
    # What a worker compiles when it has been in demand for some time is to be compiled before a clock runs.
    toolbox = replace(toolbox, compile_after=0)
    catalog = load_catalog(settings.catalog_file).in_precision(settings.precision)
    names = _list(options.models if options.models is not None else _MODELS[kind])
    subjects = [find_subject(name, options, catalog, settings.models_dir, device, toolbox=toolbox) for name in names]
    wishes = Wishes(
        batches=batches,
        seconds=options.seconds or _SECONDS[kind],
        compare=not options.no_compare,
        compiled=options.compiled,
        mixed=not options.no_mixed,
        startup=options.startup,
        end_to_end=options.end_to_end,
        memory_bytes=None if options.vram is None else round(options.vram * _GIB),
        acceleration=Acceleration(**_acceleration(options).model_dump()),
        label=label_of(options),
        scratch=options.scratch,
    )
    machine = describe(device)
    if busy := machine.get("busy"):
        voice.fail(f"{busy}: stop what runs there, or these are not the figures of {device.kind} alone")
    results = ResultFile(options.out or default_result(device), machine)
    problems = run_session(device, subjects, wishes, settings=settings, results=results, voice=voice)
    voice.table("all of it", *table.summary([results.document]))
    voice.note(f"written to {results.path}")
    if options.json:
        voice.result(results.document)
    return _FAILED if problems else 0


def show_one_card(number: int) -> None:
    """Let torch, and the processes that are started from here, see one of this machine's cards. Raises ValueError."""
    cards = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if cards and not 0 <= number < len(cards):
        raise ValueError(f"there is no card {number}; there are {len(cards)}, from 0 on")
    if cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number].visible


def _settings(options: argparse.Namespace) -> Settings:
    """Return the environment's settings with what the command line changes of them. Raises ValueError."""
    changed = {"optimise": options.optimise, "precision": options.precision}
    asked = {name: value for name, value in changed.items() if value is not None}
    return Settings.model_validate({**Settings().model_dump(), **asked})


def _acceleration(options: argparse.Namespace) -> AccelerationSpec:
    return AccelerationSpec.model_validate_json(options.acceleration or "{}")


def label_of(options: argparse.Namespace) -> str:
    """Return the words that tell results with these options from the plain ones of the same model."""
    words = [f"{name}={value}" for name in ("optimise", "precision") if (value := getattr(options, name)) is not None]
    given = _acceleration(options).model_dump(exclude_defaults=True)
    words += [f"{name}={value:g}" for name, value in given.items()]
    return " ".join([*words, options.label]).strip()


def find_subject(
    name: str,
    options: argparse.Namespace,
    catalog: Catalog,
    models_dir: Path,
    device: Device,
    *,
    toolbox: Toolbox | None = None,
) -> Subject:
    """Return what is measured under `name`: the model that is on disk, or the published one with random weights.

    Raises UnknownModel, or ValueError when it can be had neither way.
    """
    from worker.bench.disk import DiskModel  # noqa: PLC0415  as above
    from worker.bench.published import builders  # noqa: PLC0415
    from worker.bench.random_weights import RandomModel  # noqa: PLC0415

    row = catalog.row(name)
    if options.steps is not None:
        row = row.model_copy(update={"num_inference_steps": options.steps})
    on_disk = DiskModel(row, models_dir, device, toolbox=toolbox)
    if options.weights == "disk" or (options.weights == "auto" and on_disk.is_here()):
        if not on_disk.is_here():
            raise ValueError(f"{name} is not on this machine: farm models pull {name}, or --weights random")
        return on_disk
    published, is_exact = find_published(row.source, row.family)
    if not is_exact:
        raise ValueError(f"{name} is not on this machine, and no published model that random weights can be made for")
    return RandomModel(row, builders(published), device, toolbox=toolbox)


def _show_tables(paths: Sequence[Path], page: Path | None) -> int:
    rendered = table.markdown([read_results(path) for path in paths])
    if page is None:
        print(rendered, end="")  # noqa: T201
    else:
        names = [str(path) for path in paths]
        page.write_text(table.put_into(page.read_text("utf-8"), names, rendered), "utf-8")
    return 0


def _list(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip() not in ("", "none")]
