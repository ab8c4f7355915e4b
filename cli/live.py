"""How a job goes on: told by the farm's stream of its events, asked for where none comes through.

A proxy may hold a stream back, an API have none, a farm be away. So the job is asked for whenever the stream is silent,
and the stream is opened again, from where it was, until it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

import httpx

from cli.client import FarmClient, Json, NoFarm, NotNow
from cli.events import BadStream, EventParser

STEPS_UP_TO: Final = 16
"""Images of a job whose steps are told: of a larger one the images that end tell how far it is."""

_POLL_S: Final = 0.5
_REFRESH_S: Final = 1.0
_SILENCE_S: Final = 20.0  # the farm says that it is there every fifteen
_OPEN_S: Final = 10.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_STEPS_ALONE: Final = 1000  # a picture after so many steps: none
_STREAM: Final = "text/event-stream"
_HEADERS: Final = {"Accept": _STREAM, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class News(NamedTuple):
    """What is told of a job: `job`, `image`, `preview`, `outage` or `end`, as docs/watching.md has them."""

    name: str
    data: Json


class LiveJob:
    """Keeps up with one job for the length of an `async with` block."""

    def __init__(self, client: FarmClient, job_id: str, *, num_images: int) -> None:
        self._client = client
        self._path = f"/v1/jobs/{quote(job_id, safe='')}"
        self._query = {"previews": str(_STEPS_ALONE)} if num_images <= STEPS_UP_TO else {}
        self._told: asyncio.Queue[News | None] = asyncio.Queue()
        self._is_heard = False
        self._parser = EventParser()

    async def __aenter__(self) -> Self:
        self._http = self._client.open_async()
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listener
        await self._http.aclose()

    async def next(self) -> News | None:
        """Return what is told next; None when for a second there was nothing new.

        Where nothing is heard of the stream the job is asked for, twice a second: raises NoFarm and NotNow when the
        farm is away, and may be called again then; CliError when there is no such job.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH_S if self._is_heard else _POLL_S):
                if (news := await self._told.get()) is not None:
                    return news
        return None if self._is_heard else News("job", await self._ask())

    async def _ask(self) -> Json:
        try:
            response = await self._http.get(self._path)
        except httpx.ConnectError as error:
            raise NoFarm(self._client.url) from error
        except httpx.HTTPError as error:
            raise NotNow(f"{self._client.url} does not answer: {error or type(error).__name__}") from error
        return self._client.read(response)

    async def _listen(self) -> None:
        """Put into the queue what streams tell, one after the other; None when one of them is heard no more."""
        pause_s = _FIRST_PAUSE_S
        while True:
            is_worth_a_try = True
            with contextlib.suppress(httpx.HTTPError, BadStream):  # whether the farm is away is told by who asks
                is_worth_a_try = await self._hear_one()
            if self._is_heard:
                self._is_heard = False
                self._told.put_nowait(None)
                pause_s = _FIRST_PAUSE_S if self._parser.retry_s is None else self._parser.retry_s
            if not is_worth_a_try:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    async def _hear_one(self) -> bool:
        """Tell what a stream tells until it ends; return whether another one is worth a try."""
        self._parser.begin()
        last_id = self._parser.last_id
        headers = _HEADERS | ({"Last-Event-ID": last_id} if last_id and last_id.isascii() else {})
        timeout = httpx.Timeout(_OPEN_S, read=_SILENCE_S)
        async with self._http.stream(
            "GET", f"{self._path}/events", params=self._query, headers=headers, timeout=timeout
        ) as response:
            if response.status_code != httpx.codes.OK:
                return response.status_code in _AGAIN
            if not response.headers.get("Content-Type", "").startswith(_STREAM):
                return False
            async for piece in response.aiter_bytes():
                self._is_heard = True
                for event in self._parser.feed(piece):
                    if (data := _object_in(event.data)) is not None:
                        self._told.put_nowait(News(event.name, data))
                    if event.name == "end":
                        return False
        return True


def _object_in(text: str) -> dict[str, Any] | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
