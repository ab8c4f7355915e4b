"""The audit log: every request that changes something, and every one that was refused for who sent it, as one line.

`action=audit`, then who (the key's id, never the key), whose, from where, what (the endpoint's name, as in
/openapi.json), to which object, and what came of it. Bodies, queries and headers of requests are in no log of the farm.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Final
from urllib.parse import quote

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Message

from api.guard.callers import caller_in

log = logging.getLogger("api.audit")

DENIED: Final = frozenset({401, 403})
"""Statuses of requests that are told of whatever they ask for."""

_MAX_PATH_CHARS: Final = 200
_OUTCOMES: Final = {2: "done", 3: "done", 4: "refused", 5: "failed"}


_at_hand: ContextVar[Note | None] = ContextVar("note", default=None)


def note_made(path: str) -> None:
    """Note what the request at hand has made, where its answer has no `Location` that tells; nothing without one."""
    note = _at_hand.get()
    if note is not None:
        note.made = path


class Note:
    """What is to be told of one request. Threads that work for it find it by `note_made`."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.made = ""
        _at_hand.set(self)

    def read(self, start: Message) -> None:
        """Read from an answer's beginning where that lies which was made."""
        # Up to the query: a signed URL is a secret.
        location = Headers(raw=start["headers"]).get("location", "")
        self.made = self.made or location.partition("?")[0]

    def write(self, status: int) -> None:
        """Log the line."""
        request = self._request
        caller = caller_in(request.scope)
        route, path = request.scope.get("route"), quote(request.scope["path"])[:_MAX_PATH_CHARS]
        who = "nobody" if caller is None else caller.identity
        target = self.made or path
        what = getattr(route, "name", f"{request.method} {path}")
        outcome = "denied" if status in DENIED else _OUTCOMES.get(status // 100, "failed")
        log.info(
            "%s: %s %s",
            who,
            what,
            outcome,
            extra={
                "action": "audit",
                "who": who,
                "tenant": None if caller is None else caller.tenant,
                "client": request.client.host if request.client else None,
                "what": what,
                "target": target,
                "outcome": outcome,
                "status": status,
            },
        )
