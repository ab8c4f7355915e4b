"""`GET /v1/jobs/{job_id}` as it is served: what a thousand clients ask every second goes the short way.

FastAPI's way with a request costs several times the answer. The endpoint in api/one_job.py documents this one, and
answers the same where this route is left out.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from api.guard.callers import identify, job_of_path
from api.parts import Parts
from api.schemas import Job


class Polled:
    """The ASGI application behind the route."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell how far a job is; raises as `job_of_path` does."""
        request = Request(scope, receive)
        farm: Parts = scope["app"].state.parts
        job = await job_of_path(farm, await identify(request), scope["path_params"]["job_id"])
        body = Job.of(job, farm.settings.gpu_hour_price).model_dump_json().encode()
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class PolledRoute(Route):
    """A route that says of itself which it is, as FastAPI's do: requests are counted by it."""

    def __init__(self) -> None:
        super().__init__("/v1/jobs/{job_id}", Polled(), methods=["GET"], name="get_job_polled", include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as any route, and put this one into the scope."""
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self} if match is Match.FULL else child_scope
