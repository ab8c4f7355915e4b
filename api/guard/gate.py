"""Who may enter: every request passes here before it reaches an endpoint, so that none can be left open by mistake.

In this order: is it another site's page that asks (browsers.py), who asks (callers.py), does the key's scope
allow it, has the key requests left. What becomes of a change is told to the audit log (audit.py). What of the farm
a caller sees is not decided here but by the endpoints.
"""

from __future__ import annotations

import math
import time
from typing import Final

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.guard import audit
from api.guard.browsers import Browsers
from api.guard.callers import Caller, caller_in, identify
from api.guard.callers import Scope as KeyScope
from api.guard.keyring import MAX_AGE_S
from api.parts import Parts
from api.problems import (
    CROSS_SITE,
    FORBIDDEN,
    LEDGER_DOWN,
    TOO_MANY_REQUESTS,
    UNAUTHENTICATED,
    HttpProblem,
    answer,
    problem_of,
)
from farm.errors import FarmError, Refused
from farm.settings import Settings

ANSWERS: Final = (UNAUTHENTICATED, FORBIDDEN, CROSS_SITE, TOO_MANY_REQUESTS, LEDGER_DOWN)
"""What a request may be told here, whatever it asks for."""

_PUBLIC: Final = frozenset({"/", "/healthz", "/readyz"})
_OPEN_FOLDERS: Final = ("/page/", "/stored/")  # the page's files; what is opened by a link's own signature
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# These only read, though they are sent by POST.
_READING_POSTS: Final = frozenset({"/v1/jobs:preview", "/internal/progress", "/sdapi/v1/png-info"})


class Gate:
    """ASGI middleware: lets a request in, or answers it in the words of its path's API."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._browsers = Browsers(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Paths are read as the router reads them, never from `request.url`, which the header Host has a part in.
        request = Request(scope)
        needed = needed_scope(scope["method"], scope["path"])
        note = audit.Note(request)
        status = 500
        checked_at_s = time.monotonic()

        async def send_on(message: Message) -> None:
            nonlocal status, checked_at_s
            if message["type"] == "http.response.start":
                status = message["status"]
                if needed == "submit":
                    note.read(message)
            elif message.get("more_body") and time.monotonic() >= checked_at_s + MAX_AGE_S:
                checked_at_s = time.monotonic()
                await _check_again(request)
            await send(message)

        try:
            if (problem := await self._objection(request, needed)) is None:
                await self._app(scope, receive, send_on)
            else:
                await answer(request, problem)(scope, receive, send_on)
        finally:
            if needed == "submit" or status in audit.DENIED:
                note.write(status)

    async def _objection(self, request: Request, needed: KeyScope) -> HttpProblem | None:
        """Return why a request may not enter; None lets it in."""
        try:
            self._browsers.check(request)
            if not is_public(request.method, request.scope["path"]):
                caller = await identify(request)
                _check_scope(caller, needed)
                await _check_rate(request, caller)
        except HttpProblem as problem:
            return problem
        except FarmError as error:
            return problem_of(error)
        return None


def needed_scope(method: str, path: str) -> KeyScope:
    """Return the scope that a request needs; what is the operator's alone asks for more by itself."""
    if path == "/metrics":
        return "metrics"
    return "read" if method in _SAFE_METHODS or path in _READING_POSTS else "submit"


def is_public(method: str, path: str) -> bool:
    """Whether nobody is asked for a key: probes, the page's files, which are nobody's, and signed links."""
    return method in _SAFE_METHODS and (path in _PUBLIC or path.startswith(_OPEN_FOLDERS))


def _check_scope(caller: Caller, needed: KeyScope) -> None:
    if needed not in caller.scopes:
        raise HttpProblem(FORBIDDEN, f"the key lacks the scope `{needed}`; it has {', '.join(sorted(caller.scopes))}")


async def _check_again(request: Request) -> None:
    """Raise Refused, which cuts a stream off, when its key opens nothing any more: streams last for an hour."""
    caller = caller_in(request.scope)
    if caller is None or caller.opened_by is None:
        return
    farm: Parts = request.app.state.parts
    if not await run_in_threadpool(farm.keyring.still_opens, caller.opened_by):
        raise Refused("the key was revoked, or has expired, while its stream went on")


async def _check_rate(request: Request, caller: Caller) -> None:
    farm: Parts = request.app.state.parts
    if caller.opened_by is None or not farm.keyring.is_counted(caller.opened_by):
        return
    wait_s = await run_in_threadpool(farm.keyring.use, caller.opened_by)
    if wait_s > 0:
        seconds = math.ceil(wait_s)
        detail = f"the key has used up its requests of a minute; the next comes free in {seconds} s"
        raise HttpProblem(TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(seconds)})
