"""The tables of docs/memory-plans.md say what the code plans."""

from pathlib import Path

from farm.catalog import Catalog
from farm.plans import NoPlan, plan_for_row, sizes_of

PAGE = Path(__file__).parents[3] / "docs" / "memory-plans.md"
MARK = "<!-- plans:"
GIB = 1 << 30
MODELS = ("sd15", "sd21", "sdxl", "flux-schnell", "flux-dev", "sd35-medium", "sd35-large")
CARDS_GIB = (8, 12, 16, 24, 48, 80)


def line(row, sizes, vram_gib):
    """Return one card's line in the table of one model."""
    try:
        plan = plan_for_row(row, sizes, vram_bytes=vram_gib * GIB)
    except NoPlan as error:
        return f"| {vram_gib} | none: needs {error.needed_bytes / GIB:.1f} | | | | | |"
    peaks = " | ".join(f"{phase.peak_bytes / GIB:.1f}" for phase in plan.phases)
    lossy = "lossy" if plan.is_lossy else ""
    return f"| {vram_gib} | {plan.summary} | {peaks} | {plan.max_batch} | {lossy} |"


def tables(folder):
    """Return the tables of all models, with no files on disk."""
    lines = []
    for row in (row for name in MODELS for row in Catalog() if row.name == name):
        guided = ", guided" if row.guidance == "cfg" and row.guidance_scale > 1 else ""
        lines += [
            "",
            f"### {row.name}, {row.width} x {row.height}{guided}",
            "",
            "| card, GiB | plan | encode, GiB | denoise | decode | seats | |",
            "|---|---|---|---|---|---|---|",
            *(line(row, sizes_of(row, folder), vram_gib) for vram_gib in CARDS_GIB),
        ]
    return "\n".join(lines) + "\n"


def test_the_page_shows_the_plans_of_the_code(tmp_path):
    """Every model on every card: the page ends with what the code says; the failure shows what to put there."""
    text = PAGE.read_text("utf-8")
    _, mark, rest = text.partition(MARK)
    assert mark, f"{PAGE} lacks its mark"
    assert rest.partition("\n")[2] == tables(tmp_path)
