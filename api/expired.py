"""Jobs that the ledger has forgotten: what the store still tells of them.

Nothing but the manifest is left. Its first line says whose the job was, and that is asked before anybody is told that
there ever was one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from api.parts import Parts
from api.problems import JOB_EXPIRED, HttpProblem
from farm.errors import Fatal, StorageDown
from farm.storage import NoSuchObject, manifest_key

log = logging.getLogger(__name__)

_FIRST_LINE_BYTES = 64 * 1024  # labels are the longest part of it: 10 kB


def expired(farm: Parts, job_id: str, *, is_theirs: Callable[[str], bool]) -> HttpProblem | None:
    """Return the answer about a job that has expired, None when there never was one, or none of a tenant of theirs.

    While the store is away nobody knows, and it counts as never.
    """
    try:
        tenant = tenant_of_expired(farm, job_id)
    except (StorageDown, Fatal) as error:
        log.warning("Whether %s has expired is unknown: %s", job_id, error, extra={"action": "manifest_unread"})
        return None
    if tenant is None or not is_theirs(tenant):
        return None
    manifest = f"/v1/jobs/{job_id}/manifest"
    return HttpProblem(
        JOB_EXPIRED,
        f"{job_id} has ended, and its time in the ledger is over; what became of each image is at {manifest}",
        manifest=manifest,
    )


def tenant_of_expired(farm: Parts, job_id: str) -> str | None:
    """Return whose job it was, as its manifest tells; None when there is none to tell. Raises StorageDown, Fatal."""
    try:
        first_line, *_ = farm.store.read_start(manifest_key(job_id), _FIRST_LINE_BYTES).split(b"\n", 1)
        return str(json.loads(first_line)["tenant"])
    except NoSuchObject:
        return None
    except (ValueError, LookupError, TypeError) as error:
        log.warning("The manifest of %s tells nothing: %s", job_id, error, extra={"action": "manifest_unread"})
        return None
