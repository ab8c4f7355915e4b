"""The manifest of a job over HTTP: the list of all its images, there still when the ledger has forgotten the job."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from api.guard.callers import Asker, JobId, own_job
from api.links import SignedLinks
from api.parts import Farm
from api.problems import (
    INVALID_REQUEST,
    JOB_EXPIRED,
    LEDGER_DOWN,
    MANIFEST_NOT_READY,
    UNKNOWN_JOB,
    HttpProblem,
    documented,
)
from farm.storage import manifest_key

router = APIRouter(prefix="/v1/jobs/{job_id}/manifest", tags=["jobs"])

_RETRY_AFTER_S = 2


@router.get(
    "",
    status_code=307,
    response_class=RedirectResponse,
    response_description="Go to the signed URL in `Location`: JSON Lines, the job first, then each of its images.",
    responses=documented(UNKNOWN_JOB, MANIFEST_NOT_READY, INVALID_REQUEST, LEDGER_DOWN),
)
def get_manifest(farm: Farm, links: SignedLinks, caller: Asker, job_id: JobId) -> RedirectResponse:
    """Tell where the manifest of a job is: what was asked for and what became of it, image by image.

    It is written when the job has ended, and stays when the job has expired.
    """
    try:
        status = own_job(farm, caller, job_id)
    except HttpProblem as problem:
        if problem.kind is not JOB_EXPIRED:
            raise
    else:
        if not status.state.is_final:
            counts = status.counts
            left = counts.total - counts.stored - counts.failed - counts.cancelled
            detail = f"{job_id} is {status.state}: its manifest is written when its other {left:,} images are settled"
            raise HttpProblem(MANIFEST_NOT_READY, detail)
        if status.manifest_at is None:
            detail = f"{job_id} has ended and its manifest is being written; ask again in a moment"
            raise HttpProblem(MANIFEST_NOT_READY, detail, headers={"Retry-After": str(_RETRY_AFTER_S)})
    return RedirectResponse(links.to(manifest_key(job_id)), status_code=307)
