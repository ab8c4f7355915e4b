"""The clients: many that ask again and again, and some that listen, in one event loop that does little else.

Spoken is just as much HTTP/1.1 as these answers need, so that what is measured is the server and not its clients.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-fA-F]+)\r\n")


@dataclass
class Tally:
    """What pollers of one route have seen: how long answers took, and what they were."""

    took_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0  # connections that ended
    is_closed: bool = False

    def add(self, took_s: float, status: int) -> None:
        """Note an answer; how long it took only as long as that is measured."""
        if not self.is_closed:
            self.took_s.append(took_s)
        self.statuses[status] += 1

    def close(self) -> None:
        """Measure no longer."""
        self.is_closed = True


class Poller(asyncio.Protocol):
    """Asks for a path, waits for the answer and then for its interval, and asks again; on one connection."""

    def __init__(self, path: str, tally: Tally, draw: Callable[[], float], *, headers: str = "") -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: farm\r\n{headers}\r\n".encode()
        self._tally = tally
        self._draw_interval_s = draw
        self._buffer = b""
        self._asked_at_s = 0.0
        self._answered_of_s = 0.0  # when what was answered last had been asked
        self.is_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: Any = None
        self.last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time at some moment within an interval."""
        self._transport = transport
        self._later(self._draw_interval_s() * random.random())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  as asyncio calls it
        """Count it."""
        if self._timer is not None:
            self._timer.cancel()
        self.is_lost = True
        self._tally.broken += 1

    def _later(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ask)

    def _ask(self) -> None:
        self._timer = None
        self._asked_at_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        self._tally.add(time.perf_counter() - self._asked_at_s, int(head[9:12]))
        self._buffer, self.last, self._answered_of_s = b"", body, self._asked_at_s
        self._later(self._draw_interval_s())

    def has_asked_since(self, moment_s: float) -> bool:
        """Whether an answer is there of a question asked since; or there will be none, for the connection is lost."""
        return self.is_lost or self._answered_of_s >= moment_s

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()


class Listener(asyncio.Protocol):
    """Reads a job's events, and keeps what is needed to compare them with the truth."""

    def __init__(self, job: str, *, headers: str = "") -> None:
        self.job = job
        self._request = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: farm\r\n{headers}\r\n".encode()
        self._raw = b""
        self._text = b""
        self.opened = asyncio.Event()
        self.ended = asyncio.Event()
        self.names: Counter[str] = Counter()
        self.images: list[int] = []
        self.ids: list[str] = []
        self.last_counts: dict[str, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        transport.write(self._request)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  as asyncio calls it
        """End, maybe before the last event."""
        self.ended.set()

    def data_received(self, data: bytes) -> None:
        """Take a part of the stream."""
        self._raw += data
        if not self.opened.is_set():
            head, separator, rest = self._raw.partition(b"\r\n\r\n")
            if not separator:
                return
            assert head.startswith(b"HTTP/1.1 200"), head
            self._raw = rest
            self.opened.set()
        while (size := _CHUNK.match(self._raw)) is not None:
            end = size.end() + int(size[1], 16)
            if len(self._raw) < end + 2:
                break
            self._text += self._raw[size.end() : end]
            self._raw = self._raw[end + 2 :]
        *blocks, self._text = self._text.split(b"\n\n")
        for block in blocks:
            self._take(block)

    def _take(self, block: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if line and not line.startswith(b":"))
        if (name := fields.get(b"event", b"").decode()) == "":
            return
        self.names[name] += 1
        if b"id" in fields:
            self.ids.append(fields[b"id"].decode())
        if name == "image":
            self.images.append(json.loads(fields[b"data"])["index"])
        elif name == "job":
            self.last_counts = json.loads(fields[b"data"])["counts"]
        elif name == "end":
            self.ended.set()
