"""Server-Sent Events on the wire: how an event is written, and a response that goes on until its events end.

What is told, and when, is said by whoever makes the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, TypeVar

from api.streaming import Streamed

HEARTBEAT_S: Final = 15.0
"""A stream that has nothing to tell says so this often: proxies close connections that are silent for long."""

LONGEST_S: Final = 3600.0
"""A stream ends then, and its client connects again, if its key is still good."""

RECONNECT_MS: Final = 2000

T = TypeVar("T")


def schema(*names: str) -> dict[str, Any]:
    """Return the schema of one event of a stream that has events of these names."""
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string", "enum": list(names)},
            "id": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
        "required": ["event", "data"],
    }


def event(name: str, data: bytes | str, event_id: str | None = None) -> bytes:
    """Return an event as it is sent; `data` is one line, such as JSON."""
    text = data.encode() if isinstance(data, str) else data
    first = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    return b"%bevent: %b\ndata: %b\n\n" % (first, name.encode(), text)


def comment(text: str) -> bytes:
    """Return a line that clients pass over."""
    return b": %b\n\n" % text.encode()


OPENING: Final = b"retry: %d\n\n" % RECONNECT_MS
HEARTBEAT: Final = comment("still here")


async def within(seconds: float, awaitable: Awaitable[T]) -> T | None:
    """Return what is awaited, None when that takes longer; it is cancelled then."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await awaitable
    except TimeoutError:
        return None


class EventStream(Streamed):
    """Sends events until they end."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], status_code: int = 200) -> None:
        super().__init__(events, status_code, headers={})
