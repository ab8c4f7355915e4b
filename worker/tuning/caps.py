"""How many seats a lane should have: measured once on each kind of card, and limited by what did not fit before.

The engine asks when a second unit wants a seat of a lane, so that nobody waits for it who is alone. Lanes under
`invariant` do not ask: their bytes depend on their shape.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from worker.gpu import synchronise
from worker.residents import free_cached_memory
from worker.tuning.cost import cost_facts, curve_key, memory_key
from worker.tuning.curves import WITHIN, End, StepCurve, best_batch
from worker.tuning.measure import BUDGET_S, measure, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.pipelines.base import Pipeline
    from worker.seat import Seat
    from worker.tuning.store import Measured

log: Final = logging.getLogger(__name__)

MEMORY_S: Final = 7 * 24 * 3600.0
"""How long it is believed that so many seats do not fit: it may have been another program's doing."""

_UNREADABLE: Final = (LookupError, ValueError, TypeError, AttributeError)


class Caps:
    """Seats of lanes. Used by the engine's thread alone."""

    def __init__(
        self,
        measured: Measured,
        *,
        budget_s: float = BUDGET_S,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Keep what is found in `measured`; one measurement takes `budget_s` at most, and one step."""
        self._measured = measured
        self._budget_s = budget_s
        self._clock = clock
        self._now = now
        self._undecided: set[str] = set()  # curves that told nothing: not tried again by this process

    def seats(
        self, pipeline: Pipeline, seat: Seat, *, most: int, is_alone: bool, go_on: Callable[[], bool] = lambda: True
    ) -> int:
        """Return how many seats like `seat`, which has one, a step should carry, at most `most`.

        The first time on this kind of card steps are made and timed, with nobody's latents, as long as they may
        `go_on`. `is_alone` says whether no other models are on the device: memory that these take is no limit of the
        card's. Raises what steps raise other than for memory.
        """
        facts = cost_facts(pipeline, seat)
        bound = min(most, self._that_fit(facts, most))
        curve = self._known(facts)
        if curve is None or not curve.answers(bound):
            if bound == 1 or curve_key(facts) in self._undecided:
                return bound
            curve = self._take(pipeline, seat, bound, facts, is_alone=is_alone, go_on=go_on)
            bound = min(bound, self._that_fit(facts, bound))
        return best_batch(curve, most=bound) or bound

    def ran_out(self, pipeline: Pipeline, seat: Seat, num_seats: int) -> None:
        """Remember that with this model alone on the device a step of more than `num_seats` ran out of memory."""
        self._remember_limit(cost_facts(pipeline, seat), num_seats)

    def _that_fit(self, facts: Mapping[str, str | int | bool], most: int) -> int:
        """Return the seats that steps have turned out to have memory for; `most` when it was never too little."""
        known = self._measured.get(memory_key(facts))
        try:
            if known is not None and self._now() - float(known["at"]) < MEMORY_S:
                return max(1, int(known["seats"]))
        except _UNREADABLE:
            log.debug("not a limit of memory: %r", known)
        return most

    def _known(self, facts: Mapping[str, str | int | bool]) -> StepCurve | None:
        told = self._measured.get(curve_key(facts))
        try:
            return None if told is None else StepCurve.from_json(told)
        except _UNREADABLE:
            return None

    def _take(
        self,
        pipeline: Pipeline,
        seat: Seat,
        bound: int,
        facts: Mapping[str, str | int | bool],
        *,
        is_alone: bool,
        go_on: Callable[[], bool],
    ) -> StepCurve:
        """Measure, and keep what holds beyond this process."""
        began_s = self._clock()
        step = steps_of(pipeline, seat, synchronise=lambda: synchronise(pipeline.device))
        curve = measure(step, bound=bound, budget_s=self._budget_s, clock=self._clock, go_on=go_on)
        free_cached_memory()
        if curve.end is End.MEMORY and not is_alone:
            curve = replace(curve, end=End.TIME)  # how it would go on without the others is not known
        if curve.end is End.MEMORY:
            self._remember_limit(facts, max(curve.step_ms, default=1))
        if not go_on() or (curve.end is End.TIME and not curve.answers(bound)):
            self._undecided.add(curve_key(facts))
        else:
            self._measured.put(curve_key(facts), curve.as_json(), rounds=curve.rounds)
        _tell(seat, curve, bound, self._clock() - began_s)
        return curve

    def _remember_limit(self, facts: Mapping[str, str | int | bool], num_seats: int) -> None:
        self._measured.put(memory_key(facts), {"seats": num_seats, "at": self._now()})


def _tell(seat: Seat, curve: StepCurve, bound: int, elapsed_s: float) -> None:
    best = best_batch(curve, most=bound)
    verdict = f"{bound} seats, as the best was not found"
    if best is not None:
        verdict = f"{best} seats are within {WITHIN:.0%} of the best rate"
    steps = ", ".join(f"{batch}: {ms:.1f}" for batch, ms in curve.step_ms.items()) or "none"
    log.info(
        "measured %s: %s; ms of a step by seats: %s (medians of %d, ended by %s after %.1f s)",
        *(seat.key, verdict, steps, curve.rounds, curve.end, elapsed_s),
        extra={"action": "batch_measured", "model": seat.unit.model, "seats": best or bound},
    )
