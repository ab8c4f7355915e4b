"""Result files as a table: for the README in Markdown, for a terminal as columns. Knows files only, and no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BEGIN: Final = "<!-- farm bench --table"
END: Final = "<!-- end of farm bench -->"
"""What stands around a table in a page; the first line goes on with the files that it is made of, and ` -->`."""

_NONE: Final = "–"
_SWEEP: Final = ("batch", "images/s", "step", "decode", "of the ceiling", "peak memory", "J/image")
_SUMMARY: Final = (
    "model",
    "what is rendered",
    "on",
    "batch",
    "images/s",
    "of the ceiling",
    "× diffusers",
    "same batch",
    "mixed",
    "J/image",
)


def summary(documents: Iterable[Mapping[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    """Return the head and one row for each model of each file, at its best batch; models not measured have none."""
    rows = []
    for document in documents:
        for name, section in document["models"].items():
            best = section.get("batches", {}).get(str(section.get("best_batch")))
            if best is None:
                continue
            ratios = section.get("diffusers", {})
            rows.append(
                [
                    f"`{section['workload']['model']}`{_variant(name, section)}",
                    describe(section["workload"]),
                    _device(document["machine"]),
                    str(section["best_batch"]),
                    _number(best["images_per_s"]),
                    _percent(best.get("share_of_ceiling")),
                    _ratio(ratios.get("one at a time")),
                    _ratio(ratios.get("same batch")),
                    _percent(section.get("mixed", {}).get("share_of_uniform")),
                    _number(best.get("joules_per_image")),
                ]
            )
    return _SUMMARY, rows


def sweep(section: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """Return the head and one row for each batch size of a model's section."""
    rows = []
    for batch, found in section.get("batches", {}).items():
        if reason := found.get("skipped"):
            rows.append([batch, reason, *[""] * (len(_SWEEP) - 2)])
            continue
        memory = found.get("peak_memory_gib")
        rows.append(
            [
                batch,
                _number(found["images_per_s"]),
                f"{_number(found['step_ms'])} ms",
                f"{_number(found['decode_ms'])} ms",
                _percent(found.get("share_of_ceiling")),
                _NONE if memory is None else f"{memory:.1f} GiB",
                _number(found.get("joules_per_image")),
            ]
        )
    return _SWEEP, rows


def markdown(documents: Iterable[Mapping[str, Any]]) -> str:
    """Return the summary of result files as Markdown."""
    head, rows = summary(documents)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in columns, for a terminal."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def tables_in(page: str) -> list[tuple[list[str], str]]:
    """Return of every table of a page the names of its files and its text."""
    found = []
    for part in page.split(BEGIN)[1:]:
        names, _, rest = part.partition("-->\n")
        found.append((names.split(), rest.partition(END)[0]))
    return found


def put_into(page: str, files: Sequence[str], rendered: str) -> str:
    """Return a page with its table renewed, as that of `files`. Raises ValueError when it has no place for one."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for a table, between `{BEGIN} … -->` and `{END}`")
    return f"{head}{BEGIN} {' '.join(files)} -->\n{rendered}{END}{tail}"


def describe(workload: Mapping[str, Any]) -> str:
    """Return what is rendered, in words."""
    guided = "guided" if workload["guided"] else "unguided"
    return (
        f"{workload['width']}x{workload['height']}, {workload['num_inference_steps']} steps of"
        f" {workload['scheduler']}, {guided}, {workload['dtype']}"
    )


def _device(machine: Mapping[str, Any]) -> str:
    """Return what was measured, and what else went on there."""
    return f"{machine['device']}, busy: {machine['busy']}" if "busy" in machine else str(machine["device"])


def _variant(name: str, section: Mapping[str, Any]) -> str:
    """Return what a section's name says beyond its model's."""
    rest = name.removeprefix(section["workload"]["model"]).strip()
    words = [rest] if rest else []
    words += ["random weights"] if section["workload"]["weights"] == "random" else []
    return f" ({', '.join(words)})" if words else ""


def _number(value: float | None) -> str:
    """Return a number with three significant digits."""
    if value is None:
        return _NONE
    digits = max(0, 2 - len(str(int(abs(value))).lstrip("0")) + 1) if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.1f}%"  # noqa: PLR2004


def _ratio(found: Mapping[str, Any] | None) -> str:
    return _NONE if found is None or "ratio" not in found else f"{found['ratio']:.2f}"
