"""Images as a stream of server-sent events: partial ones on the way, each whole one as soon as it is stored.

An error after the first event is the last event, in OpenAI's shape: its SDKs raise it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any, Final

import anyio
from fastapi.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from api.guard.callers import Caller
from api.openai.answers import Usage
from api.openai.errors import error_of
from api.openai.requests import ImageRequest
from api.parts import Parts
from api.problems import JOB_CANCELLED, HttpProblem, problem_of
from api.rendering import TOOK_TOO_LONG, Finished, check_rendered, opened
from api.watching.sse import HEARTBEAT, HEARTBEAT_S, EventStream, event
from farm.errors import FarmError
from farm.jobs import UnitState
from farm.ledger import ImageStatus, JobStatus
from farm.requests import JobSpec, PromptSpec
from farm.storage import object_key

_LOOK_EVERY_S: Final = 0.25  # for a partial image
_QUALITIES: Final = {"standard": "medium", "hd": "high", None: "auto"}


class Events(EventStream):
    """A stream of events whose generator is closed with it, whatever ends it: that cancels what is not finished."""

    def __init__(self, events: AsyncGenerator[bytes, None], *, headers: Mapping[str, str]) -> None:
        super().__init__(events)
        self.headers.update(headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()


async def events_of(
    farm: Parts,
    caller: Caller,
    asked: ImageRequest,
    spec: JobSpec,
    *,
    events: str,
    limit_s: float,
    idempotency_key: str | None,
) -> AsyncGenerator[bytes, None]:
    """Yield the job's id when it is open, then the events of its images; raises as `api.rendering.opened` does."""
    is_open = False
    try:
        async with opened(farm, caller, spec, idempotency_key=idempotency_key) as job:
            is_open = True
            told = _Telling(farm, job, asked, spec, events)
            await told.want_partials(for_s=limit_s)
            yield job.header.id.encode()
            async for text in told.until_settled(limit_s):
                yield text
    except (HttpProblem, FarmError) as error:
        if not is_open:
            raise
        problem = error if isinstance(error, HttpProblem) else problem_of(error)
        yield event("error", _written({"type": "error", "error": error_of(problem).model_dump()}))


class _Telling:
    """One stream: what it has told already."""

    def __init__(self, farm: Parts, job: JobStatus, asked: ImageRequest, spec: JobSpec, events: str) -> None:
        self._farm = farm
        self._job = job
        self._events = events
        self._prompt: PromptSpec = spec.prompts[0]  # type: ignore[assignment]  # job_of makes no other
        self._num_partials = asked.partial_images or 0
        self._num_shown = 0
        self._shown_step: int | None = None
        self._told: set[int] = set()
        self._common = {
            "background": "opaque",
            "quality": _QUALITIES.get(asked.quality, asked.quality),
            "size": f"{self._prompt.width}x{self._prompt.height}",
        }

    async def want_partials(self, *, for_s: float) -> None:
        """Have workers send as many previews as are asked for, evenly spread."""
        if self._num_partials:
            steps = (
                self._prompt.num_inference_steps or self._farm.catalog.row(self._job.header.model).num_inference_steps
            )
            every_steps = max(1, steps // (self._num_partials + 1))
            want = partial(self._farm.ledger.want_previews, for_s=min(for_s, 3600), every_steps=every_steps)
            await run_in_threadpool(want, self._job.header.id)

    async def until_settled(self, limit_s: float) -> AsyncGenerator[bytes, None]:
        """Yield events until all images are settled; raises HttpProblem when one fails or it takes longer."""
        following = self._farm.watcher.follow(self._job.header.id)
        pending: asyncio.Task[JobStatus | None] | None = None
        deadline_s = said_at_s = time.monotonic()
        deadline_s += limit_s
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(following, None))
                await asyncio.wait({pending}, timeout=_LOOK_EVERY_S if self._wants_partial else HEARTBEAT_S)
                told: list[bytes] = []
                if pending.done():
                    status, pending = pending.result(), None
                    if status is None:
                        return
                    told = [text async for text in self._news(status)]
                elif self._wants_partial:
                    told = await self._partial()
                for text in told:
                    yield text
                now_s = time.monotonic()
                if told:
                    said_at_s = now_s
                elif now_s - said_at_s >= HEARTBEAT_S:
                    said_at_s = now_s
                    yield HEARTBEAT
                if now_s > deadline_s:
                    raise HttpProblem(TOOK_TOO_LONG, f"not ready within {limit_s:g} s")
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)

    @property
    def _wants_partial(self) -> bool:
        return self._num_shown < self._num_partials and not self._told

    async def _news(self, status: JobStatus) -> AsyncGenerator[bytes, None]:
        """Yield what a status brings: images that are stored since the last one; raises HttpProblem for a sad end."""
        if status.counts.stored == len(self._told) and not status.state.is_final:
            return
        header = status.header
        images = await run_in_threadpool(self._farm.ledger.images, header.id, limit=header.total)
        for image in images:
            if image.state is UnitState.STORED and image.index not in self._told:
                self._told.add(image.index)
                yield await self._completed(image)
        if status.state.is_final:
            finished = Finished(status, tuple(images))
            check_rendered(finished)
            if not finished.stored:
                raise HttpProblem(JOB_CANCELLED, f"{header.id} was cancelled")

    async def _completed(self, image: ImageStatus) -> bytes:
        image_format = self._job.header.output.format
        key = object_key(self._job.header.id, image.index, image_format)
        data = await run_in_threadpool(self._farm.store.get, key)
        return self._picture("completed", data, output_format=image_format, usage=Usage().model_dump(), seed=image.seed)

    async def _partial(self) -> list[bytes]:
        """Return the event of a preview that was not sent yet, if there is one."""
        preview = await run_in_threadpool(self._farm.ledger.preview, self._job.header.id, 0)
        if preview is None or preview.jpeg is None or preview.jpeg_step == self._shown_step:
            return []
        self._shown_step = preview.jpeg_step
        self._num_shown += 1
        return [
            self._picture("partial_image", preview.jpeg, output_format="jpeg", partial_image_index=self._num_shown - 1)
        ]

    def _picture(self, kind: str, data: bytes, **members: Any) -> bytes:
        name = f"{self._events}.{kind}"
        body = {"type": name, "b64_json": base64.b64encode(data).decode(), "created_at": int(time.time())}
        return event(name, _written(body | self._common | members))


def _written(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))
