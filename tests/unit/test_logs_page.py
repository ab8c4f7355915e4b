"""docs/monitoring.md tells every `action` that a line of the log may have: alerts and searches are built on them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")


def actions_of_the_code():
    """Return the actions that API and workers write, with those of a family written out."""
    found = set()
    for folder in ("api", "farm", "worker"):
        for file in (ROOT / folder).rglob("*.py"):
            if (ROOT / "worker" / "bench") not in file.parents:
                found |= set(re.findall(r'"action": f?"([\w{}]+)"', file.read_text(encoding="utf-8")))
    assert "unit_{outcome}" in found
    return (found - {"unit_{outcome}"}) | {f"unit_{name}" for name in ("stored", "repeated", "released", "lost")}


def actions_of_the_page():
    """Return the actions of the page's second table about logs."""
    table = PAGE.partition("| `action` | by | means |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    return {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)}


def test_every_action_is_explained():
    """None is missing, and none is told that nobody writes."""
    assert actions_of_the_page() == actions_of_the_code()
