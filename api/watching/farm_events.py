"""What happens on the whole farm, as Server-Sent Events. What is told, and how often, is in bulletin.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from api.guard.callers import Asker, Caller
from api.parts import Farm, Parts
from api.problems import INVALID_REQUEST, LEDGER_DOWN, documented
from api.watching import sse
from api.watching.sse import EventStream
from api.watching.watched import WatcherClosed

router = APIRouter(prefix="/v1/events", tags=["reports"])

_DESCRIPTION: Final = """\
A stream of events.

- `sync`: list what you show again, as at the beginning: from here on changes are told, and before some may have been
  missed. The first event, and again after the connection to the ledger was lost.
- `job`: a `Job` that was opened or has changed, at most once a second each. Tenants are told of their own.
- `throughput`: a `Throughput`, every five seconds.
- `outage`: the ledger does not answer; the stream goes on when it does.

Comments keep the connection alive. A stream that ends is to be opened again: after an hour, or when the API is
restarted.
"""
_STREAM: Final[dict[str, Any]] = {
    "description": _DESCRIPTION,
    "content": {"text/event-stream": {"schema": sse.schema("sync", "job", "throughput", "outage")}},
}


@router.get("", response_class=EventStream, responses={200: _STREAM, **documented(INVALID_REQUEST, LEDGER_DOWN)})
async def watch_farm(farm: Farm, caller: Asker) -> EventStream:
    """Watch the farm: its jobs as they are opened and change, and its throughput."""
    await run_in_threadpool(farm.ledger.ping)
    return EventStream(_tell(farm, caller))


async def _tell(farm: Parts, caller: Caller) -> AsyncIterator[bytes]:
    """Yield events for an hour, or until the API stops."""
    now_s = asyncio.get_running_loop().time
    until_s = now_s() + sse.LONGEST_S
    yield sse.OPENING
    async with farm.bulletin.reading(caller.sees) as reader:
        try:
            while (left_s := until_s - now_s()) > 0:
                told = await sse.within(min(left_s, sse.HEARTBEAT_S), reader.next())
                yield sse.HEARTBEAT if told is None else told
        except WatcherClosed:
            yield sse.comment("the API stops; connect again")
