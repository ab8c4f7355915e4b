"""Which models a worker serves next: a decision on a snapshot of what waits. Pure: no clock, no I/O.

A model has to be loaded before it can be served, and that is dear. So a worker keeps the models it has as long as work
waits for them. It takes another one

1. beside them, where its device holds both;
2. when nothing waits for them: the most urgent model that nobody serves, else the one with the longest backlog for
   each of its workers, if one more pays for its load;
3. although work waits for them, for one of four reasons:
   - interactive work waits unserved, and what is left is less urgent;
   - a model would otherwise wait unserved for longer than is promised: the worker leaves as late as that allows;
   - the tenants of a model are behind their share of GPU time by more than turns alone explain;
   - another model has so much more to do that with one worker more it still ends no sooner than this one with one
     less: so one moves on in time, and not all of them when there is nothing left.

The promise. Say the workers take turns, round and round, and model m gets v[m] of their time in each round. Then a
round of W workers takes P = sum(v) / W, and m is unserved for P - v[m] of it, and until it is loaded. Turns follow the
shares of the models, v = share * W * P, with the longest P that keeps every wait within `wait_s`: the longer the round,
the fewer the loads. But no round is shorter than four times its loads, so that at most a quarter of the workers' time
is spent on them. Where such a round does not keep the waits within `wait_s`, the promise is what it does keep.

All workers decide on their own. Of two that come to the same conclusion the ledger takes the first; the other looks
again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Final

from farm.ledger.records import Demand, ModelDemand
from farm.requests import Priority

_STAY_LOADS: Final = 4
"""A round lasts at least so many times its loads, and so does a turn that interactive work ends."""
_SHORTEST_TURN: Final = 2
"""No turn is shorter than so many times its load. Who helps with a served model must find as much work there."""
_LONGEST_ROUND: Final = 8
"""Length of a round, in promised waits, where nobody ever need be unserved: within it shares are made even."""
_FULL_TURN: Final = 0.75
"""Part of its turn that a worker has had when a late model may call it before all others: turns are never exact."""
_LATE: Final = 0.1
"""Part of the promised wait by which a model is late when it calls anybody."""
_BEHIND: Final = 0.5
"""Part of the lead that ends a turn with which the longest unserved model is still next: so turns go round."""
_IDLE_FIRST_S: Final = 1.0
"""How long a model waits for an idle worker before one that has room takes it beside its own."""

_RANKS: Final = {priority: rank for rank, priority in enumerate(Priority)}  # 0 is the most urgent


@dataclass(frozen=True, slots=True)
class Server:
    """What a worker knows of itself."""

    able: Collection[str]  # models that it may serve
    serving: tuple[str, ...]  # models whose queues it reads: those on its device, or on their way there
    served_s: float  # since it last changed that
    load_s: Callable[[str], float]  # what loading a model takes
    fits: Callable[[Collection[str]], bool]  # whether models can be on its device together


def choose(demand: Demand, me: Server, *, wait_s: float) -> tuple[str, ...]:
    """Return the models to serve from now on: those served already, unless there is a reason for another one.

    `wait_s` is how long a model should wait unserved at most, if loads allow.
    """
    waiting = {model: each for model, each in demand.models.items() if model in me.able}
    kept = {model: _beside(model, me, waiting) for model in waiting if model not in me.serving}
    left = {model: [old for old in me.serving if old in waiting and old not in kept[model]] for model in kept}
    free = {model: waiting[model] for model, leaving in left.items() if not leaving}
    choice = _most_useful(free, demand, me, is_idle=waiting.keys().isdisjoint(me.serving))
    if choice is None and len(free) < len(left):
        taken = {model: leaving for model, leaving in left.items() if leaving}
        choice = _Turn(demand, me, Round.of(demand, me, wait_s)).next_model(taken)
    return me.serving if choice is None else kept[choice]


def _beside(model: str, me: Server, waiting: Mapping[str, ModelDemand]) -> tuple[str, ...]:
    """Return what the worker serves when it takes `model`: that, and what fits beside it of what it serves."""
    kept = [model]
    # What waits comes first, of that what is urgent, and of that what is behind.
    for old in sorted(me.serving, key=lambda m: (0, _rank(waiting[m]), -waiting[m].lag_s) if m in waiting else (1,)):
        if me.fits((*kept, old)):
            kept.append(old)
    return tuple(kept)


def _most_useful(models: Mapping[str, ModelDemand], demand: Demand, me: Server, *, is_idle: bool) -> str | None:
    """Return which of `models`, all to be had without leaving work, gains most by a worker; None if none pays."""

    def is_worth_it(model: str) -> bool:
        each = models[model]
        if each.unserved_since is not None:
            return is_idle or demand.now - each.unserved_since >= _IDLE_FIRST_S
        return _pays_to_help(each, me.load_s(model))

    def urgency(model: str) -> tuple[float, ...]:
        each = models[model]
        if each.unserved_since is not None:
            return _rank(each), 0, each.unserved_since
        has_its_own = each.served_by >= floor(each.share * demand.workers)
        return _rank(each), 1, has_its_own, -each.queued * each.image_s / (each.served_by + 1)

    return min(filter(is_worth_it, models), key=urgency, default=None)


@dataclass(frozen=True, slots=True)
class Round:
    """How the workers take turns, and what follows from that. All times in seconds."""

    turn_s: Mapping[str, float]  # worker time of each model in a round
    length_s: float
    wait_s: float  # the longest that a model is unserved, until it is loaded

    @classmethod
    def of(cls, demand: Demand, me: Server, wait_s: float) -> Round:
        """Make the longest round that keeps all waits within `wait_s`, else the shortest that is worth its loads."""
        workers = max(1, demand.workers)
        parts = {model: each.share * workers for model, each in demand.models.items()}
        rotating = [model for model, part in parts.items() if part < 1]

        # Who was called to help a model that is due more than whole workers is not called back at once.
        helped = [model for model, part in parts.items() if part > 1 and part % 1]
        shortest_s = _SHORTEST_TURN * max(map(me.load_s, helped), default=0.0)

        def turns(length_s: float) -> dict[str, float]:
            return {model: max(_SHORTEST_TURN * me.load_s(model), part * length_s) for model, part in parts.items()}

        def longest_wait(turn_s: Mapping[str, float]) -> float:
            length_s = sum(turn_s.values()) / workers
            waits_s = (max(length_s - turn_s[model], shortest_s) + me.load_s(model) for model in rotating)
            return max(waits_s, default=0.0)

        low_s = _STAY_LOADS * sum(map(me.load_s, rotating)) / workers
        promised_s = max(wait_s, longest_wait(turns(low_s)))
        high_s = low_s + _LONGEST_ROUND * promised_s
        for _ in range(30):  # halvings; the longer the round, the longer the waits
            middle_s = (low_s + high_s) / 2
            low_s, high_s = (middle_s, high_s) if longest_wait(turns(middle_s)) <= promised_s else (low_s, middle_s)
        turn_s = turns(low_s)
        return cls(turn_s, sum(turn_s.values()) / workers, promised_s)

    def swing_s(self, part: float) -> float:
        """Return how far a model that is due `part` workers is ahead after its turn, and behind before it."""
        fraction = part - floor(part)
        return fraction * (1 - fraction) * self.length_s / 2


@dataclass(frozen=True, slots=True)
class _Turn:
    """Whether a worker's turn is over, with models that work waits for, and whose is next."""

    demand: Demand
    me: Server
    round: Round

    def next_model(self, left: Mapping[str, Collection[str]]) -> str | None:
        """Return which model to take, of those for which others have to be left (`left`); None to stay."""
        models = self.demand.models
        since = {model: each.unserved_since for model, each in models.items() if each.unserved_since is not None}
        unserved = sorted(since, key=since.__getitem__)
        urgent = next((model for model in unserved if model in left and self._is_urgent(model, left[model])), None)
        if urgent is not None:
            return urgent
        oldest = next((model for model in unserved if model in left), None)
        if oldest is not None and self._is_called(left[oldest], self._late_s(unserved, since), _rank(models[oldest])):
            return oldest
        leads = {model: self._lead(model, leaving) for model, leaving in left.items()}
        if max(leads.values()) <= 1:
            return max(
                (model for model in left if self._ends_later(model, left[model])), key=self._rest_s, default=None
            )
        behind = [model for model in unserved if leads.get(model, 0.0) > _BEHIND]
        return behind[0] if behind else max(leads, key=leads.__getitem__)

    def _is_urgent(self, model: str, leaving: Collection[str]) -> bool:
        """Tell whether interactive work waits for `model`, and what is left is less urgent and has had a good turn."""
        return (
            self.demand.models[model].top_priority is Priority.INTERACTIVE
            and all(_rank(self.demand.models[old]) > 0 for old in leaving)
            and self.me.served_s >= _STAY_LOADS * max(map(self.me.load_s, leaving))
        )

    def _late_s(self, unserved: Collection[str], since: Mapping[str, float]) -> float:
        """Return by how much a switch now is too late for somebody's promise; negative while there is time.

        Each of the unserved, the oldest first, has to wait for the turns of those before it.
        """
        ahead_s, late_s = 0.0, float("-inf")
        for model in unserved:
            waited_s = self.demand.now - since[model]
            late_s = max(late_s, waited_s + ahead_s + self.me.load_s(model) - self.round.wait_s)
            ahead_s += self.round.turn_s[model] / max(1, self.demand.workers)
        return late_s

    def _is_called(self, leaving: Collection[str], late_s: float, rank: int) -> bool:
        """Tell whether a late model calls this worker: first one whose turn is over, then anybody."""
        if late_s < 0 or not self._has_paid(leaving):
            return False
        lags_s = [each.lag_s for model, each in self.demand.models.items() if self._has_more_than_whole(model)]
        is_soon_free = any(self._is_nearly_done(model) for model in self.demand.models)
        return late_s > _LATE * self.round.wait_s or all(
            self._has_more_than_whole(old)
            and not is_soon_free
            and self.demand.models[old].lag_s <= min(lags_s) + 1  # nobody is further ahead
            and _rank(self.demand.models[old]) >= rank
            and (self.demand.models[old].served_by > 1 or self.me.served_s >= _FULL_TURN * self.round.turn_s[old])
            for old in leaving
        )

    def _lead(self, model: str, leaving: Collection[str]) -> float:
        """Return how far the tenants of `model` are behind those of `leaving`; more than 1 is more than turns explain.

        Shares decide about fractions of workers, never about whole ones, nor against priority: then it is 0.
        """
        wanted = self.demand.models[model]
        part = wanted.share * self.demand.workers
        if wanted.served_by >= ceil(part - 1e-6) or not self._has_paid(leaving):
            return 0.0
        if wanted.served_by and not _pays_to_help(wanted, self.me.load_s(model)):
            return 0.0
        leads = []
        for old in leaving:
            each = self.demand.models[old]
            # With nothing queued there is no tenant to compare with, and what is handed out is gone in a moment.
            if not self._has_more_than_whole(old) or _rank(each) < _rank(wanted) or not each.queued:
                return 0.0
            swing_s = max(1.0, self.round.swing_s(part) + self.round.swing_s(each.share * self.demand.workers))
            if wanted.served_by:  # nobody is waiting for this, so that it has to pay
                swing_s = max(swing_s, _SHORTEST_TURN * self.me.load_s(model))
            if self._is_nearly_done(old):  # to come back for the rest would take as long again
                swing_s += _SHORTEST_TURN * self.me.load_s(old)
            # What was handed out and not begun is charged already, and comes back when the worker goes.
            leads.append((wanted.lag_s - each.lag_s - each.handed * each.image_s) / swing_s)
        return min(leads)

    def _ends_later(self, model: str, leaving: Collection[str]) -> bool:
        """Tell whether `model` ends no sooner than what is left even if this worker goes over to it, which has to pay.

        Neither against priority, nor where those who wait for what is left are further behind.
        """
        wanted = self.demand.models[model]
        if not wanted.served_by or not self._has_paid(leaving):
            return False
        ends_s = self._rest_s(model) / (wanted.served_by + 1)
        return ends_s > _SHORTEST_TURN * self.me.load_s(model) and all(
            _rank(self.demand.models[old]) >= _rank(wanted)
            and self.demand.models[old].lag_s <= wanted.lag_s + 1
            and 0 < self._rest_s(old) <= ends_s * (self.demand.models[old].served_by - 1)
            for old in leaving
        )

    def _rest_s(self, model: str) -> float:
        """Return the worker seconds that are left of `model`, as far as they are known."""
        each = self.demand.models[model]
        return (each.queued + each.handed) * each.image_s

    def _is_nearly_done(self, model: str) -> bool:
        """Tell whether less than the shortest turn is left of `model` for its workers: they are free soon."""
        return self._rest_s(model) <= _SHORTEST_TURN * self.me.load_s(model) * self.demand.models[model].served_by

    def _has_paid(self, leaving: Collection[str]) -> bool:
        return self.me.served_s >= _SHORTEST_TURN * max(map(self.me.load_s, leaving))

    def _has_more_than_whole(self, model: str) -> bool:
        """Tell whether more workers serve `model` than the whole ones that it is due."""
        each = self.demand.models[model]
        return each.served_by > floor(each.share * self.demand.workers + 1e-6)


def _pays_to_help(each: ModelDemand, load_s: float) -> bool:
    """Tell whether what is queued for a served model takes its workers the shortest turn of one more."""
    return each.queued * each.image_s > _SHORTEST_TURN * load_s * each.served_by


def _rank(each: ModelDemand) -> int:
    """Return 0 for the most urgent; what is all handed out is the least."""
    return len(_RANKS) if each.top_priority is None else _RANKS[each.top_priority]
