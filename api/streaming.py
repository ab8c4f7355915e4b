"""Answers whose body is made while it is sent, in constant memory. What is in it is for others to say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from farm.errors import FarmError

log = logging.getLogger(__name__)

IS_HEAD: Final = "farm.is_head"
"""In a request's scope when only the headers of what a GET would answer are asked for."""

_STALLED_S: Final = 60.0


class Streamed(StreamingResponse):
    """Sends pieces as they come. The next is asked for when the last has gone out: a slow client fills no memory.

    A client that takes nothing for a minute is cut off, and so is one when no more can be made: it knows that the rest
    is missing.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        status_code: int = 200,
        *,
        headers: Mapping[str, str],
        media_type: str | None = None,
    ) -> None:
        # A proxy that gathers pieces, or compresses them, would hand them on at the end.
        unchanged = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
        super().__init__(pieces, status_code=status_code, headers={**unchanged, **headers}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; a HEAD without making anything."""
        if scope.get(IS_HEAD):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send all pieces; give up on a client that has stalled."""

        async def send_soon(message: Any) -> None:
            async with asyncio.timeout(_STALLED_S):
                await send(message)

        try:
            await super().stream_response(send_soon)
        except (FarmError, TimeoutError) as error:
            # Without a last piece: the server closes the connection before the body's end, and the client sees that.
            log.warning("An answer broke off: %s", error or "its client stalled", extra={"action": "stream_broken"})
