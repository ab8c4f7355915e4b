"""Jobs as they were a moment ago: what a client is told whose read waits in Redis, for a disk that stalls.

Redis has one thread, and answers nobody while it waits for the disk to hold what was accepted: mostly a millisecond,
now and then a quarter of a second. In that time it tells nobody of a change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from farm.ledger import JobStatus, Ledger

OLDEST_S: Final = 3.0
"""What was read longer ago is not told."""

_MAX_KEPT: Final = 1000


class Reading(NamedTuple):
    """When a read began: what was changed before, it has seen."""

    began_s: float
    last_change: object


class Memory:
    """Remembers what was read last of each job.

    What this process has changed since is not told as it was before: who cancels a job, and asks, is told that it is
    cancelled. What other processes change may be unseen for OLDEST_S.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[str, tuple[Reading, JobStatus]] = {}

    def begin(self) -> Reading:
        """Say that a read begins."""
        return Reading(time.monotonic(), self._ledger.last_change)

    def keep(self, reading: Reading, statuses: Mapping[str, JobStatus]) -> None:
        """Remember what a read has found."""
        if len(self._known) + len(statuses) > _MAX_KEPT:
            self._known.clear()
        self._known.update((job_id, (reading, status)) for job_id, status in statuses.items())

    def recall(self, job_id: str) -> JobStatus | None:
        """Return a job as it was a moment ago, None where that is too long ago or changed since."""
        reading, status = self._known.get(job_id, (None, None))
        if reading is None or reading.last_change is not self._ledger.last_change:
            return None
        return status if time.monotonic() - reading.began_s < OLDEST_S else None
