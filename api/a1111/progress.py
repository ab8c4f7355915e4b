"""How far a client's pictures are, in A1111's shape; and how it stops them. Nobody sees or stops another's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from api.a1111.bodies import Lenient, body_of, read_model
from api.a1111.clients import Calling, Client
from api.a1111.errors import CHANGING, READING, WITH_BODY, documented
from api.a1111.pictures import base64_of
from api.a1111.requests import Name, Whole
from api.parts import Farm, Parts
from farm.errors import UnknownJob
from farm.jobs import UnitState
from farm.ledger import JobStatus, Ledger, Preview

router = APIRouter(tags=["a1111"])

WATCHED_S: Final = 60.0
"""How long previews are made for after somebody has asked."""

PREVIEW_EVERY_STEPS: Final = 5
_NEARLY: Final = 0.99  # of what is not settled
_PICTURES_PER_IMAGE: Final = 100_000  # steps, more than any image has: what makes ids of previews unique


class State(BaseModel):
    """What A1111 calls the state; a batch's pictures are counted one by one."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = Field("", description="The farm's job, which GET /v1/jobs/{id} tells more of.")
    job_count: int = Field(0, description="Pictures of the current request; 0 without one.")
    job_timestamp: str = "0"
    job_no: int = Field(0, description="Of these, those that are settled.")
    sampling_step: int = Field(0, description="Of the picture that is furthest.")
    sampling_steps: int = 0


class ProgressAnswer(BaseModel):
    """How far the calling client's own pictures are."""

    progress: float = Field(description="0 to 1; never less than it was.")
    eta_relative: float = Field(description="Seconds left, at the pace so far.")
    state: State
    current_image: str | None = Field(None, description="A small JPEG of the picture that is furthest, in base64.")
    textinfo: str | None = None


class TaskQuery(Lenient):
    """Body of POST /internal/progress."""

    id_task: Name = Field("", description="The `force_task_id` of a request.")
    id_live_preview: Whole = Field(-1, description="The last preview that was received: it is not sent again.")
    live_preview: bool = Field(default=True, description="Whether previews are wanted.")


class TaskAnswer(BaseModel):
    """How far one request is."""

    active: bool
    queued: bool
    completed: bool
    paused: bool = False
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = Field(None, description="A `data:` URI.")
    id_live_preview: int = -1
    textinfo: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    job: JobStatus
    share: float
    furthest: Preview | None
    picture: Preview | None
    picture_id: int

    @property
    def num_settled(self) -> int:
        """How many of its images will not change any more."""
        counts = self.job.counts
        return counts.stored + counts.failed + counts.cancelled

    def eta_s(self, now: float) -> float:
        """Return the seconds left, if it goes on as it went since its first image was started; 0 when unknown."""
        if self.job.started_at is None or not 0 < self.share < 1:
            return 0.0
        return max(0.0, now - self.job.started_at) * (1 - self.share) / self.share


def progress_of(ledger: Ledger, job: JobStatus) -> Progress:
    """Return how far a job is, and go on asking for previews; never less than it was."""
    job_id, counts = job.header.id, job.counts
    seen: dict[int, Preview] = {}
    if not job.state.is_final:
        ledger.want_previews(job_id, for_s=WATCHED_S, every_steps=PREVIEW_EVERY_STEPS)
        seen = ledger.previews(job_id) if counts.rendering else {}
    rendered = sum(min(each.step / each.steps, 1.0) for each in seen.values() if each.steps)
    share = (counts.stored + counts.failed + counts.cancelled + rendered) / counts.total
    share = ledger.advance(job_id, share if job.state.is_final else min(share, _NEARLY))
    pictures = [(each.at, index) for index, each in seen.items() if each.jpeg is not None]
    latest = max(pictures)[1] if pictures else None
    return Progress(
        job=job,
        share=share,
        furthest=max(seen.values(), key=lambda each: each.step, default=None),
        picture=None if latest is None else seen[latest],
        picture_id=-1 if latest is None else latest * _PICTURES_PER_IMAGE + (seen[latest].jpeg_step or 0),
    )


