"""Who may sit with whom, and which lane steps next: pure bookkeeping, no tensors, no clock, no threads.

Time is counted in steps. The rules, and the promise that follows from them:

1. The next step goes to the lane with the oldest unfinished unit; among equally old ones to the fullest lane.
2. A lane takes waiting units in the order they came, up to its cap; a step carries its oldest seats, up to its cap.
3. Loading a model is dear, so one whose loading drives out another is called only when the resident ones have nothing
   left to do, or after `patience` steps without a change of models; then it is the turn of the one that stepped least
   recently.

So every step carries the oldest unfinished unit of the resident models, and nobody starves: with M models in demand,
one of them resident at a time, a unit is finished at most M * R + (M - 1) * patience steps after it came, R being the
steps still to be made, when it came, by the units of its model that are no younger than itself, itself included.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_PATIENCE: Final = 200
"""Steps that resident models keep the device while another one waits: some ten images' worth."""
MAX_CAPS: Final = 500
"""Lanes whose cap is remembered while nobody is there; clients may ask for any number of sizes and LoRAs."""


class Keyed(Protocol):
    """What the roster needs of a batch key, apart from its being hashable."""

    @property
    def model(self) -> str:
        """The model that units of this key need."""


class Passenger(Protocol):
    """What the roster keeps on a unit in the engine."""

    arrived: int
    slot: int


K = TypeVar("K", bound=Keyed)
P = TypeVar("P", bound=Passenger)


class Lane(Generic[K, P]):
    """The seats of one batch key and the queue before them."""

    def __init__(self, key: K, num_slots: int, cap: int, *, is_settled: bool = True) -> None:
        self.key = key
        self.cap = cap
        self.is_settled = is_settled  # or `cap` stands until it is known how many seats pay
        self.waiting: deque[P] = deque()
        self._slots: list[P | None] = [None] * num_slots
        self._seated: list[P] | None = []  # in order; None when somebody has come or gone since

    @property
    def seated(self) -> list[P]:
        """Passengers with a seat, oldest first. The list never changes: who comes or goes makes another."""
        if self._seated is None:
            self._seated = sorted((p for p in self._slots if p is not None), key=lambda p: p.arrived)
        return self._seated

    @property
    def num_slots(self) -> int:
        """Seats there are; `cap` may have fallen below."""
        return len(self._slots)

    @property
    def aboard(self) -> list[P]:
        """The passengers that the next step carries: at most `cap`, oldest first."""
        return self.seated[: self.cap]

    @property
    def is_empty(self) -> bool:
        """Whether nobody sits or waits here."""
        return not self.waiting and not self.seated

    @property
    def oldest(self) -> int:
        """When the oldest passenger came, in steps. The lane must not be empty."""
        return min(p.arrived for p in (*self.seated, *self.waiting))

    @property
    def demand(self) -> int:
        """Seats that the next step would carry."""
        return min(self.cap, len(self.seated) + len(self.waiting))

    def take_seats(self) -> list[P]:
        """Give free seats to those who wait, in order; return the newly seated."""
        taken: list[P] = []
        num_seated = len(self.seated)
        for slot, occupant in enumerate(self._slots):
            if not self.waiting or num_seated + len(taken) >= self.cap:
                break
            if occupant is None:
                passenger = self.waiting.popleft()
                passenger.slot = slot
                self._slots[slot] = passenger
                self._seated = None
                taken.append(passenger)
        return taken

    def leave(self, passenger: P) -> bool:
        """Take `passenger` out, whether it waits or sits; return whether it was here."""
        if passenger.slot >= 0:
            self._slots[passenger.slot] = None
            self._seated = None
            passenger.slot = -1
        elif passenger in self.waiting:
            self.waiting.remove(passenger)
        else:
            return False
        return True


class Roster(Generic[K, P]):
    """All lanes of one device."""

    def __init__(
        self, max_batch: int, *, patience: int = DEFAULT_PATIENCE, is_measured: Callable[[K], bool] | None = None
    ) -> None:
        """Let lanes have at most `max_batch` seats. One that `is_measured` has a single one until it is settled."""
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}, a lane needs at least one seat")
        self.steps = 0
        self.caps: dict[K, int] = {}  # outlives the lanes: what was measured, or learnt from running out of memory
        self.seats = 1 if is_measured else max_batch  # of the largest lane; of the last one when there is none
        self._is_measured = is_measured or (lambda _key: False)
        self._max_batch = max_batch
        self._patience = patience
        self._lanes: dict[K, Lane[K, P]] = {}
        self._last_step: dict[str, int] = {}  # per model: when it stepped last, or got work after having none
        self._changed_at = 0

    def __iter__(self) -> Iterator[Lane[K, P]]:
        return iter(list(self._lanes.values()))

    @property
    def is_empty(self) -> bool:
        """Whether nobody sits or waits anywhere."""
        return not self._lanes

    def join(self, key: K, passenger: P, *, is_transfer: bool = False) -> None:
        """Queue `passenger` for the lane of `key`; on transfer from another lane it keeps its age."""
        if not any(lane.key.model == key.model for lane in self):
            self._last_step[key.model] = self.steps
        if key not in self._lanes:
            is_settled = key in self.caps or not self._is_measured(key)
            cap = self.caps.get(key, self._max_batch) if is_settled else 1
            self._lanes[key] = Lane(key, self._max_batch, cap, is_settled=is_settled)
            self._count_seats()
        if not is_transfer:
            passenger.arrived = self.steps
        self._lanes[key].waiting.append(passenger)

    def leave(self, key: K, passenger: P) -> bool:
        """Take `passenger` out of its lane and return whether it was there; an empty lane is gone."""
        lane = self._lanes.get(key)
        if lane is None or not lane.leave(passenger):
            return False
        if lane.is_empty:
            del self._lanes[key]
            self._count_seats()
        return True

    def next_lane(self, has_room_for: Callable[[str], bool]) -> Lane[K, P] | None:
        """Return the lane that steps next (rules 1 and 3), None when nobody sits or waits.

        `has_room_for` says of a model whether it is resident or may become so without driving out another. A lane of
        any other model is a demand for patience.
        """
        models = {model: has_room_for(model) for model in {lane.key.model for lane in self}}
        home = [lane for lane in self if models[lane.key.model]]
        away = [lane for lane in self if not models[lane.key.model]]
        if away and (not home or self.steps - self._changed_at >= self._patience):
            self._changed_at = self.steps
            return min(away, key=lambda x: (self._last_step[x.key.model], x.oldest, -x.demand))
        return min(home, key=lambda x: (x.oldest, -x.demand), default=None)

    def stepped(self, lane: Lane[K, P]) -> None:
        """Count one step of `lane`."""
        self.steps += 1
        self._last_step[lane.key.model] = self.steps

    def limit(self, lane: Lane[K, P], cap: int) -> None:
        """Let steps of `lane` carry at most `cap` seats from now on; whoever sits keeps the seat."""
        self._set_cap(lane, min(lane.cap, cap))

    def settle(self, lane: Lane[K, P], cap: int) -> None:
        """Let steps of `lane` carry `cap` seats, now that it is known how many pay."""
        lane.is_settled = True
        self._set_cap(lane, min(cap, lane.num_slots))

    def _set_cap(self, lane: Lane[K, P], cap: int) -> None:
        self.caps.pop(lane.key, None)  # the latest come last
        lane.cap = self.caps[lane.key] = max(1, cap)
        while len(self.caps) > MAX_CAPS:
            del self.caps[next(iter(self.caps))]
        self._count_seats()

    def _count_seats(self) -> None:
        self.seats = max((lane.cap for lane in self), default=self.seats)
