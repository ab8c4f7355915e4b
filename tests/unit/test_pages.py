"""The pages of this repository lead somewhere: links, files that they name, and the way to each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "bench").glob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:api|bench|cli|docs|farm|prompts|tests|training|worker)/[\w/.*-]+|test_[\w*]+\.py)`")


def links_of(page):
    """Return the files and folders that a page links to."""
    targets = (link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8")))
    return {(page.parent / target).resolve() for target in targets if target and "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_are_there(page):
    """No page links to, or names by its path, what has moved or gone."""
    missing = {str(target) for target in links_of(page) if not target.exists()}
    for name in FILE.findall(page.read_text(encoding="utf-8")):
        if not any((ROOT / "tests").rglob(name) if name.startswith("test_") else ROOT.glob(name.rstrip("/"))):
            missing.add(name)
    assert missing == set()


def test_the_first_page_leads_to_every_page():
    """Whoever reads the README finds each page of docs/; decisions are found by their folder."""
    listed = links_of(ROOT / "README.md")
    assert DOCS / "decisions" in listed
    assert {str(page) for page in DOCS.glob("*.md")} <= {str(page) for page in listed}


def test_decisions_are_numbered_in_a_row():
    """Each decision has the number that its title tells, and none is missing."""
    records = sorted((DOCS / "decisions").glob("*.md"))
    for number, record in enumerate(records, start=1):
        assert record.name.startswith(f"{number:04d}-")
        assert record.read_text(encoding="utf-8").startswith(f"# {number}. ")
