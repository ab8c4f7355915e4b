"""What a template stands for: how many texts, all of them, or one drawn by chance. Bounded in time, whatever it says.

How many there are is counted before any is made. Counting, making and drawing share one budget of steps, so that no
template, variable or file of wildcards keeps the API busy for more than a moment.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from api.batches.grammar import Assign, Choice, Node, Parts, Text, Variable, Wildcard, parse_lines
from api.batches.wildcards import Wildcards
from farm.errors import Refused

CEILING: Final = 10**15
"""Where counting ends: so many, or more."""

MAX_CHARS: Final = 8_000
"""Of a text that is made; as of any prompt."""

MAX_NESTED: Final = 8
"""Wildcards and variables within one another."""

_MAX_STEPS: Final = 4_000_000
"""Nodes looked at for one job: seconds of a thread at worst, and a thousandth of that for most."""
_CHARS_PER_STEP: Final = 64
_MAX_COUNTED: Final = 16  # of options taken at once: from here on there are too many ways in any case
_MAX_ASSIGNS: Final = 20  # in one text
_MAX_REPEATS: Final = 16  # of a draw that hit what was drawn before


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a node stands: what variables are, and which of them and which wildcards lie around it."""

    values: Mapping[str, Node] = field(default_factory=dict)
    around: tuple[str, ...] = ()

    def within(self, what: str) -> _Scope:
        """Return the scope inside `what`; raises Refused, without a field, where that is inside itself."""
        if what in self.around or len(self.around) >= MAX_NESTED:
            reason = "stands within itself" if what in self.around else f"lies more than {MAX_NESTED} names deep"
            raise Refused(f"{what} {reason}: {' → '.join((*self.around, what))}", value=what)
        return replace(self, around=(*self.around, what))

    def having(self, name: str, value: Node) -> _Scope:
        """Return the scope in which a variable has a value."""
        return replace(self, values={**self.values, name: value})


