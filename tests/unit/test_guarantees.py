"""Each promise of docs/guarantees.md, and each threat of docs/security.md, names tests, and they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split("\n## What is not promised\n")
    for name in ("guarantees", "security")
}
# Of security.md only this part is promises; what stands before it explains.
PROMISED = {
    "guarantees": PAGES["guarantees"][0],
    "security": PAGES["security"][0].partition("\n## Threats\n")[2].partition("\n## The audit log\n")[0],
}
PROMISES = {name: re.findall(r"^- (.+(?:\n  .+)*)", text, re.MULTILINE) for name, text in PROMISED.items()}
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def names_of(file):
    """Return what a file of tests defines at its top level."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    # State machines of hypothesis are made into tests by an assignment.
    assigned = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in names_in(node)}
    return functions | assigned


def names_in(assignment):
    """Return the plain names that an assignment assigns."""
    return [target for target in assignment.targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize(
    "promise",
    [promise for promises in PROMISES.values() for promise in promises],
    ids=lambda promise: " ".join(re.findall(r"\w+", promise)[:6]),
)
def test_a_promise_names_tests_that_exist(promise):
    """None is without one, and none has been renamed or deleted since."""
    tests = TEST.findall(promise)
    assert tests
    assert "::" not in TEST.sub("", promise), "a test that cannot be read as one"
    for file, name in tests:
        assert name.lower().startswith("test")
        assert (ROOT / file).is_file(), file
        assert name in names_of(file), f"{file} has no {name}"


@pytest.mark.parametrize(("name", "least"), [("guarantees", 30), ("security", 25)])
def test_all_of_the_page_was_read(name, least):
    """Every item before the last part is a promise, and the last part is none."""
    assert len(PROMISES[name]) == PROMISED[name].count("\n- ") > least
    assert "::" not in PAGES[name][1]
    assert PAGES[name][0].count("::") == PROMISED[name].count("::")
