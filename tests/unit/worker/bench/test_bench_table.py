"""Tables: what they show of a result, and that the README's is what the committed files say."""

from pathlib import Path

import pytest

from worker.bench import table
from worker.bench.results import read_results

ROOT = Path(__file__).resolve().parents[4]
README = ROOT / "README.md"

BATCH = {
    "images_per_s": 2.3456,
    "step_ms": 41.23,
    "decode_ms": 12.3,
    "share_of_ceiling": 0.512,
    "peak_memory_gib": 9.87,
    "joules_per_image": 171.4,
}
SECTION = {
    "workload": {
        "model": "sd15",
        "weights": "random",
        "width": 512,
        "height": 512,
        "num_inference_steps": 20,
        "guided": True,
        "scheduler": "dpmpp_2m_karras",
        "dtype": "float16",
    },
    "batches": {"8": BATCH, "16": {"skipped": "out of memory"}},
    "best_batch": 8,
    "diffusers": {"one at a time": {"ratio": 4.123}, "same batch": {"ratio": 1.4}},
    "mixed": {"share_of_uniform": 0.934},
}
DOCUMENT = {"machine": {"device": "Some Card"}, "models": {"sd15": SECTION}}


def test_the_summary_tells_hardware_workload_and_ratios():
    """A row can be read alone: what was rendered, on what, how fast, and beside what."""
    (row,) = table.summary([DOCUMENT])[1]
    assert row == [
        "`sd15` (random weights)",
        "512x512, 20 steps of dpmpp_2m_karras, guided, float16",
        "Some Card",
        "8",
        "2.35",
        "51%",
        "4.12",
        "1.40",
        "93%",
        "171",
    ]


def test_what_was_not_measured_is_not_invented():
    """A CPU has no joules; without diffusers there is no ratio; a model without a rate has no row."""
    bare = {**SECTION, "batches": {"8": {**BATCH, "joules_per_image": None}}, "diffusers": {}, "mixed": {}}
    failed = {"failed": {"loading": "out of memory"}}
    rows = table.summary([{**DOCUMENT, "models": {"sd15": bare, "sdxl": failed}}])[1]
    assert [row[6:] for row in rows] == [["–", "–", "–", "–"]]


def test_a_busy_machine_is_named_beside_its_figures():
    """Nobody takes the figures of a machine that did other things as well for its best."""
    busy = {**DOCUMENT, "machine": {"device": "Some Card", "busy": "a load average of 9.1"}}
    assert table.summary([busy])[1][0][2] == "Some Card, busy: a load average of 9.1"


def test_a_section_says_what_sets_it_apart():
    """Results of one model under a cap, or with other settings, are told apart."""
    (row,) = table.summary([{**DOCUMENT, "models": {"sd15 in 24 GiB": SECTION}}])[1]
    assert row[0] == "`sd15` (in 24 GiB, random weights)"


def test_the_sweep_tells_why_a_size_is_missing():
    """Every batch size has its row; one that does not fit has its reason."""
    head, rows = table.sweep(SECTION)
    assert rows[0] == ["8", "2.35", "41.2 ms", "12.3 ms", "51%", "9.9 GiB", "171"]
    assert rows[1][:2] == ["16", "out of memory"]
    assert {len(row) for row in rows} == {len(head)}


@pytest.mark.parametrize(
    ("value", "words"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.4, "1234")]
)
def test_numbers_have_three_digits(value, words):
    """More digits than a measurement has would be a lie."""
    section = {**SECTION, "batches": {"8": {**BATCH, "images_per_s": value}}}
    assert table.summary([{**DOCUMENT, "models": {"sd15": section}}])[1][0][4] == words


def test_a_page_gets_its_table_between_the_marks():
    """All else in the page stays, and putting the same table in again changes nothing."""
    page = f"before\n{table.BEGIN} old.json -->\nold\n{table.END}\nafter\n"
    put = table.put_into(page, ["a.json", "b.json"], table.markdown([DOCUMENT]))
    assert put.startswith(f"before\n{table.BEGIN} a.json b.json -->\n| model |")
    assert put.endswith(f"{table.END}\nafter\n")
    assert table.tables_in(put) == [(["a.json", "b.json"], table.markdown([DOCUMENT]))]
    assert table.put_into(put, ["a.json", "b.json"], table.markdown([DOCUMENT])) == put


def test_a_page_without_marks_is_refused():
    """A table is not put somewhere."""
    with pytest.raises(ValueError, match="no place for a table"):
        table.put_into("a page", ["a.json"], "")


def test_columns_stand_below_each_other():
    """For a terminal without colours."""
    assert table.text(("a", "b"), [["long", "1"]]) == "a     b\nlong  1"


def test_the_readme_shows_what_the_committed_results_say():
    """Nobody edits a number by hand: `farm bench --table FILES --into README.md` writes it."""
    tables = table.tables_in(README.read_text(encoding="utf-8"))
    assert tables, "the README has no table of farm bench"
    for names, shown in tables:
        assert names
        assert shown == table.markdown([read_results(ROOT / name) for name in names])
