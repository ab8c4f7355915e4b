"""One job that is there already: how far it is; cancelled, paused, resumed, its failed images tried again.

Verbs are paths below the job's own. `/v1/jobs/{id}:pause`, as some APIs have it, is the job called "…:pause" to every
method that it does not answer to itself: a GET would be 404 "no such job" instead of 405.
"""

from __future__ import annotations

import logging

from fastapi import APIRouter, BackgroundTasks

from api.guard.callers import OWN_JOB_PROBLEMS, OwnJob
from api.parts import Farm, Parts
from api.problems import JOB_CANCELLED, documented
from api.schemas import Job
from farm.errors import Transient
from farm.feeding import feed

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])


@router.get("", responses=documented(*OWN_JOB_PROBLEMS))
async def get_job(farm: Farm, job: OwnJob) -> Job:
    """Tell how far a job is."""
    return Job.of(job, farm.settings.gpu_hour_price)  # served by api/watching/polled.py


@router.delete(
    "",
    response_model=Job,
    response_description="The job as it stands now: cancelled, or as it had ended before.",
    responses=documented(*OWN_JOB_PROBLEMS),
)
def cancel_job(farm: Farm, job: OwnJob) -> Job:
    """Cancel a job.

    What waits vanishes at once, what is being rendered leaves its batch at the next step, what is stored stays.
    Cancelling again, or a job that has ended, changes nothing.
    """
    return Job.of(farm.ledger.cancel(job.header.id), farm.settings.gpu_hour_price)


@router.post(
    "/pause",
    response_model=Job,
    response_description="The job as it stands now: paused, or as it had ended before.",
    responses=documented(*OWN_JOB_PROBLEMS),
)
def pause_job(farm: Farm, job: OwnJob) -> Job:
    """Pause a job.

    Nothing more of it is started; what is being rendered is finished, and `state` is `rendering` until then. Pausing
    again, or a job that has ended, changes nothing.
    """
    return Job.of(farm.ledger.pause(job.header.id), farm.settings.gpu_hour_price)


@router.post(
    "/resume",
    response_model=Job,
    response_description="The job as it stands now.",
    responses=documented(*OWN_JOB_PROBLEMS),
)
def resume_job(farm: Farm, job: OwnJob, background: BackgroundTasks) -> Job:
    """Resume a paused job, in the place it had. One that is not paused stays as it is."""
    status = farm.ledger.resume(job.header.id)
    background.add_task(hint_workers, farm, job.header.model)
    return Job.of(status, farm.settings.gpu_hour_price)


@router.post(
    "/retry",
    response_model=Job,
    response_description="The job as it stands now: its failed images wait again.",
    responses=documented(JOB_CANCELLED, *OWN_JOB_PROBLEMS),
)
def retry_job(farm: Farm, job: OwnJob, background: BackgroundTasks) -> Job:
    """Try a job's failed images again, each with as many attempts as a new one.

    A job that had ended goes on. Without failed images nothing changes; a cancelled job is refused.
    """
    status = farm.ledger.retry_failed(job.header.id)
    background.add_task(hint_workers, farm, job.header.model)
    return Job.of(status, farm.settings.gpu_hour_price)


def hint_workers(farm: Parts, model: str) -> None:
    """Put what may be rendered of a model on its queue, after an answer: workers feed themselves should this fail."""
    try:
        feed(farm.ledger, farm.celery, [model])
    except Transient as error:
        log.warning("Workers were not told of new work: %s", error, extra={"action": "feed_failed", "model": model})
