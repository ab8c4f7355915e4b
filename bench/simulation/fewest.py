"""The fewest changes of models that any schedule could do with: a lower bound, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil

Span = tuple[float, float]


def fewest_switches(spans: Mapping[str, Span], workers: int, bounds: Sequence[tuple[float, float]]) -> int:
    """Return how many changes of models are needed, beyond each worker's first, to keep every wait within a bound.

    `spans` says from when to when work for each model waits; `bounds` are pairs (from when, seconds): how long a model
    may be unserved. No worker idles while work waits.

    Waits. W workers serve at most W models, so at a moment when m models wait at least m - W of them are unserved. Over
    the run that is A(t) = max(0, m(t) - W) summed over time. Each second of it lies in an absence of some model of at
    most B(t) seconds, so there are at least sum of A(t) / B(t) absences, and each ends with somebody changing to that
    model: with a first choice only if the worker idled before it, which adds as much absence as that may end.

    Ends. When a model has no work left, and fewer models than workers wait, its last worker has to help with one of
    them.
    """
    ends = sorted({moment for span in spans.values() for moment in span} | {since for since, _ in bounds})
    absences = 0.0
    for begin, end in pairwise(ends):
        waiting = sum(first <= begin and end <= last for first, last in spans.values())
        bound_s = next((seconds for since, seconds in reversed(bounds) if since <= begin), bounds[0][1])
        absences += max(0, waiting - workers) * (end - begin) / bound_s
    helps = 0
    for _, ended in spans.values():
        left = sum(first <= ended < last for first, last in spans.values())
        helps += 0 < left < workers
    return max(ceil(absences - 1e-9), helps)
