"""What a ledger's listener has been told by now, without a wait that a busy machine can miss."""

import time
from typing import Final

from farm.ledger import Ledger, News

WAIT_S: Final = 30
_MARK: Final = News(job="job_of_the_mark")


def listen(ledger: Ledger) -> None:
    """From here on `told_by_now` tells what happens."""
    ledger.news(0)


def told_by_now(ledger: Ledger) -> list[News]:
    """Return all that was told since `listen`, or since this was last asked.

    A mark is told after it and read back: the server keeps the order, so nothing is missed, and nothing waited for
    that does not come.

    Raises:
        TimeoutError: the mark does not come.
    """
    ledger._redis.publish("farm:news", f"cancelled {_MARK.job}")
    told: list[News] = []
    deadline_s = time.monotonic() + WAIT_S
    while _MARK not in told:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the mark did not come within {WAIT_S} s, only {told}: does the ledger listen?")
        told += ledger.news(1)
    return told[: told.index(_MARK)]