class Sampler:
    """The templates of one job, with their wildcards and their budget.

    Every method raises Refused, without a field, for an unknown wildcard or variable, for one that stands within
    itself, for texts beyond MAX_CHARS, and when the budget is spent.
    """

    def __init__(self, wildcards: Wildcards, *, max_steps: int = _MAX_STEPS) -> None:
        self._wildcards = wildcards
        self._steps_left = max_steps
        self._lines: dict[str, Choice] = {}
        self._counts: dict[str, int] = {}
        # By the identity of a choice, which is kept so that no other gets it.
        self._cumulated: dict[int, tuple[Choice, list[float]]] = {}
        self._resolutions: dict[int, tuple[Choice, Choice]] = {}
        self._turns: dict[int, tuple[Choice, int]] = {}

    # -- how many

    def count(self, node: Node) -> int:
        """Return how many texts a template stands for, at most CEILING; one that it makes twice is counted twice."""
        return self._count(node, _Scope())

    def _count(self, node: Node, scope: _Scope) -> int:
        self._step()
        match node:
            case Text() | Assign() | Choice(sampler="~" | "@") | Wildcard(sampler="~" | "@"):
                return 1
            case Parts(parts):
                return self._count_parts(parts, scope)
            case Choice():
                choice = self._resolved(node)
                counts = [self._count(option.node, scope) for option in choice.options]
                return _num_selections(counts, choice.low, choice.high)
            case Wildcard(name) if not scope.values:  # which its lines might use
                if name not in self._counts:
                    self._counts[name] = self._count(*self._inside(node, scope))
                return self._counts[name]
            case Wildcard() | Variable():
                return self._count(*self._inside(node, scope))

    def _count_parts(self, parts: Sequence[Node], scope: _Scope) -> int:
        ways = 1
        for assign in _assigns(parts, scope):
            ways = min(CEILING, ways * (self._count(assign.value, scope) if assign.once else 1))
            scope = scope.having(assign.name, Text("") if assign.once else assign.value)
        for part in parts:
            ways = min(CEILING, ways * self._count(part, scope))
        return ways

    # -- all of them

    def all(self, node: Node, rng: random.Random) -> Iterator[str]:
        """Yield every text of a template; what comes later in it varies faster.

        `rng` draws what it leaves to chance (`~`), anew for each text.
        """
        return self._all(node, _Scope(), rng)

    def _all(self, node: Node, scope: _Scope, rng: random.Random) -> Iterator[str]:
        self._step()
        match node:
            case Choice(sampler="~" | "@") | Wildcard(sampler="~" | "@") | Text() | Assign():
                yield self._draw(node, scope, rng)
            case Parts(parts):
                for inner in self._all_scopes(_assigns(parts, scope), scope, rng):
                    for texts in self._all_rows(parts, inner, rng):
                        yield self._joined(texts)
            case Choice():
                choice = self._resolved(node)
                for number in range(choice.low, choice.high + 1):
                    for picked in itertools.permutations([option.node for option in choice.options], number):
                        for texts in self._all_rows(picked, scope, rng):
                            yield self._joined(texts, choice.separator)
            case Wildcard() | Variable():
                yield from self._all(*self._inside(node, scope), rng)

    def _all_scopes(self, assigns: Sequence[Assign], scope: _Scope, rng: random.Random) -> Iterator[_Scope]:
        """Yield the scopes that assignments make: one, or one for each text of what is decided once."""
        if not assigns:
            yield scope
            return
        first, *rest = assigns
        values = (Text(text) for text in self._all(first.value, scope, rng)) if first.once else (first.value,)
        for value in values:
            yield from self._all_scopes(rest, scope.having(first.name, value), rng)

    def _all_rows(self, nodes: Sequence[Node], scope: _Scope, rng: random.Random) -> Iterator[list[str]]:
        """Yield the texts of all nodes in all combinations, the last one's varying fastest.

        An odometer instead of calls within calls: a prompt may have thousands of braces in a row.
        """
        if not nodes:
            yield []
            return
        row: list[str] = []
        wheels = [self._all(nodes[0], scope, rng)]
        while wheels:
            text = next(wheels[-1], None)
            if text is None:
                wheels.pop()
                del row[len(wheels) - 1 :]
            elif len(wheels) < len(nodes):
                row.append(text)
                wheels.append(self._all(nodes[len(row)], scope, rng))
            else:
                yield [*row, text]

    # -- one by chance

    def draw(self, node: Node, rng: random.Random) -> str:
        """Return one text of a template."""
        return self._draw(node, _Scope(), rng)

    def _draw(self, node: Node, scope: _Scope, rng: random.Random) -> str:
        match node:
            case Text(text):
                self._step(1 + len(text) // _CHARS_PER_STEP)
                return text
            case Assign():
                return ""
            case Parts(parts):
                for part in _assigns(parts, scope):
                    value = Text(self._draw(part.value, scope, rng)) if part.once else part.value
                    scope = scope.having(part.name, value)
                return self._joined([self._draw(part, scope, rng) for part in parts])
            case Choice():
                choice = self._resolved(node)
                texts = [self._draw(each, scope, rng) for each in self._picked(choice, rng)]
                return self._joined(texts, choice.separator)
            case Wildcard() | Variable():
                return self._draw(*self._inside(node, scope), rng)

    def _picked(self, choice: Choice, rng: random.Random) -> list[Node]:
        """Return some options of a choice, none of them twice."""
        self._step()
        number = choice.low + int(rng.random() * (choice.high - choice.low + 1))
        options = choice.options
        if choice.sampler == "@":
            _, turn = self._turns.get(id(choice), (choice, 0))
            self._turns[id(choice)] = (choice, turn + 1)
            return [options[(turn + step) % len(options)].node for step in range(number)]
        if id(choice) not in self._cumulated:
            self._step(len(options))
            weights = [option.weight for option in options]
            self._cumulated[id(choice)] = (choice, list(itertools.accumulate(weights)))
        _, sums = self._cumulated[id(choice)]
        picked: dict[int, None] = {}
        for _ in range(number):
            for _ in range(_MAX_REPEATS):
                self._step()
                position = min(bisect_right(sums, rng.random() * sums[-1]), len(options) - 1)
                if position not in picked:
                    break
            else:  # little is left: the first that is
                self._step(len(picked))
                position = next(each for each in range(len(options)) if each not in picked)
            picked[position] = None
        return [options[position].node for position in picked]

    # -- what all of them stand on

    def _inside(self, node: Wildcard | Variable, scope: _Scope) -> tuple[Node, _Scope]:
        """Return what a name stands for, and where that stands."""
        if isinstance(node, Wildcard):
            return self._choice_of(node.name, node.sampler), scope.within(f"__{node.name}__")
        return _value_of(node, scope), scope.within(f"${{{node.name}}}")

    def _resolved(self, choice: Choice) -> Choice:
        """Return a choice with bounds that its options allow; of a wildcard alone, its lines are the options."""
        if id(choice) in self._resolutions:
            return self._resolutions[id(choice)][1]
        resolved = choice
        match choice.options:
            case [option] if isinstance(option.node, Wildcard) and choice.high > 1:
                resolved = replace(choice, options=self._choice_of(option.node.name).options)
        most = len(resolved.options)
        resolved = replace(resolved, low=min(choice.low, most), high=min(choice.high, most))
        self._resolutions[id(choice)] = (choice, resolved)
        return resolved

    def _choice_of(self, name: str, sampler: str = "") -> Choice:
        """Return the lines of a wildcard as a choice, the same one each time."""
        key = f"{sampler}{name}"
        if key not in self._lines:
            lines = self._wildcards.lines(name)
            self._step(sum(1 + len(line) // _CHARS_PER_STEP for line in lines))
            try:
                self._lines[key] = parse_lines(lines, sampler)
            except Refused as error:
                raise Refused(f"in the wildcard {name!r}, {error}", value=name) from error
        return self._lines[key]

    def _joined(self, texts: Sequence[str], separator: str = "") -> str:
        """Return the texts as one; beside a separator, those that are empty leave no gap."""
        text = separator.join(filter(None, texts))
        self._step(len(texts) + len(text) // _CHARS_PER_STEP)
        if len(text) > MAX_CHARS:
            raise Refused(f"the template makes a text of more than {MAX_CHARS:,} characters")
        return text

    def _step(self, steps: int = 1) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise Refused("the templates of this job take too long to work out; make them simpler, or split the batch")


def _assigns(parts: Sequence[Node], scope: _Scope) -> list[Assign]:
    """Return the assignments that hold for all of `parts`, whatever stands before them."""
    assigns = [part for part in parts if isinstance(part, Assign)]
    if len(assigns) > _MAX_ASSIGNS:
        raise Refused(f"the template sets more than {_MAX_ASSIGNS} variables")
    known = set(scope.values)
    holding = []
    for part in assigns:
        if not (part.keeps and part.name in known):
            holding.append(part)
            known.add(part.name)
    return holding


def _value_of(variable: Variable, scope: _Scope) -> Node:
    value = scope.values.get(variable.name, variable.default)
    if value is None:
        raise Refused(f"${{{variable.name}}} is set nowhere before; write ${{{variable.name}=…}}", value=variable.name)
    return value


def _num_selections(counts: Sequence[int], low: int, high: int) -> int:
    """Return in how many ways `low` to `high` of the options can stand in a row, where option i has `counts[i]` texts.

    That is k! times the elementary symmetric polynomial of degree k, summed over k.
    """
    top = min(high, _MAX_COUNTED)
    ways = [1] + [0] * top  # of choosing k of the options so far, in no order
    for count in counts:
        for size in range(top, 0, -1):
            ways[size] = min(CEILING, ways[size] + ways[size - 1] * count)
    total = sum(ways[size] * math.factorial(size) for size in range(low, top + 1))
    return CEILING if high > top else min(CEILING, total)


def rng_of(seed: int, *numbers: int) -> random.Random:
    """Return the chance of one text: it depends on the seed and its place alone, not on how many are drawn before."""
    return random.Random(":".join(map(str, (seed, *numbers))))  # noqa: S311  no secret
