"""The grammar of templates: `{a|b}`, `{2$$a|b|c}`, `__wildcard__`, `${name=…}`; from text to a tree. Pure.

The grammar is that of sd-dynamic-prompts, which users of Stable Diffusion know. What a tree stands for is said in
api.batches.sampling, what a wildcard does in api.batches.wildcards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from farm.errors import Refused

MAX_DEPTH: Final = 12
"""Braces within braces; nobody writes more, and each is a call within a call."""

Sampler = Literal["", "!", "~", "@"]
"""How a choice is made: as the template's mode says, or each in turn (`!`), by chance (`~`), round and round (`@`)."""


@dataclass(frozen=True, slots=True)
class Text:
    """Words that stand for themselves."""

    text: str


@dataclass(frozen=True, slots=True)
class Parts:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """One of a choice, and how likely it is beside the others."""

    node: Node
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """`low` to `high` different ones of the options, in any order, with a separator between."""

    options: tuple[Option, ...]
    low: int = 1
    high: int = 1
    separator: str = ","
    sampler: Sampler = ""


@dataclass(frozen=True, slots=True)
class Wildcard:
    """A line of a file, or of all files that a pattern with `*` names."""

    name: str
    sampler: Sampler = ""


@dataclass(frozen=True, slots=True)
class Assign:
    """`${name=value}`; `=!` decides once what it is, for all places that name it, `?=` only where nothing is set."""

    name: str
    value: Node
    once: bool
    keeps: bool


@dataclass(frozen=True, slots=True)
class Variable:
    """`${name}`, or `${name:what it is where nobody set it}`."""

    name: str
    default: Node | None


Node = Text | Parts | Choice | Wildcard | Assign | Variable

_LORA_TAG: Final = re.compile(r"<(?:lora|lyco):[^<>{}|$]*>", re.IGNORECASE)  # its name may have `__` in it
_WILDCARD: Final = re.compile(r"__([!~@]?)\s*([\w*][\w*./ -]*?)\s*__(?!_)")
_BOUNDS: Final = re.compile(r"\s*(?:(\d{1,6})?(-)(\d{1,6})?|(\d{1,6}))\$\$(?:([^${}]*)\$\$)?")
_WEIGHT: Final = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})::")
_NAME: Final = re.compile(r"\s*([A-Za-z_-][\w-]*)\s*", re.ASCII)
_PLAIN: Final = re.compile(r"[^\\{}|_$<]+")
_ESCAPED: Final = ("{", "}", "|", "_", "$")


def is_template(text: str) -> bool:
    """Whether a text can stand for anything but itself."""
    return "{" in text or "__" in text


def parse(text: str) -> Node:
    """Return the tree of a template.

    Weights (`(a:1.2)`, `[a]`) and LoRA tags are text, and so is what looks like a mark and is none: a `}` without a
    `{`, a `__` without another. A backslash makes `{`, `}`, `|`, `_` and `$` letters. Raises Refused, without a field,
    for a brace that is never closed, nesting beyond MAX_DEPTH, and what cannot be meant.
    """
    return _Parser(text).whole()


