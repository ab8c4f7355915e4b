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
        first_line, *_ = farm.store.read_start(manifest_key(job_id), _FIRST_LINE_BYTES).split(b"\n", 1)
        if not is_theirs(str(json.loads(first_line)["tenant"])):
            return None
    except NoSuchObject:
        return None
    except (StorageDown, Fatal, ValueError, LookupError, TypeError) as error:
        log.warning("Whether %s has expired is unknown: %s", job_id, error, extra={"action": "manifest_unread"})
        return None
    manifest = f"/v1/jobs/{job_id}/manifest"
    return HttpProblem(
        JOB_EXPIRED,
        f"{job_id} has ended, and its time in the ledger is over; what became of each image is at {manifest}",
        manifest=manifest,
    )
