"""Server-Sent Events as they come in: from pieces of bytes to events, by the rules of the WHATWG's HTML standard. Pure.

Section 9.2.6, "Interpreting an event stream". Whose events they are, and when to connect again, is for cli.live.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"
_MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
_MAX_RETRY_S: Final = 60.0


class BadStream(Exception):
    """What comes in is no stream of events that anybody would send."""


class Event(NamedTuple):
    """An event: its name, `message` where it has none, and its text."""

    name: str
    data: str


class EventParser:
    """Reads one stream after the other; `last_id` and `retry_s` are remembered beyond the end of a connection."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_s: float | None = None  # what the server asks for
        self.begin()

    def begin(self) -> None:
        """Say that a connection begins: what the last one had told in half is not told."""
        self._rest = b""
        self._is_after_cr = False
        self._is_first_line = True
        self._id = self.last_id
        self._forget()

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that end with this piece; raises BadStream for one that does not end."""
        if self._is_after_cr and piece:
            piece = piece.removeprefix(b"\n")  # the other half of a line end
            self._is_after_cr = False
        if piece:
            self._is_after_cr = piece.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        self._num_bytes += len(piece)
        if self._num_bytes > _MAX_EVENT_BYTES:
            raise BadStream(f"an event of more than {_MAX_EVENT_BYTES:,} bytes")
        for line in lines:
            if self._is_first_line:
                self._is_first_line = False
                line = line.removeprefix(_BOM)  # noqa: PLW2901  the rest is as any other line
            if line:
                self._take(line.decode("utf-8", "replace"))
                continue
            self.last_id = self._id
            if self._data:
                yield Event(self._name or "message", "\n".join(self._data))
            self._forget()

    def _forget(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self._num_bytes = len(self._rest)

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = min(int(value[:9]) / 1000, _MAX_RETRY_S)
