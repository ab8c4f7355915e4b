"""The unattended list of what a card is to show: its commands are real, and bench/README.md has the same."""

import shlex
import sys
from pathlib import Path

import pytest

import first_light
from farm.catalog import Catalog
from first_light import CHECKS, Check, argv_of, as_markdown, run
from worker.bench.command import label_of, parser

ROOT = Path(__file__).resolve().parents[3]
BENCHES = [check for check in CHECKS if check.command.startswith("farm bench")]


@pytest.mark.parametrize("check", BENCHES, ids=lambda check: check.name)
def test_commands_are_understood(check):
    """Every option exists, every model is in the catalog, and every label can be made."""
    options = parser().parse_args(shlex.split(check.command)[2:])
    assert all(name in Catalog() for name in options.models.split(",") if name != "none")
    label_of(options)


def test_files_that_are_run_are_there():
    """Tests and scripts of the list exist."""
    for check in CHECKS:
        for word in shlex.split(check.command):
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), check.command


def test_no_two_checks_overwrite_each_other():
    """Each has a log of its own, and figures of one model with the same options are not measured twice."""
    assert len({check.name for check in CHECKS}) == len({check.command for check in CHECKS}) == len(CHECKS)


def test_the_page_lists_the_same_commands():
    """What bench/README.md says to run is what runs unattended; what was measured is all that is added there."""

    def rows(text):
        return [[cell.strip() for cell in line.split(" | ")][:4] for line in text.splitlines() if line.startswith("| ")]

    page = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    table = page.partition("<!-- bench/first_light.py --list -->\n")[2].partition("<!-- end -->")[0]
    assert rows(table) == rows(as_markdown(CHECKS))


def test_a_check_that_fails_or_hangs_lets_the_others_run(tmp_path, monkeypatch):
    """How each ended is told, and its words are in its log."""
    monkeypatch.setattr(first_light, "PROGRAMS", {"python": ()})
    quick = Check("quick", "", "", "python -c 'print(\"some words\")'")
    assert run(quick, tmp_path, limit_s=60) == "done"
    assert (tmp_path / "quick.log").read_text() == "some words\n"
    assert run(quick._replace(command="python -c 'raise SystemExit(3)'"), tmp_path, limit_s=60) == "FAILED with code 3"
    hangs = quick._replace(command="python -c 'import time; time.sleep(100)'")
    assert run(hangs, tmp_path, limit_s=0.5) == "cut off after 0 s"


def test_farm_means_this_checkout():
    """No other farm that is installed is measured by mistake."""
    assert argv_of("farm bench --models none")[:3] == (sys.executable, "-m", "cli.main")