def current_jobs(ledger: Ledger, client: Client) -> list[JobStatus]:
    """Return the jobs that a client waits for, the first one first.

    One that has none sees those of who shares its key or address and told no cookie: its own, sent another way.
    """
    for name in dict.fromkeys((client.own, client.shared)):
        jobs = []
        for job_id in ledger.tasks(name):
            try:
                job = ledger.job(job_id)
            except UnknownJob:  # it is about to be opened, or was refused
                continue
            if job.state.is_final:
                ledger.end_task(name, job_id)
            else:
                jobs.append(job)
        if jobs:
            return jobs
    return []


@router.get("/sdapi/v1/progress", responses=documented(*READING), name="a1111_progress")
def get_progress(
    farm: Farm,
    client: Calling,
    skip_current_image: Annotated[bool, Query(description="Whether `current_image` is left out.")] = False,  # noqa: FBT002
) -> ProgressAnswer:
    """Tell how far the calling client's pictures are; zeros when it waits for none.

    Each client sees its own alone, told apart as docs/a1111.md says.
    """
    jobs = current_jobs(farm.ledger, client)
    if not jobs:
        return ProgressAnswer(progress=0.0, eta_relative=0.0, state=State())
    found = progress_of(farm.ledger, jobs[0])
    header, furthest = found.job.header, found.furthest
    shows = found.picture is not None and not skip_current_image
    return ProgressAnswer(
        progress=found.share,
        eta_relative=found.eta_s(time.time()),
        state=State(
            job=header.id,
            job_count=header.total,
            job_timestamp=time.strftime("%Y%m%d%H%M%S", time.gmtime(header.created_at)),
            job_no=found.num_settled,
            sampling_step=furthest.step if furthest else 0,
            sampling_steps=furthest.steps if furthest else 0,
        ),
        current_image=base64_of(found.picture.jpeg or b"") if shows and found.picture else None,
    )


@router.post(
    "/internal/progress",
    responses=documented(*WITH_BODY, *READING),
    openapi_extra=body_of(TaskQuery),
    name="a1111_internal_progress",
)
async def get_task_progress(request: Request, farm: Farm, client: Calling) -> TaskAnswer:
    """Tell how far the request is that was sent with this `force_task_id`, by whomever of the same key or tenant."""
    asked = await read_model(request, farm, TaskQuery)
    return await run_in_threadpool(_task_progress, farm, client, asked)


def _task_progress(farm: Parts, client: Client, asked: TaskQuery) -> TaskAnswer:
    job = _job_of_task(farm.ledger, client, asked.id_task)
    if job is None:
        return TaskAnswer(active=False, queued=False, completed=False, textinfo="Waiting...")
    is_queued = not job.state.is_final and job.started_at is None
    if job.state.is_final or is_queued:
        return TaskAnswer(
            active=False, queued=is_queued, completed=job.state.is_final, textinfo="Queued..." if is_queued else None
        )
    found = progress_of(farm.ledger, job)
    answer = TaskAnswer(
        active=True,
        queued=False,
        completed=False,
        paused=job.paused,
        progress=found.share,
        eta=found.eta_s(time.time()),
        id_live_preview=asked.id_live_preview,
    )
    if asked.live_preview and found.picture is not None and found.picture_id != asked.id_live_preview:
        answer.live_preview = f"data:image/jpeg;base64,{base64_of(found.picture.jpeg or b'')}"
        answer.id_live_preview = found.picture_id
    return answer


def _job_of_task(ledger: Ledger, client: Client, task_id: str) -> JobStatus | None:
    job_id = ledger.job_of_task(client.scope, task_id) if task_id else None
    if job_id is None:
        return None
    try:
        return ledger.job(job_id)
    except UnknownJob:
        return None


@router.post("/sdapi/v1/interrupt", responses=documented(*CHANGING), name="a1111_interrupt")
def interrupt(farm: Farm, client: Calling) -> dict[str, Any]:
    """Cancel all that the calling client waits for; its requests are answered with the pictures that are stored."""
    for job in current_jobs(farm.ledger, client):
        farm.ledger.cancel(job.header.id)
    return {}


@router.post("/sdapi/v1/skip", responses=documented(*CHANGING), name="a1111_skip")
def skip(farm: Farm, client: Calling) -> None:
    """Cancel the picture that is being rendered of what the calling client waits for, or the next one."""
    for job in current_jobs(farm.ledger, client)[:1]:
        images = farm.ledger.images(job.header.id, limit=job.header.total)
        for state in (UnitState.RENDERING, UnitState.QUEUED):
            for image in images:
                if image.state is state:
                    farm.ledger.cancel_image(job.header.id, image.index)
                    return
