"""Whose the pictures are that jobs start from: those of each tenant lie apart, and no job may name another tenant's.

A key alone must not open a picture: keys stand in the recipes of images that people hand on. Whether anything lies
under one is for api/uploads.py to look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from api.expired import tenant_of_expired
from api.parts import DEFAULT_TENANT, Parts
from farm.errors import Refused
from farm.jobs import JOB_ID_FORM
from farm.pictures import is_url
from farm.storage import ImageFormat, upload_key, uploader_of

NOTHING_THERE: Final = "nothing lies under this key; POST /v1/uploads answers with one"

_MAX_EXPIRED: Final = 64  # jobs of one request whose manifests are read while its client waits


def key_of_picture(data: bytes, image_format: ImageFormat, *, tenant: str) -> str:
    """Return where a tenant's picture lies; the same bytes of the same tenant lie there already."""
    owner = None if tenant == DEFAULT_TENANT else tenant
    return upload_key(hashlib.sha256(data).hexdigest(), image_format, owner=owner)


def check_owners(farm: Parts, pictures: Iterable[tuple[str, str]], *, tenant: str) -> None:
    """Raise Refused, as for a key under which nothing lies, when one of a job's pictures is not its tenant's.

    Pictures are (field, source) each. Raises LedgerDown and StorageDown: whose a picture is must be known.
    """
    fields_of_jobs: dict[str, tuple[str, str]] = {}
    for field, source in pictures:
        if is_url(source):
            continue
        folder, _, rest = source.partition("/")
        if folder == "jobs":
            fields_of_jobs.setdefault(rest.partition("/")[0], (field, source))
        elif (uploader_of(source) or DEFAULT_TENANT) != tenant:
            raise Refused(NOTHING_THERE, field=field, value=source)
    owners = farm.ledger.tenants_of([job for job in fields_of_jobs if JOB_ID_FORM.fullmatch(job)])
    expired = [job for job in fields_of_jobs if job in owners and owners[job] is None]
    if len(expired) > _MAX_EXPIRED:
        field, source = fields_of_jobs[expired[_MAX_EXPIRED]]
        raise Refused(
            f"a job may start from images of at most {_MAX_EXPIRED} jobs that have expired", field=field, value=source
        )
    owners |= {job: tenant_of_expired(farm, job) for job in expired}
    for job, (field, source) in fields_of_jobs.items():
        if owners.get(job) != tenant:
            raise Refused(NOTHING_THERE, field=field, value=source)
