"""From ledger to Celery: the next units of each model, as messages. Whoever is awake does it; nobody must."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from farm.queue import publish

if TYPE_CHECKING:
    from celery import Celery

    from farm.ledger import Ledger


def feed(ledger: Ledger, app: Celery, models: Iterable[str]) -> int:
    """Hand out what there is room for and publish it; return the number of units.

    A crash between the two loses messages, not units: `rehint` finds what was handed out and never claimed.
    """
    total = 0
    for model in models:
        hints = ledger.feed(model)
        if hints:
            publish(app, [(model, hint) for hint in hints])
        total += len(hints)
    return total
