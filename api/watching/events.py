"""What happens to one job, as Server-Sent Events: the job as it changes, its images as they end, previews, the end.

Each event's id is how many ends of images have been told with it, by the ledger's log of them: a client that comes
again with the last id it had (Last-Event-ID) goes on there, with nothing missed and nothing told twice.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import fastapi
from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from api.guard.callers import OWN_JOB_PROBLEMS, OwnJob
from api.images import image_of
from api.links import Links, SignedLinks
from api.parts import Farm, Parts
from api.problems import documented
from api.watching import sse
from api.watching.sse import EventStream
from api.watching.watched import Seen, Watch, WatcherClosed
from farm.errors import LedgerDown, UnknownJob
from farm.jobs import Header, JobState
from farm.ledger import ImageChange, JobStatus, PreviewTold

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["jobs"])

_MAX_POSITION: Final = 2**53
_WANTED_S: Final = 60.0
_WANT_AGAIN_S: Final = 20.0
_OUTAGE_PAUSE_S: Final = 1.0
_MAX_TEXTS: Final = 4000  # of a job's images, for all who watch it
_FRESH_S: Final = 10.0  # that signed URLs are shared
_NEAR: Final = 32  # indices that are read with one range
_OVER: Final = "-over"

LastEventId = Annotated[
    Annotated[str, StringConstraints(pattern=rf"^[0-9]{{1,15}}({_OVER})?$")] | SkipJsonSchema[None],  # never "null"
    fastapi.Header(
        alias="Last-Event-ID",
        description="The id of the last event that was received: the stream goes on after it. Browsers send it.",
    ),
]


class EventsQuery(BaseModel):
    """What to tell of a job."""

    model_config = ConfigDict(extra="forbid")

    after: int | None = Field(
        None,
        ge=0,
        le=_MAX_POSITION,
        description="How many ends of images to leave out: 0 tells also of all that have ended already. By default only"
        " what happens from now on is told. `Last-Event-ID` has precedence.",
    )
    previews: int | None = Field(
        None, ge=1, le=1000, description="Also tell how far images in seats are, with a picture every so many steps."
    )


class Preview(BaseModel):
    """The data of a `preview` event."""

    object: Literal["preview"] = "preview"
    index: int
    step: int = Field(description="Steps made.")
    steps: int = Field(description="Steps to make.")
    url: str | None = Field(description="The picture as a `data:` URL; null when there is no newer one.")


class End(BaseModel):
    """The data of an `end` event."""

    object: Literal["end"] = "end"
    state: JobState


_DESCRIPTION: Final = """\
A stream of events. `id` is where to go on from.

- `job`: a `Job`, first as it stands, then whenever it has changed; changes within 100 ms are told as one.
- `image`: an `Image`, each one that is stored, failed, or cancelled by itself, in the order of these. What is cancelled
  with its job is not told image by image.
- `preview`: `{"object": "preview", "index", "step", "steps", "url"}`, when asked for; `url` is a `data:` URL of a small
  picture, or null.
- `outage`: the ledger does not answer. The stream goes on when it does, with a `job` event.
- `end`: `{"object": "end", "state"}`, the last one.

