"""The life of one unit on a worker: claim, render, encode, put, count. Knows no Celery and computes nothing.

`Renderer.render` reads top to bottom. Everything around it answers one question each: what if Redis, the storage or
the engine is away, what if the unit is not ours any more, what if this worker has to go.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar

from farm.errors import Fatal, LedgerDown, StorageDown, Transient
from farm.tracing import OFF, Traces
from worker.company import AnotherIsAlone, Company
from worker.files import files_of
from worker.seat import EngineStopped, UnitCancelled
from worker.told import story_of

if TYPE_CHECKING:
    from farm.jobs import Hint, Unit
    from farm.ledger import Ledger
    from farm.storage import Store
    from worker.engine import Engine
    from worker.files import File
    from worker.inputs import Pictures
    from worker.pipelines.base import Inputs
    from worker.reuse import Reuse
    from worker.seat import Rendered
    from worker.told import Story

log: Final = logging.getLogger(__name__)

_T = TypeVar("_T")


class Outcome(StrEnum):
    """How a unit left this worker."""

    STORED = "stored"  # its image is counted
    REPEATED = "repeated"  # its image is stored, but another attempt was counted or its job cancelled
    DROPPED = "dropped"  # the ledger had no lease for it
    LOST = "lost"  # cancelled, or handed to somebody else, before it was finished
    RELEASED = "released"  # given back because this worker goes
    FAILED = "failed"  # given up by this worker, with a reason


@dataclass(eq=False)
class _Lease:
    """Our right to a unit, as far as we know."""

    hint: Hint
    is_lost: bool = False


class Renderer:
    """Takes units from claim to count. `render` is called by many threads at once, each with a unit of its own."""

    def __init__(
        self,
        name: str,
        *,
        ledger: Ledger,
        engine: Engine,
        store: Store,
        pictures: Pictures,
        max_undelivered: int,
        reuse: Reuse | None = None,
        serves: Callable[[str], bool] = lambda _model: True,
        on_claim: Callable[[], None] = lambda: None,
        longest_pause_s: float = 3.0,
        traces: Traces = OFF,
    ) -> None:
        """Ask again, while Redis or the storage is away, at least every `longest_pause_s`.

        That should be well within a lease: of a claim whose answer an outage swallowed nobody here knows, so it is not
        renewed until it is asked for again.
        """
        self.name = name
        self._ledger = ledger
        self._engine = engine
        self._store = store
        self._pictures = pictures
        self._max_undelivered = max_undelivered
        self._reuse = reuse
        self._serves = serves
        self._on_claim = on_claim
        self._longest_pause_s = longest_pause_s
        self._traces = traces
        self._company = Company()
        self._draining = threading.Event()
        self._changed = threading.Condition()  # guards the three below
        self._leases: dict[Hint, _Lease] = {}
        self._num_undelivered = 0
        self._num_failures = 0

    def render(self, hint: Hint) -> Outcome:
        """Make the image of `hint`, unless the ledger says that it is not ours to make; return what came of it."""
        self._wait_for_room()
        story = story_of(hint, self.name, self._traces)
        # Before the claim: whoever has to be alone must be so in what this worker holds, not in its seats alone. A unit
        # that is held when the worker dies has a strike.
        with self._company.joined(waits=lambda: not self._draining.is_set()):
            outcome = self._render(hint, story)
        story.end(outcome)
        return outcome

    def _render(self, hint: Hint, story: Story) -> Outcome:
        token = secrets.token_hex(6)  # of this message: an outage may swallow the answer that we have the unit
        with story.part("claim"):
            unit = self._until_redis_answers(lambda: self._ledger.claim(hint, self.name, token=token))
        if unit is None:
            return Outcome.DROPPED
        story.about(model=unit.model)
        self._on_claim()
        with self._holding(hint) as lease:
            try:
                with story.part("fetch"):
                    inputs = self._fetch(lease, unit)
                    is_reused = self._reuse is not None and self._reuse.answer(unit, inputs)
                rendered = None if is_reused else self._make(lease, unit, inputs, story)
            except UnitCancelled as error:
                return self._release(unit, Outcome.LOST, error)
            except (EngineStopped, AnotherIsAlone) as error:
                return self._release(unit, Outcome.RELEASED, error)
            except Fatal as error:
                return self._fail(unit, str(error), final=True)
            except Exception as error:  # noqa: BLE001  whatever it is, the unit must not stay without an answer
                # Somebody is away: tried again at once it would only fail again.
                delay_s = _backoff_s(unit.attempt) if isinstance(error, Transient) else 0.0
                return self._fail(unit, f"{type(error).__name__}: {error}", final=False, delay_s=delay_s)
            gpu_s = 0.0 if rendered is None else rendered.timings.gpu_s
            render_s = 0.0 if rendered is None else rendered.timings.render_s
            with story.part("count"):
                counted = self._until_redis_answers(
                    lambda: self._ledger.stored(hint, self.name, gpu_s=gpu_s, render_s=render_s, reused=is_reused)
                )
        outcome = Outcome.STORED if counted else Outcome.REPEATED
        if rendered is not None:
            for warning in rendered.warnings:
                log.info("of an image: %s", warning, extra={**_names(unit), "action": "image_remark"})
            if self._reuse is not None:
                self._reuse.remember(unit, inputs, rendered)
        measured = {"render_s": round(render_s, 3), "gpu_s": round(gpu_s, 3)}
        log.info("stored an image", extra={**_names(unit), "action": f"unit_{outcome}", **measured})
        return outcome

    def _make(self, lease: _Lease, unit: Unit, inputs: Inputs, story: Story) -> Rendered:
        """Render the unit, by itself if it must be, and put its files; raises what engine, company and `_until` do."""
        if not self._serves(unit.model):  # its message was read a moment before that ended
            raise EngineStopped("its model is not served here any more")
        with self._company.alone(go_on=lambda: self._go_on(lease)) if unit.alone else nullcontext():
            submitted_ns = time.time_ns()
            future = self._engine.submit(unit, inputs)
            if lease.is_lost:  # before the engine knew of it, so that the engine was told in vain
                self._engine.cancel(unit.job, unit.index)
            rendered = future.result()
        story.rode(rendered.timings, submitted_ns=submitted_ns)
        with self._undelivered():
            for file in story.each("encode file", files_of(unit, rendered)):
                with story.part("put"):
                    self._deliver(lease, unit, file)
        return rendered

    # -- what others ask of us

    @property
    def held(self) -> list[Hint]:
        """The units whose leases we want to keep."""
        with self._changed:
            return [hint for hint, lease in self._leases.items() if not lease.is_lost]

    @property
    def num_undelivered(self) -> int:
        """Finished images that are not in the store yet."""
        return self._num_undelivered

    @property
    def num_failures(self) -> int:
        """Units given up, since the start."""
        return self._num_failures

    @property
    def is_claiming(self) -> bool:
        """Whether a message that comes now is claimed now."""
        return self._num_undelivered < self._max_undelivered and not self._draining.is_set()

    def lose(self, hints: Iterable[Hint]) -> None:
        """Stop work on units that are not ours any more; their seats are free at the next step."""
        for hint in hints:
            with self._changed:
                if hint in self._leases:
                    self._leases[hint].is_lost = True
            self._engine.cancel(hint.job, hint.index)
        self._company.wake()

    def cancel(self, job: str, index: int | None = None) -> None:
        """Stop work on all units of a cancelled job, or on one."""
        self.lose([hint for hint in self.held if hint.job == job and index in (None, hint.index)])

    def drain(self) -> None:
        """Finish nothing more: give back at once what waits for anything. The engine is stopped by its owner."""
        self._draining.set()
        with self._changed:
            self._changed.notify_all()
        self._company.wake()

    # -- what may go wrong

    def _wait_for_room(self) -> None:
        """Wait while so many finished images wait for the storage that one more might not fit into memory."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_undelivered < self._max_undelivered or self._draining.is_set())

    def _go_on(self, lease: _Lease) -> None:
        """Raise UnitCancelled when the lease is lost, EngineStopped when this worker has to go."""
        if lease.is_lost:
            raise UnitCancelled("not ours any more")
        if self._draining.is_set():
            raise EngineStopped("the worker stops")

    def _fetch(self, lease: _Lease, unit: Unit) -> Inputs:
        """Return the pictures that the unit names; while the storage is away keep the lease, and try again.

        Raises RenderFailed when there are none to be had, InputAway when another host does not give one, and what
        `_until` raises.
        """
        extra = {**_names(unit), "action": "fetch_failed"}
        waits = "a unit waits for its pictures"
        return self._until(lambda: self._pictures.fetch(unit), (StorageDown,), waits, extra, lease)

    def _deliver(self, lease: _Lease, unit: Unit, file: File) -> None:
        """Put a file of the unit; while the storage is away keep it, and its lease, and try again, as `_until` does."""
        extra = {**_names(unit), "action": "put_failed"}
        # Fatal: refused credentials, which are no fault of the unit.
        away = (StorageDown, Fatal)
        waits = "an image waits for the storage"
        self._until(lambda: self._store.put(file.key, file.data, file.content_type), away, waits, extra, lease)

    def _release(self, unit: Unit, outcome: Outcome, why: Exception) -> Outcome:
        self._until_redis_answers(lambda: self._ledger.release(unit.hint, self.name))
        log.info("gave a unit back: %s", why, extra={**_names(unit), "action": f"unit_{outcome}"})
        return outcome

    def _fail(self, unit: Unit, reason: str, *, final: bool, delay_s: float = 0.0) -> Outcome:
        with self._changed:
            self._num_failures += 1
        log.error("gave a unit up: %s", reason, extra={**_names(unit), "action": "unit_failed", "final": final})
        self._until_redis_answers(
            lambda: self._ledger.failed(unit.hint, self.name, reason, final=final, delay_s=delay_s)
        )
        return Outcome.FAILED

    def _until_redis_answers(self, ask: Callable[[], _T]) -> _T | None:
        """Return the ledger's answer, however long Redis is away; None if this worker has to go before."""
        try:
            return self._until(ask, (LedgerDown,), "waiting for Redis", {"action": "ledger_down"})
        except EngineStopped:
            return None

    def _until(
        self,
        work: Callable[[], _T],
        away: tuple[type[Exception], ...],
        waits: str,
        extra: dict[str, object],
        lease: _Lease | None = None,
    ) -> _T:
        """Return what `work` returns; while it raises one of `away`, say so once and try again, ever more slowly.

        Raises UnitCancelled when `lease` is lost meanwhile, EngineStopped when this worker has to go.
        """
        for attempt, pause_s in enumerate(_pauses(self._longest_pause_s)):
            if lease is not None and lease.is_lost:
                raise UnitCancelled("not ours any more")
            try:
                return work()
            except away as error:
                level = logging.DEBUG if attempt else logging.WARNING  # an outage may be long
                log.log(level, "%s: %s", waits, error, extra=extra)
            if self._draining.wait(pause_s):
                raise EngineStopped(f"the worker stops: {waits}")
        raise AssertionError("pauses never end")

    # -- what we hold

    @contextmanager
    def _holding(self, hint: Hint) -> Iterator[_Lease]:
        lease = _Lease(hint)
        with self._changed:
            self._leases[hint] = lease
        try:
            yield lease
        finally:
            with self._changed:
                del self._leases[hint]

    @contextmanager
    def _undelivered(self) -> Iterator[None]:
        with self._changed:
            self._num_undelivered += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_undelivered -= 1
                self._changed.notify_all()


def _pauses(longest_s: float, first_s: float = 0.1) -> Iterator[float]:
    """Yield ever longer pauses, without end; scattered, so that threads do not knock all at once."""
    pause_s = first_s
    while True:
        yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311  not a secret
        pause_s = min(pause_s * 2, longest_s)


def _backoff_s(attempt: int) -> float:
    """Return how long a unit waits that failed at this attempt: about 1, 4, 16, 60 s, scattered.

    With five attempts whoever is away may be so for a minute before a unit is given up.
    """
    return min(4.0 ** (attempt - 1), 60.0) * random.uniform(0.75, 1.25)  # noqa: S311  not a secret


def _names(unit: Unit) -> dict[str, object]:
    return {"job": unit.job, "index": unit.index, "attempt": unit.attempt, "model": unit.model}
