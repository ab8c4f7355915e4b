"""A GPU made of arithmetic: seats, steps and when each begins and ends. Pure: no clock, no threads.

It steps as the engine does: at the end of a step the finished leave, those who wait take the free seats in order, and
the next step begins at once. Boundaries are computed, not observed: however late `advance` is called, a step begins
when the last one ended and carries whoever had been submitted by then. So a simulator that gets too little CPU is not
mistaken for a farm that keeps its GPUs waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from simulation.cards import Card

T = TypeVar("T")


@dataclass
class _Seat(Generic[T]):
    unit: T
    submitted_at: float
    steps_left: int
    admitted_at: float = 0.0
    gpu_s: float = 0.0


@dataclass(frozen=True)
class Finished(Generic[T]):
    """A unit that has made its last step. Times are seconds on the caller's clock."""

    unit: T
    submitted_at: float
    admitted_at: float
    finished_at: float
    gpu_s: float  # its share of the steps it rode


@dataclass
class Diary:
    """All that happened, for the report."""

    steps: list[tuple[float, float, int]] = field(default_factory=list)  # began, ended, seats
    refills: list[tuple[float, float]] = field(default_factory=list)  # seat free since, next unit submitted after (s)


class SimulatedGpu(Generic[T]):
    """`max_batch` seats on a `card`."""

    def __init__(self, card: Card, max_batch: int) -> None:
        self._card = card
        self._max_batch = max_batch
        self._waiting: deque[_Seat[T]] = deque()
        self._seats: list[_Seat[T]] = []
        self._free_since: deque[float] = deque()  # seats that were taken before, longest free first
        self._step: tuple[float, float, int] | None = None  # began, ends, seats
        self._last_end = float("-inf")
        self.diary = Diary()

    @property
    def num_seated(self) -> int:
        """Seats taken."""
        return len(self._seats)

    @property
    def num_waiting(self) -> int:
        """Units that wait for a seat."""
        return len(self._waiting)

    @property
    def next_event_at(self) -> float | None:
        """When the present step ends; None on an idle GPU."""
        return None if self._step is None else self._step[1]

    def submit(self, unit: T, at: float) -> None:
        """Let a unit wait for a seat. `at` never goes backwards."""
        self._waiting.append(_Seat(unit, at, self._card.steps))

    def remove(self, is_unwanted: Callable[[T], bool]) -> list[T]:
        """Take units out wherever they are; a step that has begun keeps its length, and its seats in the diary."""
        gone = [seat for seat in (*self._waiting, *self._seats) if is_unwanted(seat.unit)]
        self._waiting = deque(seat for seat in self._waiting if not is_unwanted(seat.unit))
        self._seats = [seat for seat in self._seats if not is_unwanted(seat.unit)]
        return [seat.unit for seat in gone]

    def advance(self, now: float) -> list[Finished[T]]:
        """Live up to `now`; return the units that have finished meanwhile."""
        finished: list[Finished[T]] = []
        while True:
            if self._step is not None:
                if self._step[1] > now:
                    return finished
                finished += self._end_step(*self._step)
            elif not self._begin_step():
                return finished

    def _begin_step(self) -> bool:
        """Admit who is there and begin a step; False when there is nobody."""
        begins = self._last_end
        if not self._seats:
            if not self._waiting:
                return False
            begins = max(begins, self._waiting[0].submitted_at)
        while self._waiting and self._waiting[0].submitted_at <= begins and len(self._seats) < self._max_batch:
            seat = self._waiting.popleft()
            seat.admitted_at = begins
            self._seats.append(seat)
            if self._free_since:
                free_since = self._free_since.popleft()
                self.diary.refills.append((free_since, max(0.0, seat.submitted_at - free_since)))
        self._step = (begins, begins + self._card.step_s(len(self._seats)), len(self._seats))
        return True

    def _end_step(self, began: float, ended: float, seats: int) -> list[Finished[T]]:
        self.diary.steps.append((began, ended, seats))
        self._step, self._last_end = None, ended
        for seat in self._seats:
            seat.steps_left -= 1
            seat.gpu_s += (ended - began) / seats
        done = [seat for seat in self._seats if not seat.steps_left]
        self._seats = [seat for seat in self._seats if seat.steps_left]
        self._free_since.extend(ended for _ in done)
        return [Finished(seat.unit, seat.submitted_at, seat.admitted_at, ended, seat.gpu_s) for seat in done]
