"""Which requests are told as traces: those that bring jobs, and those whose client keeps a trace of its own.

The first are the roots of their jobs' traces. Reads of clients that keep none are not told: metrics count them.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.tracing import Span, Traces

# A list, so that what a thread notes is seen by the request that it works for.
_opened: ContextVar[list[str] | None] = ContextVar("opened", default=None)


def note_job(job_id: str) -> None:
    """Note that the request at hand has brought a job; nothing where nobody wants to know."""
    jobs = _opened.get()
    if jobs is not None:
        jobs.append(job_id)


class Tracing:
    """ASGI middleware; there only where traces are wanted."""

    def __init__(self, app: ASGIApp, *, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        opened: list[str] = []
        token = _opened.set(opened)
        started_ns, status = time.time_ns(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            _opened.reset(token)
            self._tell(scope, opened, started_ns, status)

    def _tell(self, scope: Scope, opened: list[str], started_ns: int, status: int) -> None:
        caller = Headers(scope=scope).get("traceparent", "")
        if not opened and not caller:
            return
        route = getattr(scope.get("route"), "path_format", "other")
        span = Span(
            f"{scope['method']} {route}",
            started_ns,
            time.time_ns(),
            {
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "farm.jobs": " ".join(opened),
            },
            error=f"status {status}" if status >= 500 else None,  # noqa: PLR2004  the server's own faults
        )
        for job_id in opened:
            self._traces.tell_job(job_id, span, caller=caller)
        self._traces.tell_request(span, caller=caller)
