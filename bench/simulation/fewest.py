"""The fewest changes of models that any schedule could do with: a lower bound, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil

Span = tuple[float, float]


def fewest_switches(
    spans: Mapping[str, Span],
    workers: int,
    bounds: Sequence[tuple[float, float]],
    *,
    work_s: Mapping[str, float],
    finished_at: float,
    drain_s: float = 0.0,
) -> int:
    """Return how many changes of models are needed, beyond each worker's first, to keep every wait within a bound.

    `spans` says from when to when work for each model waits; `bounds` are pairs (from when, seconds): how long a model
    may be unserved. No worker idles while work waits, once it has finished what it has claimed, within `drain_s`.
    `work_s` is the worker time of each model, all of it done between 0 and `finished_at`.

    Waits. W workers serve at most W models, so at a moment when m models wait at least m - W of them are unserved. Over
    the run that is A(t) = max(0, m(t) - W) summed over time. Each second of it lies in an absence of some model of at
    most B(t) seconds, so there are at least sum of A(t) / B(t) absences, and each ends with somebody changing to that
    model: with a first choice only if the worker idled before it, which adds as much absence as that may end.

    Ends. When a model has no work left, and fewer models than workers wait, its last worker has to help with one of
    them. Absences that begin while more models than workers wait are over at most B after the last such moment, so an
    end after that is a change beyond theirs.

    Hands. A worker has no more than the whole time for a model, so a model is served by so many different workers as
    its work takes such times; and a worker that serves k models changes at least k - 1 times.
    """
    moments = sorted({moment for span in spans.values() for moment in span} | {since for since, _ in bounds})
    absences, over_at = 0.0, 0.0
    for begin, end in pairwise(moments):
        waiting = sum(first <= begin and end <= last for first, last in spans.values())
        bound_s = next((seconds for since, seconds in reversed(bounds) if since <= begin), bounds[0][1])
        absences += max(0, waiting - workers) * (end - begin) / bound_s
        if waiting > workers:
            over_at = end + bound_s
    ends = [
        ended for _, ended in spans.values() if 0 < sum(a <= ended < b - drain_s for a, b in spans.values()) < workers
    ]
    hands = sum(ceil(seconds / finished_at - 1e-9) for seconds in work_s.values())
    return max(ceil(absences - 1e-9) + sum(ended > over_at for ended in ends), len(ends), hands - workers)
