"""What the endpoints work with, built once by `api.app` and handed to each of them. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from anyio import CapacityLimiter
from celery import Celery
from fastapi import Depends, Request

from api.guard.keyring import Keyring, OpenedBy
from api.passage import Passage
from api.watching.bulletin import Bulletin
from api.watching.texts import JobTexts
from api.watching.watcher import Watcher
from api.webhooks.sending import Sender
from farm.catalog import Catalog, load_catalog
from farm.ledger import Ledger
from farm.queue import make_celery
from farm.settings import Settings
from farm.storage import Store

DEFAULT_TENANT: Final = "default"
"""Whose the operator's own jobs are."""

_MAX_PROBES: Final = 4
_MAX_DECODERS: Final = 2
_MAX_PACKERS: Final = 8
_MAX_TESTERS: Final = 2


@dataclass(frozen=True, slots=True)
class Parts:
    """The farm as the API sees it: the models it offers, where progress stands, where images lie."""

    settings: Settings
    catalog: Catalog
    ledger: Ledger
    watcher: Watcher
    bulletin: Bulletin
    job_texts: JobTexts
    keyring: Keyring
    celery: Celery
    store: Store
    passage: Passage
    started_at: float  # Unix time
    probes: CapacityLimiter  # threads of the readiness probe
    decoders: CapacityLimiter  # threads that decode uploaded pictures
    packers: CapacityLimiter  # threads that read images for archives
    webhooks: Sender
    testers: CapacityLimiter  # threads that wait for a receiver while a client waits for them


def build_parts(settings: Settings, webhooks: Sender, keys: Mapping[bytes, OpenedBy], *, started_at: float) -> Parts:
    """Build the rest from the settings. Connects to nothing; raises Fatal for a broken catalog file."""
    # A client waits for each answer: better 503 after some seconds than a thread held for half a minute.
    ledger = Ledger.connect(settings, socket_timeout_s=3, retries=1)
    watcher = Watcher(ledger)
    return Parts(
        settings=settings,
        catalog=load_catalog(settings.catalog_file),
        ledger=ledger,
        watcher=watcher,
        bulletin=Bulletin(ledger, watcher, gpu_hour_price=settings.gpu_hour_price),
        job_texts=JobTexts(settings.gpu_hour_price),
        keyring=Keyring(ledger, keys),
        celery=make_celery(settings),
        store=Store.connect(settings),
        passage=Passage(settings),
        started_at=started_at,
        probes=CapacityLimiter(_MAX_PROBES),
        decoders=CapacityLimiter(_MAX_DECODERS),
        packers=CapacityLimiter(_MAX_PACKERS),
        webhooks=webhooks,
        testers=CapacityLimiter(_MAX_TESTERS),
    )


async def parts_of(request: Request) -> Parts:
    """Return the parts of the application that serves this request."""
    parts: Parts = request.app.state.parts
    return parts


Farm = Annotated[Parts, Depends(parts_of)]
"""Annotation of an endpoint's parameter that is to receive the parts."""
