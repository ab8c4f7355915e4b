"""docs/samplers.md says what is true: its table is made from the rows and their schedules.

Run this file to write the table anew.
"""

from __future__ import annotations

from pathlib import Path

from farm.schedulers import MODELS_OF, SCHEDULERS, schedulers_of
from worker.sampling import schedule_for

PAGE = Path(__file__).resolve().parents[3] / "docs/samplers.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
CONFIGS = {
    "diffusion": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False},
    "flow": {"shift": 3.0},
}
STEPS = 12


def table(group):
    """Return the lines of one group: each sampler once, with its spacings."""
    lines = [
        "| name | and with | A1111 | diffusers class | calls per step | noise | residual |",
        "|---|---|---|---|---|---|---|",
    ]
    samplers = [row for row in schedulers_of(group) if row.a1111_schedule == "Automatic"]
    for row in samplers:
        spaced = [other for other in SCHEDULERS if other.group == group and other.a1111_schedule != "Automatic"]
        same = [other for other in spaced if (other.a1111_sampler, other.diffusers_class) == _sampler(row)]
        suffixes = ", ".join(f"`{other.name.removeprefix(row.name)}`" for other in same)
        schedule = schedule_for(row, CONFIGS[group], STEPS)
        noise = "tree" if schedule.brownian else "generator" if any(schedule.draws_noise) else ""
        cells = [
            f"`{row.name}`",
            suffixes,
            row.a1111_sampler,
            row.diffusers_class,
            str(round(len(schedule) / STEPS)),
            noise,
            "< 1e-8" if schedule.residual < 1e-8 else "< 1e-6",
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return lines


def _sampler(row):
    return row.a1111_sampler, row.diffusers_class


def tables():
    """Return both tables as they stand in the page."""
    parts = [f"\n## {group}: {models}\n\n" + "\n".join(table(group)) + "\n" for group, models in MODELS_OF.items()]
    return "".join(parts) + "\n"


def test_the_page_lists_every_sampler_as_it_is():
    """Names, spacings, classes and behaviour in docs/samplers.md are those of the rows."""
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == tables()


if __name__ == "__main__":
    page = PAGE.read_text()
    PAGE.write_text(page[: page.index(BEGIN) + len(BEGIN)] + tables() + page[page.index(END) :])
