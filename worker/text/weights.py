r"""The grammar of a prompt, as AUTOMATIC1111 has it: `(more)`, `[less]`, `(this much:1.3)`, `\(`, BREAK. Pure.

Text goes in, pieces with weights come out. Tokens, and where 75 of them end, are worker/text/chunks.py's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

MAX_WEIGHT: Final = 100.0
"""Weights are held to this, either way: `((((…` multiplies without bound, and half precision would overflow."""

_FACTORS: Final = {"(": 1.1, "[": 1 / 1.1}
_OPENED_BY: Final = {")": "(", "]": "["}

_LEXEME: Final = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)                                      # a backslash before anything else just goes
    | (?P<open>[(\[])
    | :\s*(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?P<words>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE | re.ASCII,
)
# Begins where the blanks begin: to try it at each of thousands of blanks takes seconds.
_BREAK: Final = re.compile(r"(?:(?<!\s)\s+)?\bBREAK\b\s*")


class Piece(NamedTuple):
    """Some text and how much it counts: 1 is plain."""

    text: str
    weight: float = 1.0


@dataclass(slots=True)
class _Bracket:
    """An open bracket: where it stands, and by how much it multiplies once it is closed."""

    first: int
    factor: float
    end: int | None = None


@lru_cache(maxsize=256)
def parse_weights(prompt: str) -> tuple[tuple[Piece, ...], ...]:
    """Return the sections of `prompt` between BREAKs, each a row of pieces; neighbours differ in weight.

    There is always one section, and a section may be empty. Round and square brackets are matched apart from each
    other; a bracket that is never closed reaches to the end, one that was never opened is text. Never fails.
    """
    texts: list[str | None] = []  # None is a BREAK
    brackets: list[_Bracket] = []
    open_brackets: dict[str, list[_Bracket]] = {"(": [], "[": []}

    for match in _LEXEME.finditer(prompt):
        kind, lexeme = match.lastgroup, match.group()
        closes = ")" if kind == "number" else lexeme
        if kind == "escaped":
            texts.append(match["escaped"])
        elif kind == "open":
            brackets.append(_Bracket(len(texts), _FACTORS[lexeme]))
            open_brackets[lexeme].append(brackets[-1])
        elif closes in _OPENED_BY and open_brackets[_OPENED_BY[closes]]:
            bracket = open_brackets[_OPENED_BY[closes]].pop()
            bracket.end = len(texts)
            if kind == "number":
                bracket.factor = min(max(float(match["number"]), -MAX_WEIGHT), MAX_WEIGHT)
        else:
            first, *others = _BREAK.split(lexeme)
            texts.append(first)
            for other in others:
                texts += [None, other]
    return _gather(texts, _weights_of(len(texts), brackets))


def _weights_of(num_texts: int, brackets: list[_Bracket]) -> list[float]:
    """Return for each text the product of the brackets around it, rounded: `([a])` is 1 and not nearly 1."""
    starts: dict[int, list[_Bracket]] = {}
    ends: dict[int, list[_Bracket]] = {}
    for bracket in brackets:
        if bracket.first != bracket.end:
            starts.setdefault(bracket.first, []).append(bracket)
            ends.setdefault(num_texts if bracket.end is None else bracket.end, []).append(bracket)
    around: dict[int, float] = {}
    weights: list[float] = []
    weight = 1.0
    for number in range(num_texts):
        if number in starts or number in ends:
            for bracket in ends.get(number, ()):
                del around[id(bracket)]
            around.update((id(bracket), bracket.factor) for bracket in starts.get(number, ()))
            product = math.prod(around.values(), start=1.0)
            if math.isnan(product):  # so many brackets that they are infinite, times 0
                product = 0.0
            weight = min(max(round(product, 9) if math.isfinite(product) else product, -MAX_WEIGHT), MAX_WEIGHT)
        weights.append(weight)
    return weights


def _gather(texts: list[str | None], weights: list[float]) -> tuple[tuple[Piece, ...], ...]:
    """Join neighbours of one weight and cut at BREAKs."""
    sections: list[list[Piece]] = [[]]
    for text, weight in zip(texts, weights, strict=True):
        section = sections[-1]
        if text is None:
            sections.append([])
        elif not text:
            continue
        elif section and section[-1].weight == weight:
            section[-1] = Piece(section[-1].text + text, weight)
        else:
            section.append(Piece(text, weight))
    return tuple(tuple(section) for section in sections)
