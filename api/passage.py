"""The API's own way to S3 for those who follow links: connections, how many at once, how long they wait.

What may be asked for, and what is made of the answer, is for api/stored.py to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

import httpx

from farm.errors import StorageDown
from farm.settings import Settings

MAX_AT_ONCE: Final = 256
"""Objects that are sent at the same moment; whoever comes beyond them waits for a while."""


class Passage:
    """The connections to S3 of those who follow links. Opened by the first of them."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = httpx.Timeout(settings.s3_timeout_s, connect=min(3.0, settings.s3_timeout_s))
        self._free = asyncio.Semaphore(MAX_AT_ONCE)
        self._client: httpx.AsyncClient | None = None

    async def open(self, url: httpx.URL, headers: Mapping[str, str], until: AsyncExitStack) -> httpx.Response:
        """Ask S3; the answer's body may be read until `until` is left. Raises StorageDown when there is none."""
        try:
            async with asyncio.timeout(self._timeout.read):
                await self._free.acquire()
        except TimeoutError as error:
            raise StorageDown(f"{MAX_AT_ONCE} objects are being sent, and none of them ends") from error
        until.callback(self._free.release)
        if self._client is None:
            # Its pool is no limit: whoever holds a place of ours finds a connection.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_AT_ONCE)
            self._client = httpx.AsyncClient(timeout=self._timeout, limits=limits)
        try:
            return await until.enter_async_context(self._client.stream("GET", url, headers=headers))
        except httpx.HTTPError as error:
            raise StorageDown(f"the storage does not answer: {error!r}") from error

    async def close(self) -> None:
        """Close them all."""
        if self._client is not None:
            await self._client.aclose()