class _Parser:
    """Reads a template from left to right; every method leaves `_at` behind what it has read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        return self._parts(ends="")

    def _parts(self, ends: str) -> Node:
        """Read up to one of `ends`, or to the end of the text where none is given."""
        parts: list[Node] = []
        words: list[str] = []
        while self._at < len(self._text) and self._text[self._at] not in ends:
            part = self._part()
            if isinstance(part, str):
                words.append(part)
                continue
            if words:
                parts.append(Text("".join(words)))
                words.clear()
            parts.append(part)
        if words:
            parts.append(Text("".join(words)))
        return parts[0] if len(parts) == 1 else Parts(tuple(parts))

    def _part(self) -> Node | str:
        """Read a node, or some words."""
        text, at = self._text, self._at
        if text[at] == "{":
            return self._choice()
        if text.startswith("${", at):
            return self._variable()
        if wildcard := _WILDCARD.match(text, at):
            self._at = wildcard.end()
            return Wildcard(wildcard[2], _sampler(wildcard[1]))
        if words := _PLAIN.match(text, at) or _LORA_TAG.match(text, at):
            self._at = words.end()
            return words.group()
        is_escape = text[at] == "\\" and text[at + 1 : at + 2] in _ESCAPED
        self._at += 1 + is_escape
        return text[self._at - 1]

    def _choice(self) -> Choice:
        if self._text.startswith("%", self._at - 1) and self._at:
            raise self._refused(self._at, "follows a %, which would wrap one text in another: that is not known here")
        start = self._open("{")
        sampler = ""
        if self._text[self._at : self._at + 1] in {"!", "~", "@"}:
            sampler = self._text[self._at]
            self._at += 1
        bounds = _BOUNDS.match(self._text, self._at)
        if bounds:
            self._at = bounds.end()
        options: list[Option] = []
        while True:
            weight = _WEIGHT.match(self._text, self._at)
            if weight:
                self._at = weight.end()
            node = _stripped(self._parts(ends="|}"))
            options.append(Option(node, float(weight[1]) if weight else 1.0))
            if self._close("|", start) == "}":
                break
        low, high = _bounds(bounds, len(options)) if bounds else (1, 1)
        separator = "," if bounds is None or bounds[5] is None else bounds[5]
        return Choice(_distinct(options), low, high, separator, _sampler(sampler))

    def _variable(self) -> Node:
        start = self._open("${")
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._refused(start, "names no variable; write ${name=value} and ${name}")
        self._at = name.end()
        keeps = self._take("?")
        if self._take("="):
            once = self._take("!")
            value = _stripped(self._parts(ends="}"))
            self._close("", start)
            return Assign(name[1], value, once, keeps)
        default = None
        if not keeps and self._take(":"):
            default = _stripped(self._parts(ends="}"))
        self._close("", start)
        return Variable(name[1], default)

    def _open(self, mark: str) -> int:
        start = self._at
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(start, f"lies more than {MAX_DEPTH} braces deep")
        self._at += len(mark)
        return start

    def _take(self, mark: str) -> bool:
        is_there = self._text.startswith(mark, self._at)
        self._at += len(mark) * is_there
        return is_there

    def _close(self, between: str, start: int) -> str:
        """Read a `}`, or the mark that may stand between; raises Refused when neither is there."""
        mark = self._text[self._at : self._at + 1]
        if not mark or mark not in between + "}":
            what = "is never closed" if not mark else f"ends in {mark!r} where a }} must stand"
            raise self._refused(start, what)
        self._at += 1
        self._depth -= mark == "}"
        return mark

    def _refused(self, start: int, reason: str) -> Refused:
        excerpt = self._text[start : start + 30] + ("…" if len(self._text) > start + 30 else "")
        return Refused(f"the brace at character {start + 1} {reason}: {excerpt}", value=excerpt)


def parse_lines(lines: Sequence[str], sampler: str = "") -> Choice:
    """Return the choice between lines, each a template and `0.5::` before it a weight; raises Refused as `parse`."""
    options = []
    for line in lines:
        weight = _WEIGHT.match(line)
        node = parse(line[weight.end() :] if weight else line)
        options.append(Option(node, float(weight[1]) if weight else 1.0))
    return Choice(_distinct(options), sampler=_sampler(sampler))


def _distinct(options: Iterable[Option]) -> tuple[Option, ...]:
    """Return the options with those that are the same made one, as likely as they were together."""
    weights: dict[Node, float] = {}
    for option in options:
        weights[option.node] = weights.get(option.node, 0.0) + option.weight
    return tuple(Option(node, weight) for node, weight in weights.items())


def _sampler(mark: str) -> Sampler:
    return cast("Sampler", mark)


def _bounds(match: re.Match[str], num_options: int) -> tuple[int, int]:
    """Return how many options are taken, at least and at most; `-3` and `2-` leave one of them open."""
    if match[2] is None:
        low = high = int(match[4])
    else:
        low, high = int(match[1] or 1), int(match[3] or num_options)
    return min(low, high), max(low, high)


def _stripped(node: Node) -> Node:
    """Return an option without the blanks around it, which are there for the eye."""
    match node:
        case Text(text):
            return Text(text.strip())
        case Parts((Text(first), *rest)):
            node = Parts((Text(first.lstrip()), *rest))
    match node:
        case Parts((*rest, Text(last))):
            node = Parts((*rest, Text(last.rstrip())))
    return node
