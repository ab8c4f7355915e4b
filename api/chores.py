"""What is left to do when a job has begun or ended, done in the background of every API process.

The ledger keeps the list; taking a chore is a lease, so any number of processes share it, and the death of one delays
its chores by what is left of that. Which function does which kind is said where the application is put together
(api.app); what a chore means is that function's business. A chore may be done twice: handlers are idempotent.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from api.parts import Parts
from farm.errors import LedgerDown, Transient

if TYPE_CHECKING:
    from farm.ledger.records import Chore

log = logging.getLogger(__name__)

Handler = Callable[[Parts, "Chore"], None]
"""Does one chore. Whatever it raises, the chore comes again later: Transient is said quietly, the rest with a trace,
and NotYet not at all."""

LEASE_S: Final = 60.0
"""How long a chore is ours alone, unless it is kept; after a death it waits as long for somebody else."""

_KEEP_EVERY_S: Final = LEASE_S / 3
_AT_ONCE: Final = 4  # of one kind, unless said otherwise: no kind holds up another
_IDLE_S: Final = 2.0
_OUTAGE_PAUSE_S: Final = 2.0
_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 300.0
_FAREWELL_S: Final = 2.0


class NotYet(Transient):
    """What a chore is about cannot be had yet, and its handler knows when to ask again: it has said so itself."""

    def __init__(self, message: str, *, again_s: float) -> None:
        super().__init__(message)
        self.again_s = again_s


class NoRoom(NotYet):
    """What it needs is taken by other chores just now: it comes again, and that counts for no try."""


class Chores:
    """The thread that takes chores, and those that do them: up to four of each kind, or as many as `at_once` says."""

    def __init__(
        self,
        farm: Parts,
        handlers: Mapping[str, Handler],
        *,
        at_once: Mapping[str, int] | None = None,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._farm = farm
        self._handlers = dict(handlers)
        self._at_once = dict.fromkeys(handlers, _AT_ONCE) | dict(at_once or {})
        self._idle_s = idle_s
        self._stopped = threading.Event()
        self._nudged = threading.Event()
        self._lock = threading.Lock()
        # Daemons, and no executor: the process must be able to end while a receiver lets one of them hang.
        self._running: dict[Chore, threading.Thread] = {}
        self._keep_from_s = 0.0
        self._is_cut_off = False
        self._thread = threading.Thread(target=self._keep_taking, name="chores", daemon=True)

    def start(self) -> None:
        """Begin to take chores."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more; chores that are not done within a moment are left to whoever takes them next."""
        self._stopped.set()
        self._nudged.set()
        deadline_s = time.monotonic() + _FAREWELL_S
        with self._lock:
            threads = [self._thread, *self._running.values()]
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    # -- the thread that takes

    def _keep_taking(self) -> None:
        while not self._stopped.is_set():
            pause_s = self._idle_s
            try:
                self._take()
                self._is_cut_off = False
            except LedgerDown as error:
                pause_s = _OUTAGE_PAUSE_S
                if not self._is_cut_off:
                    self._is_cut_off = True
                    log.warning("No chores are done: %s", error, extra={"action": "ledger_down"})
            except Exception:
                log.exception("Taking chores failed; going on", extra={"action": "chores_failed"})
            self._nudged.wait(pause_s)
            self._nudged.clear()

    def _take(self) -> None:
        """Keep what takes long, take what is due and there is room for, and have it done."""
        now_s = time.monotonic()
        if now_s >= self._keep_from_s:
            self._keep_from_s = now_s + _KEEP_EVERY_S
            with self._lock:
                running = list(self._running)
            for chore in running:
                self._farm.ledger.keep_chore(chore, LEASE_S)
        for kind in self._handlers:
            with self._lock:
                room = self._at_once[kind] - sum(1 for chore in self._running if chore.kind == kind)
            if room:
                for chore in self._farm.ledger.take_chores([kind], limit=room, lease_s=LEASE_S):
                    self._begin(chore)

    def _begin(self, chore: Chore) -> None:
        with self._lock:
            if self._stopped.is_set():
                return  # the lease runs out
            # At it already: Redis was away for as long as a lease, and the chore was due again.
            if any((each.kind, each.member) == (chore.kind, chore.member) for each in self._running):
                return
            thread = threading.Thread(target=self._do, args=(chore,), name=f"chore-{chore.kind}", daemon=True)
            self._running[chore] = thread
        thread.start()

    # -- the threads that do

    def _do(self, chore: Chore) -> None:
        tell = self._outcome(chore)
        # Before the ledger hears of it: a chore put off for a moment may come again at once, and we are at it no more.
        with self._lock:
            del self._running[chore]
        try:
            tell()
        except Exception as error:  # noqa: BLE001  without an answer the chore comes again when its lease has run out
            extra = {"action": "chore_unsettled", **_names(chore)}
            log.warning("A chore comes again, done or not: %s", error, extra=extra)
        self._nudged.set()

    def _outcome(self, chore: Chore) -> Callable[[], None]:
        """Do a chore; return what to tell the ledger of it."""
        ledger, extra = self._farm.ledger, {"action": "chore_failed", **_names(chore)}
        try:
            self._handlers[chore.kind](self._farm, chore)
        except NoRoom as error:
            return partial(ledger.keep_chore, chore, error.again_s)
        except NotYet as error:
            return partial(ledger.chore_later, chore, error.again_s)
        except Transient as error:
            log.warning("A chore has to wait: %s", error, extra=extra)
        except Exception:
            log.exception("A chore failed, and is tried again", extra=extra)
        else:
            return partial(ledger.chore_done, chore)
        return partial(ledger.chore_later, chore, retry_after_s(chore.tries))


def retry_after_s(tries: int) -> float:
    """Return the seconds before the next try of a chore that was tried `tries` times before the one that just failed.

    Twice as long each time, up to five minutes; scattered, so that an outage does not end in a rush.
    """
    longest_s = min(_FIRST_RETRY_S * 2.0 ** min(tries, 32), _LONGEST_RETRY_S)
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311  not a secret


def _names(chore: Chore) -> dict[str, object]:
    return {"chore": chore.kind, "job": chore.job, "event": chore.event, "tries": chore.tries}
