"""`farm plan`: how a model would be laid out on a card, as a picture of the card in each phase, a table, or JSON.

Asks no farm and loads nothing; the plan itself is made by farm.plans, as a worker makes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli import show
from cli.exits import CliError, Exit
from farm.catalog import load_catalog
from farm.errors import Fatal, UnknownModel
from farm.plans import NoPlan, plan_for_row, sizes_of
from farm.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.catalog import ModelRow
    from farm.plans import ModelSizes, Phase, Plan

_GIB: Final = 1 << 30
_BAR_CELLS: Final = 64
_STYLES: Final = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta", "bright_yellow")
_SOLID: Final = "█"
_FREE: Final = "·"
_ASSUMED: Final = (
    "Weights are exact. Working memory follows formulas that were checked on the full-size networks; 0.75 GiB for CUDA"
    " and its workspaces, and a tenth for fragments, are assumed until they are measured."
)


@dataclass(frozen=True)
class PlanOptions:
    """What is asked for; None is the model's own. `vram_gib` None asks the cards of this machine."""

    vram_gib: float | None = None
    width: int | None = None
    height: int | None = None
    batch: int = 1
    guided: bool | None = None
    lossy: bool = True
    extra_gib: float = 0.0
    as_json: bool = False


def run_plan(model: str, options: PlanOptions, settings: Settings | None = None) -> None:
    """Print the plan of a model for a card of the given size, or for each card here.

    Raises CliError: usage for what makes no sense, failure with the numbers for what does not fit.
    """
    settings = settings or Settings()
    try:
        row = load_catalog(settings.catalog_file).in_precision(settings.precision).row(model)
        sizes = sizes_of(row, settings.models_dir)
    except UnknownModel as error:
        raise CliError(f"{error}; choices: {', '.join(error.choices or ())}", code=Exit.USAGE) from error
    except Fatal as error:
        raise CliError(str(error)) from error
    _check_size(row, options)
    cards = _cards_here() if options.vram_gib is None else [("", round(options.vram_gib * _GIB))]
    failures, documents = [], []
    for name, vram_bytes in cards:
        try:
            plan = _plan(row, sizes, options, vram_bytes)
        except NoPlan as error:
            failures.append(f"{name}: {error}" if name else str(error))
            continue
        if options.as_json:
            documents.append({"card": name or None, "model": row.name, "origin": sizes.origin, **describe(plan)})
        else:
            show.console.print(picture(plan, row, sizes, card=name))
    if documents:
        show.console.print_json(json.dumps(documents[0] if options.vram_gib is not None else documents))
    if failures:
        raise CliError("\n       ".join(failures))


