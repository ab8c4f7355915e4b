"""The grammar of weights, against trees of brackets that were written out and read back."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.text.weights import MAX_WEIGHT, Piece, parse_weights

PAGE = Path(__file__).parents[4] / "docs" / "prompts.md"
WORDS = st.text("abc ,.-\n", min_size=1, max_size=8)
ESCAPED = st.sampled_from("()[]\\")
NUMBERS = st.sampled_from([".5", "0.9", "1", "1.25", "+1.3", "-0.5", "2.", "0"])


class Leaf(str):
    """Text, as it is meant."""

    __slots__ = ()

    def written(self):
        return "".join("\\" + letter if letter in "()[]\\" else letter for letter in self)

    def letters(self, weight):
        return [(letter, weight) for letter in self]


class Bracket:
    """What stands in brackets, and what they do."""

    def __init__(self, children, kind):
        self.children = children
        self.kind = kind

    def __repr__(self):
        return self.written()

    def written(self):
        inside = "".join(child.written() for child in self.children)
        if self.kind == "(":
            return f"({inside})"
        if self.kind == "[":
            return f"[{inside}]"
        return f"({inside}:{self.kind})"

    def letters(self, weight):
        factor = {"(": 1.1, "[": 1 / 1.1}.get(self.kind)
        inner = weight * (float(self.kind) if factor is None else factor)
        return [pair for child in self.children for pair in child.letters(inner)]


LEAVES = st.one_of(WORDS.map(Leaf), ESCAPED.map(Leaf))
TREES = st.lists(
    st.recursive(
        LEAVES,
        lambda inner: st.builds(Bracket, st.lists(inner, max_size=3), st.one_of(st.sampled_from(["(", "["]), NUMBERS)),
        max_leaves=12,
    ),
    max_size=5,
)


def letters_of(sections):
    """Return the letters of all pieces with their weights, BREAKs aside."""
    return [(letter, piece.weight) for section in sections for piece in section for letter in piece.text]


@given(TREES)
def test_what_was_written_is_read_back(trees):
    """Every letter of a tree of brackets has the product of the brackets around it; escapes are letters."""
    prompt = "".join(tree.written() for tree in trees)
    expected = [pair for tree in trees for pair in tree.letters(1.0)]
    found = letters_of(parse_weights(prompt))
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@given(st.text(st.characters(exclude_characters="()[]\\")).filter(lambda text: "BREAK" not in text))
def test_a_plain_prompt_is_one_piece(prompt):
    """Text without marks comes out as it went in, whatever else is in it."""
    assert parse_weights(prompt) == ((Piece(prompt, 1.0),) if prompt else (),)


@given(st.one_of(st.text(), st.text("()[]\\:.0159 aBREAK+-", max_size=300)))
def test_no_text_is_an_error(prompt):
    """Brackets may stand as they like: weights stay finite, neighbours differ, and no letter is made up."""
    sections = parse_weights(prompt)
    assert sections
    for section in sections:
        assert all(piece.text and math.isfinite(piece.weight) and abs(piece.weight) <= MAX_WEIGHT for piece in section)
        assert all(one.weight != other.weight for one, other in pairwise(section))
    rest = iter(prompt)
    assert all(letter in rest for letter, _ in letters_of(sections))


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a (b) c", [("a ", 1), ("b", 1.1), (" c", 1)]),
        ("((b))", [("b", 1.21)]),
        ("[b]", [("b", 1 / 1.1)]),
        ("[(b)] c", [("b c", 1)]),
        ("(b:1.3)", [("b", 1.3)]),
        ("(b: 1.3 )", [("b", 1.3)]),
        ("(a:b:.5)", [("a:b", 0.5)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3), (" c", 1.5)]),
        (r"robot \(toy\)", [("robot (toy)", 1)]),
        (r"a\b \\ c", [("ab \\ c", 1)]),
        ("a (b c", [("a ", 1), ("b c", 1.1)]),
        ("a [b c", [("a ", 1), ("b c", 1 / 1.1)]),
        ("a) b] c", [("a) b] c", 1)]),
        ("a :1.3) b", [("a :1.3) b", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("[b:1.3]", [("b:1.3", 1 / 1.1)]),
        ("(b:1.2.3)", [("b:1.2.3", 1.1)]),
        ("(b:nan)", [("b:nan", 1.1)]),
        ("a () b (:2) c", [("a  b  c", 1)]),
        ("(" * 4000 + "a", [("a", 100)]),
        ("(a:-99999)", [("a", -100)]),
        ("(" * 8000 + "(a:0)", [("a", 0)]),
    ],
)
def test_marks_as_a1111_reads_them(prompt, pieces):
    """Nesting, numbers, escapes, and brackets without a partner."""
    (section,) = parse_weights(prompt)
    assert [piece.text for piece in section] == [text for text, _ in pieces]
    assert [piece.weight for piece in section] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a\nBREAK\nb", [["a"], ["b"]]),
        ("a, BREAK, b", [["a,"], [", b"]]),
        ("BREAK a", [[], ["a"]]),
        ("a BREAK", [["a"], []]),
        ("a BREAK BREAK b", [["a"], [], ["b"]]),
        ("BREAKFAST, a break, OUTBREAK", [["BREAKFAST, a break, OUTBREAK"]]),
        ("(a BREAK b)", [["a"], ["b"]]),
    ],
)
def test_break_ends_a_section(prompt, sections):
    """BREAK in capitals, as a word, takes the blanks around it along; brackets reach across."""
    parsed = parse_weights(prompt)
    assert [[piece.text for piece in section] for section in parsed] == sections
    weights = {piece.weight for section in parsed for piece in section}
    assert weights == {1.1 if "(" in prompt else 1.0}


def test_the_page_for_users_says_what_is_so():
    """Each row of the table in docs/prompts.md is what the parser makes of its prompt."""
    rows = re.findall(r"^\| `(.+?)` \| (`.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 8
    for prompt, described in rows:
        (section,) = parse_weights(prompt)
        words = [f"`{text}`" + ("" if weight == 1 else f" × {round(weight, 3):g}") for text, weight in section]
        assert " · ".join(words) == described, prompt
