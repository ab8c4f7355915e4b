"""What a worker does besides rendering, a few times per lease: keep its leases, tell how it is, keep work coming.

Three threads. One renews all leases in one call and stops work on those that are gone; nothing else is done there, for
whatever is late there is rendered twice. One beats: reports, takes expired units back, decides which models to serve,
hands out their next units and hints again what went missing. The third listens: for what is cancelled, so that its seat
is free within a step, for who looks on, so that there are previews of the next one, and for work, so that nobody idle
sleeps until the next beat. All outlive any outage of Redis.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from farm.errors import LedgerDown
from farm.feeding import feed
from farm.queue import publish, purge, queue_length

if TYPE_CHECKING:
    from celery import Celery

    from farm.jobs import Watch
    from farm.ledger import Ledger
    from farm.ledger.records import WorkerReport
    from worker.render import Renderer
    from worker.serving import Serving

log: Final = logging.getLogger(__name__)

_BEATS_PER_LEASE: Final = 4
_CUT_OFF: Final = 0.5
"""Of a lease: with no beat for this long, renewals were held up as well. The last ones were made up to a quarter before
that, and when Redis answers again the next ones need a moment to come."""
_VANISHED_AFTER_S: Final = 2.0
"""A unit unclaimed for this long, with nothing in the queue, has lost its message."""
_OVERDUE_AFTER_S: Final = 30.0
"""A unit unclaimed for this long, with others in the queue, may have lost its message: one more does no harm."""
_OUTAGE_PAUSE_S: Final = 0.5
_WATCH_S: Final = 1.0


class Appetite:
    """Says when to feed again: when half of what a worker has handed out ahead is claimed, not at each claim."""

    def __init__(self, seats: Callable[[], int], nudge: threading.Event) -> None:
        """Reckon with `seats()` units that are worth having at once."""
        self._seats = seats
        self._half = seats()  # of two units for each seat
        self._nudge = nudge
        self._claims = 0  # lost counts do no harm: the next beat feeds anyway
        self._is_short = False

    @property
    def seats(self) -> int:
        """Units worth having at once, by now."""
        return self._seats()

    def claimed(self) -> None:
        """Count a claim; any thread."""
        self._claims += 1
        if self._is_short or self._claims >= self._half:
            self._nudge.set()

    def fed(self, num_units: int) -> None:
        """Start over. After a feed that found nothing each claim may be the last, and another model next."""
        self._claims = 0
        self._half = self._seats()
        self._is_short = num_units == 0


class Upkeep:
    """The three threads.

    `able` are the models that this worker may serve. `describe` returns a fresh report; `nudge` is set whenever more
    work may be handed out. `on_watched` is told of jobs that somebody looks at. `leases` is a ledger of its own, over
    connections of its own, that rather fails than takes a lease's time.
    """

    def __init__(
        self,
        node: str,
        *,
        ledger: Ledger,
        leases: Ledger,
        renderer: Renderer,
        app: Celery,
        serving: Serving,
        able: Sequence[str],
        appetite: Appetite,
        describe: Callable[[], WorkerReport],
        lease_s: float,
        nudge: threading.Event,
        on_watched: Callable[[str, Watch], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._ledger = ledger
        self._leases = leases
        self._renderer = renderer
        self._app = app
        self._serving = serving
        self._able = tuple(able)
        self._appetite = appetite
        self._describe = describe
        self._lease_s = lease_s
        self._nudge = nudge
        self._on_watched = on_watched
        self._clock = clock
        self._stopped = threading.Event()
        self._has_greeted = False
        self._has_work_come = False
        self._is_cut_off = False
        self._seats_told = math.inf  # nothing is told before the first beat
        self._beat_at_s = -math.inf  # when the latest beat began that got through
        self._reap_from_s = math.inf
        self._threads = [
            threading.Thread(target=self._keep_leases, name="leases", daemon=True),
            threading.Thread(target=self._keep_beating, name="upkeep", daemon=True),
            threading.Thread(target=self._listen, name="news", daemon=True),
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop all threads; leases are not renewed any more."""
        self._stopped.set()
        self._nudge.set()
        for thread in self._threads:
            thread.join()

    def renew(self) -> None:
        """Renew all leases and stop work on those that are gone. Raises LedgerDown when Redis is away."""
        self._renderer.lose(self._leases.renew(self._renderer.name, self._renderer.held))

    def beat(self) -> None:
        """Do everything else once. Raises LedgerDown when Redis is away."""
        began_at_s = self._clock()
        if not self._has_greeted:
            returned = self._ledger.reap_node(self._node, keep=self._renderer.name)
            self._has_greeted = True
            log.info("took %d units of a predecessor back", returned, extra={"action": "node_reaped"})
        sent_at = self._report()
        # Leases that ran out while Redis was away, or frozen, are not their holders' fault: when it is back, as at our
        # own start, everybody gets a lease's time to renew before anybody reaps. The outage may have been in the midst
        # of the beat before, so its beginning counts.
        if self._clock() - self._beat_at_s > self._lease_s * _CUT_OFF:
            self._reap_from_s = self._clock() + self._lease_s
        if self._clock() >= self._reap_from_s:
            self._ledger.reap(as_of=sent_at)
        self.find_work(choose=True)
        self._rehint()
        self._drop_unread()
        self._beat_at_s = began_at_s

    def find_work(self, *, choose: bool) -> None:
        """Hand out what is next of the served models; `choose` them anew first, or when there is nothing of them.

        Raises LedgerDown when Redis is away.
        """
        if not self._renderer.is_claiming:
            return
        if choose:
            self._serving.update()
        if self._appetite.seats > self._seats_told:
            self._report()  # or nothing is handed out for the new ones until the next beat
        num_units = feed(self._ledger, self._app, self._serving.models)
        if num_units == 0 and not choose and self._serving.update():
            num_units = feed(self._ledger, self._app, self._serving.models)
        self._appetite.fed(num_units)

    def _report(self) -> float:
        """Tell the ledger how things are; return what it does."""
        report = self._describe()
        self._seats_told = report.useful_seats
        # A worker that claims nothing reads no queue: its seats must not be counted on.
        return self._ledger.report(
            report if self._renderer.is_claiming else report.model_copy(update={"models": (), "serving": ()})
        )

    def _rehint(self) -> None:
        """Send messages again for units that were handed out and are claimed by nobody."""
        if not self._renderer.is_claiming:
            return  # we may sit on their messages ourselves
        for model in self._serving.models:
            is_idle = queue_length(self._app, model) == 0
            hints = self._ledger.rehint(model, older_than_s=_VANISHED_AFTER_S if is_idle else _OVERDUE_AFTER_S)
            publish(self._app, [(model, hint) for hint in hints])
            if hints:
                log.info("hinted %d units again", len(hints), extra={"action": "units_rehinted", "model": model})

    def _drop_unread(self) -> None:
        """Drop messages of models that nobody serves, when there is nothing else to do.

        What they speak of went back to the backlog with the last one who served it: they would lie there until somebody
        serves it again, only to be refused by the ledger.
        """
        if self._renderer.held:
            return
        for model in self._ledger.unserved([model for model in self._able if model not in self._serving.models]):
            if num_messages := purge(self._app, model):
                words = "dropped %d messages of %s, which nobody serves"
                log.info(words, num_messages, model, extra={"action": "messages_dropped", "model": model})

    def _keep_beating(self) -> None:
        next_beat_s = self._clock()
        while not self._stopped.is_set():
            try:
                if self._clock() >= next_beat_s:
                    next_beat_s = self._clock() + self._lease_s / _BEATS_PER_LEASE
                    self.beat()
                else:
                    has_work_come, self._has_work_come = self._has_work_come, False
                    self.find_work(choose=has_work_come)
                if self._is_cut_off:
                    self._is_cut_off = False
                    log.info("Redis answers again", extra={"action": "ledger_up"})
            except LedgerDown as error:
                next_beat_s = self._clock() + _OUTAGE_PAUSE_S
                if not self._is_cut_off:
                    self._is_cut_off = True
                    log.warning("no upkeep: %s", error, extra={"action": "ledger_down"})
            except Exception:
                log.exception("upkeep failed; going on", extra={"action": "upkeep_failed"})
            self._nudge.wait(max(0.0, next_beat_s - self._clock()))
            self._nudge.clear()

    def _keep_leases(self) -> None:
        while not self._stopped.is_set():
            pause_s = self._lease_s / _BEATS_PER_LEASE
            try:
                self.renew()
            except LedgerDown:  # the other threads say so
                pause_s = _OUTAGE_PAUSE_S
            except Exception:
                log.exception("leases were not renewed; going on", extra={"action": "upkeep_failed"})
            self._stopped.wait(pause_s)

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                for news in self._ledger.news(timeout_s=_WATCH_S):
                    if news.job is not None and news.watch is not None:
                        if self._on_watched is not None:
                            self._on_watched(news.job, news.watch)
                    elif news.job is not None:
                        self._renderer.cancel(news.job, news.index)
                    else:
                        self._has_work_come = True
                        self._nudge.set()
            except LedgerDown:  # what is missed meanwhile, the next renewal and the next beat tell
                self._stopped.wait(_OUTAGE_PAUSE_S)
            except Exception:
                log.exception("listening failed; going on", extra={"action": "upkeep_failed"})
                self._stopped.wait(_OUTAGE_PAUSE_S)