def describe(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON values; sizes are bytes."""
    return {
        "summary": plan.summary,
        "width": plan.width,
        "height": plan.height,
        "guided": plan.guided,
        "batch": plan.batch,
        "max_batch": plan.max_batch,
        "lossy": plan.is_lossy,
        "approximations": list(plan.approximations),
        "vae_tile_px": plan.vae_tile_px,
        "vram_bytes": plan.vram_bytes,
        "steady_bytes": plan.steady_bytes,
        "peak_bytes": plan.peak_bytes,
        "headroom_bytes": plan.headroom_bytes,
        "margin_bytes": plan.margin_bytes,
        "components": [
            {
                "name": part.name,
                "storage": part.storage.value,
                "compute": part.compute.value,
                "where": part.where.value,
                "weight_bytes": part.weight_bytes,
            }
            for part in plan.components
        ],
        "phases": [
            {"name": phase.name, "peak_bytes": phase.peak_bytes, "parts": dict(phase.parts)} for phase in plan.phases
        ],
    }


def picture(plan: Plan, row: ModelRow, sizes: ModelSizes, *, card: str = "") -> Group:
    """Return what to print: the card in each phase, the components, and what the plan changes and assumes."""
    images = f"{plan.batch} images" if plan.batch > 1 else "an image"
    head = Text(row.name, style="bold")
    head.append(f"  {images} of {plan.width}x{plan.height} at a time", style="not bold")
    head.append(f" on {card + ', ' if card else ''}{_gib(plan.vram_bytes)}", style="not bold")
    changes = ", ".join(plan.approximations) or "nothing: images are those of the 16-bit model"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("plan", plan.summary)
    facts.add_row("changes", Text(changes, style="yellow" if plan.approximations else ""))
    facts.add_row("seats", f"up to {plan.max_batch} images share a step")
    facts.add_row(
        "free", f"{_gib(plan.headroom_bytes)} at the peak, {_gib(plan.margin_bytes)} of it is kept as a margin"
    )
    facts.add_row("sizes", Text(sizes.origin))
    facts.add_row("assumed", _ASSUMED)
    return Group(head, Text(), *_bars(plan), Text(), _components(plan), Text(), facts, Text())


def _plan(row: ModelRow, sizes: ModelSizes, options: PlanOptions, vram_bytes: int) -> Plan:
    return plan_for_row(
        row,
        sizes,
        vram_bytes=vram_bytes,
        width=options.width,
        height=options.height,
        guided=options.guided,
        batch=options.batch,
        allow_lossy=options.lossy,
        extra_bytes=round(options.extra_gib * _GIB),
    )


def _check_size(row: ModelRow, options: PlanOptions) -> None:
    for name, pixels in (("--width", options.width), ("--height", options.height)):
        if pixels is not None and (pixels % row.size_multiple or not row.min_size <= pixels <= row.max_size):
            raise CliError(
                f"{name} {pixels}: {row.name} renders multiples of {row.size_multiple} pixels"
                f" from {row.min_size} to {row.max_size}",
                code=Exit.USAGE,
            )


def _cards_here() -> list[tuple[str, int]]:
    """Return name and memory of each NVIDIA card of this machine."""
    reason = "nvidia-ml-py is not installed"
    try:
        import pynvml  # noqa: PLC0415  comes with the worker's extra

        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            cards = [
                (str(pynvml.nvmlDeviceGetName(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
                for handle in handles
            ]
            if cards:
                return cards
            reason = "there is none"
        except pynvml.NVMLError as error:
            reason = str(error)
    except ImportError:
        pass
    raise CliError(
        f"no NVIDIA card to plan for ({reason}); say how much memory it has, such as --vram 24", code=Exit.USAGE
    )


def _bars(plan: Plan) -> Sequence[Text]:
    """Return a bar for each phase, and what its cells mean."""
    labels = list(dict.fromkeys(label for phase in plan.phases for label, _ in phase.parts))
    cells = _cells(labels)
    lines = [_bar(phase, plan.vram_bytes, cells) for phase in plan.phases]
    legend = Text(" " * 9)
    for label in labels:
        cell, style = cells[label]
        legend.append(cell, style=style)
        legend.append(f" {label}  ")
    legend.append(f"{_FREE} free", style="dim")
    return [*lines, legend]


def _cells(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a cell for each label: a colour on a terminal, a letter of its own where colours get lost."""
    has_colours = show.console.is_terminal and show.console.color_system is not None
    cells: dict[str, tuple[str, str]] = {}
    for label, style in zip(labels, _STYLES * (len(labels) // len(_STYLES) + 1), strict=False):
        taken = {cell for cell, _ in cells.values()}
        letter = next((char for char in (label + "xyzw").upper() if char.isalnum() and char not in taken), "#")
        cells[label] = (_SOLID if has_colours else letter, style)
    return cells


def _bar(phase: Phase, vram_bytes: int, cells: dict[str, tuple[str, str]]) -> Text:
    """Return `phase` as a bar as long as the card; each boundary is rounded, so that the lengths add up."""
    line = Text(f"{phase.name:<9}")
    held, drawn = 0, 0
    for label, num_bytes in phase.parts:
        held += num_bytes
        end = min(_BAR_CELLS, round(held / vram_bytes * _BAR_CELLS))
        cell, style = cells[label]
        line.append(cell * (end - drawn), style=style)
        drawn = end
    line.append(_FREE * (_BAR_CELLS - drawn), style="dim")
    line.append(f" {_gib(phase.peak_bytes):>9}")
    return line


def _components(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("component", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    for name in ("kept in", "computes in", "lives"):
        table.add_column(name, no_wrap=True)
    lives = {
        "resident": "on the card",
        "evicted": "in RAM, visits the card",
        "streamed": "in RAM, visits layer by layer",
    }
    for part in plan.components:
        table.add_row(part.name, _gib(part.weight_bytes), part.storage, part.compute, lives[part.where])
    return table


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB // 10 else f"{num_bytes / (1 << 20):.0f} MiB"
