"""What workers tell the ledger, without workers: units are handed out, claimed and stored at an even pace.

Everything goes through the farm's own ledger; nothing is rendered, and no file is written.
"""

from __future__ import annotations

import time

from farm.jobs import Hint
from farm.ledger import Ledger, WorkerReport
from farm.settings import Settings

WORKER = "crowd:gpu0#1"
_SEATS = 32


def finish(settings: Settings, *, model: str, units: int, seconds: float) -> float:
    """Store so many images, evenly over so many seconds; return the seconds it took."""
    ledger = Ledger.connect(settings)
    report = WorkerReport(
        name=WORKER, node="crowd:gpu0", pid=1, device="cpu", models=(model,), max_batch=_SEATS, started_at=time.time()
    )
    claimed: list[Hint] = []
    began_s = reported_s = time.monotonic()
    ledger.report(report)
    num_stored = 0
    while num_stored < units:
        if time.monotonic() - reported_s > settings.lease_s / 4:
            reported_s = time.monotonic()
            ledger.report(report)
            ledger.renew(WORKER, claimed)
        while not claimed:
            # Those whose messages nobody reads, too: the API hands out what it accepts.
            found = [*ledger.feed(model, limit=_SEATS), *ledger.rehint(model, older_than_s=0.5)]
            claimed = [hint for hint in dict.fromkeys(found) if ledger.claim(hint, WORKER) is not None]
            if not claimed:
                time.sleep(0.01)
        hint = claimed.pop(0)
        num_stored += ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1.0)
        time.sleep(max(0.0, began_s + seconds * num_stored / units - time.monotonic()))
    took_s = time.monotonic() - began_s
    ledger.forget(WORKER)
    ledger.close()
    return took_s
