"""What becomes of a job that has ended: its manifest is written, and some time later the ledger forgets it.

Each is a chore (api/chores.py). The ledger sees to the order: a job expires only when its manifest is in the store.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from api.parts import Parts
from farm.errors import Transient, UnknownJob
from farm.manifests import write_manifest

if TYPE_CHECKING:
    from farm.ledger.records import Chore

log = logging.getLogger(__name__)


class NotSettled(Transient):
    """Something of the job is still under way."""


def keep_manifest(farm: Parts, chore: Chore) -> None:
    """Write the job's manifest, unless it goes on by now: then there will be another chore when it ends again."""
    try:
        is_written = write_manifest(farm.ledger, farm.store, chore.job)
    except UnknownJob:
        return
    if is_written and farm.ledger.manifest_written(chore.job):
        log.info("Wrote the manifest of %s", chore.job, extra={"action": "manifest_written", "job": chore.job})


def expire(farm: Parts, chore: Chore) -> None:
    """Let the ledger forget the job; raises NotSettled while it cannot."""
    if farm.ledger.expire_job(chore.job):
        log.info("%s has expired", chore.job, extra={"action": "job_expired", "job": chore.job})
        return
    try:
        status = farm.ledger.job(chore.job)
    except UnknownJob:
        return  # gone already
    if status.state.is_final:
        raise NotSettled(f"{chore.job} cannot expire yet: a seat or its manifest is not finished")
