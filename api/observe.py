"""What happens around every request: it is timed, counted and logged, and its answer gets the headers all have."""

from __future__ import annotations

import logging
import time
from typing import Final
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.guard.browsers import HEADERS
from api.metrics import HttpMetrics
from api.streaming import IS_HEAD

log = logging.getLogger("api.access")

# Of every answer that does not say otherwise. States change, and signed URLs are secrets: nobody is to keep them.
_HEADERS: Final = tuple(
    (name.lower().encode(), value.encode()) for name, value in {**HEADERS, "Cache-Control": "no-store"}.items()
)
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
# Programs ask for these again and again: as long as all is well, nobody wants a line of each.
_POLLED_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics", "/v1/jobs/{job_id}", "/stored/{key}"})
_READS: Final = frozenset({"GET", "HEAD"})
_BAD: Final = 400
_MAX_PATH_CHARS: Final = 200


class Observe:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # what an exception that passes through here becomes
        method = scope["method"]
        # A HEAD is a GET whose body the server leaves out; routes know GET only.
        inner = {**scope, "method": "GET", IS_HEAD: True} if method == "HEAD" else scope

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                headers += [each for each in _HEADERS if each[0] not in present]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(inner, receive, send_on)
        finally:
            self._note(inner, method=method, status=status, duration_s=time.perf_counter() - started)

    def _note(self, scope: Scope, *, method: str, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path_format", "other")  # a template: paths are without number
        known_method = method if method in _METHODS else "other"
        self._metrics.observe(method=known_method, route=route, status=status, duration_s=duration_s)
        level = logging.DEBUG if method in _READS and route in _POLLED_ROUTES and status < _BAD else logging.INFO
        if not log.isEnabledFor(level):
            return
        path = quote(scope["path"])[:_MAX_PATH_CHARS]
        log.log(
            level,
            "%s %s %d",
            known_method,
            path,
            status,
            extra={
                "action": "http_request",
                "method": known_method,
                "path": path,
                "route": route,
                "status": status,
                "duration_ms": round(duration_s * 1000, 1),
                "client": scope["client"][0] if scope.get("client") else None,
            },
        )