Comments keep the connection alive. A stream that ends without `end` is to be opened again: after an hour, or when the
API is restarted.
"""
_STREAM: Final[dict[str, Any]] = {
    "description": _DESCRIPTION,
    "content": {"text/event-stream": {"schema": sse.schema("job", "image", "preview", "outage", "end")}},
}


@router.get(
    "",
    response_class=EventStream,
    responses={
        200: _STREAM,
        204: {"description": "The last event that was received is the last there is: do not connect again."},
        **documented(*OWN_JOB_PROBLEMS),
    },
)
async def watch_job(
    farm: Farm,
    links: SignedLinks,
    job: OwnJob,
    query: Annotated[EventsQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """Watch a job: it, its images and their previews, as they change, until it has ended."""
    after = query.after
    if last_event_id is not None:
        after = int(last_event_id.removesuffix(_OVER))
        if last_event_id.endswith(_OVER) and await _is_over(farm, job, after):
            return Response(status_code=204)
    return EventStream(JobEvents(farm, links, job.header, after=after, previews=query.previews).tell())


async def _is_over(farm: Parts, job: JobStatus, after: int) -> bool:
    """Whether a job that ended once, with so many ends of images, has not been taken up again since."""
    return job.state.is_final and not await run_in_threadpool(farm.ledger.ended, job.header.id, after, 1)


class JobEvents:
    """The events of one job for one client."""

    def __init__(self, farm: Parts, links: Links, header: Header, *, after: int | None, previews: int | None) -> None:
        self._farm = farm
        self._links = links
        self._header = header
        self._after = after
        self._previews = previews
        self._want_previews_at_s = float("-inf")
        self._shown: dict[int, int | None] = {}  # step of the last picture, by index

    async def tell(self) -> AsyncIterator[bytes]:
        """Yield events until the job has ended, an hour is over, or the API stops."""
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + sse.LONGEST_S
        yield sse.OPENING
        try:
            async with self._farm.watcher.watch(self._header.id, after=self._after) as watch:
                while (left_s := until_s - now_s()) > 0:
                    await self._want_previews(now_s())
                    patience_s = min(left_s, sse.HEARTBEAT_S, _WANT_AGAIN_S)
                    seen = await sse.within(patience_s, watch.next())
                    if seen is None:
                        yield sse.HEARTBEAT
                        continue
                    async for text in self._news(watch, seen):
                        yield text
                    if seen.status is not None and seen.status.state.is_final:
                        return
        except WatcherClosed:
            yield sse.comment("the API stops; connect again")
        except UnknownJob:
            yield sse.comment("the job has expired")

    async def _news(self, watch: Watch, seen: Seen) -> AsyncIterator[bytes]:
        """Yield what is new, at once: each piece is a write of its own."""
        news = [] if seen.outage is None else [_OUTAGE]
        async for pieces in self._images(watch, seen.ended):
            if pieces is _OUTAGE:
                yield pieces
            else:
                news.append(pieces)
        if seen.previews and self._previews is not None:
            news.append(await self._pictures(seen.previews))
        if seen.status is not None:
            news.append(self._told(seen.status, watch.position))
        if text := b"".join(news):  # an empty chunk would be the last
            yield text

    def _told(self, status: JobStatus, position: int | None) -> bytes:
        """Return the event of a job, and the last one if it has ended."""
        told = sse.event("job", self._farm.job_texts.of(status), str(position))
        if not status.state.is_final:
            return told
        end = End(state=status.state).model_dump_json()
        return told + sse.event("end", end, f"{position}{_OVER}")

    async def _images(self, watch: Watch, ended: Sequence[ImageChange]) -> AsyncIterator[bytes]:
        """Yield the events of images that have ended; waits out an outage, for nothing may be left out."""
        if not ended:
            return
        is_away = False
        while True:
            try:
                texts = await _image_texts(self._farm, self._links, self._header, watch, ended)
            except LedgerDown:
                if not is_away:
                    yield _OUTAGE
                is_away = True
                await asyncio.sleep(_OUTAGE_PAUSE_S)
                self._farm.watcher.check_open()
            else:
                yield b"".join(
                    sse.event("image", text, str(change.position + 1))
                    for change, text in zip(ended, texts, strict=True)
                )
                return

    async def _want_previews(self, now_s: float) -> None:
        """Say that somebody watches, now and then."""
        if self._previews is None or now_s < self._want_previews_at_s:
            return
        self._want_previews_at_s = now_s + _WANT_AGAIN_S
        try:
            await run_in_threadpool(
                self._farm.ledger.want_previews, self._header.id, for_s=_WANTED_S, every_steps=self._previews
            )
        except LedgerDown:
            self._want_previews_at_s = now_s + _OUTAGE_PAUSE_S

    async def _pictures(self, told: Sequence[PreviewTold]) -> bytes:
        """Return the events of images in seats, each with its picture if that is a new one."""
        try:
            return await run_in_threadpool(self._read_pictures, told)
        except LedgerDown:
            return b""  # the next one shows more

    def _read_pictures(self, told: Sequence[PreviewTold]) -> bytes:
        events = []
        for each in told:
            preview = self._farm.ledger.preview(self._header.id, each.index)
            if preview is None:  # it has ended since
                self._shown.pop(each.index, None)
                continue
            url = None
            if preview.jpeg is not None and preview.jpeg_step != self._shown.get(each.index):
                self._shown[each.index] = preview.jpeg_step
                url = f"data:image/jpeg;base64,{base64.b64encode(preview.jpeg).decode()}"
            shown = Preview(index=each.index, step=preview.step, steps=preview.steps, url=url)
            events.append(sse.event("preview", shown.model_dump_json()))
        return b"".join(events)


_OUTAGE: Final = sse.event("outage", '{"object":"outage","detail":"the ledger does not answer; rendering goes on"}')


async def _image_texts(
    farm: Parts, links: Links, header: Header, watch: Watch, ended: Sequence[ImageChange]
) -> list[bytes]:
    """Return images as JSON, each made once for all who are told of it by the same links at about the same time."""
    now_s = asyncio.get_running_loop().time()
    made: dict[int, _Made] = watch.memo.setdefault(f"images {links.base}", {})
    for position in list(made):
        if len(made) <= _MAX_TEXTS and now_s - made[position].at_s < _FRESH_S:
            break
        del made[position]
    if missing := [change for change in ended if change.position not in made]:
        # A task of its own: whoever asked first may hang up, and the others wait on.
        task = asyncio.create_task(run_in_threadpool(_make_texts, farm, links, header, missing))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        made.update((change.position, _Made(now_s, task)) for change in missing)
    mine = [made[change.position] for change in ended]
    try:
        return [(await asyncio.shield(each.task))[change.index] for each, change in zip(mine, ended, strict=True)]
    except LedgerDown:
        for change, each in zip(ended, mine, strict=True):
            if made.get(change.position) is each:
                del made[change.position]
        raise


class _Made(NamedTuple):
    """Texts of images that are being made, or are there, by index."""

    at_s: float
    task: asyncio.Task[dict[int, bytes]]


def _make_texts(farm: Parts, links: Links, header: Header, changes: Sequence[ImageChange]) -> dict[int, bytes]:
    """Read images and write them as JSON, with signed URLs."""
    texts: dict[int, bytes] = {}
    wanted = {change.index for change in changes}
    for first, last in _ranges(wanted):
        for status in farm.ledger.images(header.id, offset=first, limit=last - first + 1):
            if status.index in wanted:
                texts[status.index] = image_of(links, header, status).model_dump_json().encode()
    return texts


def _ranges(indices: set[int]) -> list[tuple[int, int]]:
    """Return ranges that have all indices within them, and few others."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(indices):
        if ranges and index - ranges[-1][1] <= _NEAR:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return ranges
