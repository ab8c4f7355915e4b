"""`GET /v1/jobs/{job_id}` as it is served: what a thousand clients ask every second goes the short way.

FastAPI's way with a request costs several times the answer. The endpoint in api/one_job.py documents this one, and
answers the same where this is left out, but that it waits while Redis stalls.
"""

from __future__ import annotations

from typing import Final

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from api.guard.callers import identify, shared_job
from api.one_job import router
from api.parts import Parts
from api.problems import HttpProblem, answer_to
from farm.errors import FarmError

ROUTE: Final = next(route for route in router.routes if isinstance(route, APIRoute) and route.name == "get_job")
"""The endpoint whose requests are served here."""

_CONTENT_TYPE: Final = (b"content-type", b"application/json")


class Polled:
    """ASGI middleware, the innermost: answers this one request, and lets all others through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell how far a job is."""
        is_ours = scope["type"] == "http" and scope["method"] == "GET"
        path = ROUTE.path_regex.match(scope["path"]) if is_ours else None
        if path is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = ROUTE  # requests are counted by it
        request = Request(scope)
        farm: Parts = scope["app"].state.parts
        try:
            job = await shared_job(farm, await identify(request), path["job_id"], may_be_old=True)
            body = farm.job_texts.of(job)
        except (FarmError, HttpProblem) as error:
            await answer_to(request, error)(scope, receive, send)
            return
        headers = [(b"content-length", b"%d" % len(body)), _CONTENT_TYPE]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
