"""From what a client asks for to a job that the ledger can take: unfolded, resolved, checked. Writes nothing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from api.batches.unfolding import Unfolded, unfold
from api.batches.wildcards import Wildcards, wildcards_of
from api.guard.inputs import check_owners
from api.parts import Parts
from api.uploads import check_keys
from farm.errors import Refused
from farm.expand import expand
from farm.jobs import ExpandedJob, new_job_id
from farm.pictures import TO_COME, hosts_of, pictures_of
from farm.requests import JobSpec

GRID_CHORE: Final = "grid"
"""The chore that makes the picture of all images, when a job that asked for one has ended."""

_DRAWN_SEED_BITS: Final = 32  # what every tool around Stable Diffusion can show and take


def prepare(
    farm: Parts,
    spec: JobSpec,
    *,
    tenant: str,
    job_id: str | None = None,
    afterwards: Sequence[str] = (),
    may_name_all: bool = False,
    is_preview: bool = False,
) -> ExpandedJob:
    """Return the job that a tenant asks for, as `api.jobs.accept` would open it.

    A preview may name pictures that are to come; no job may.
    Raises Refused for what templates, matrix, catalog or limits do not allow, in the words of what was sent.
    """
    settings = farm.settings
    row = farm.catalog.row(spec.model)
    drawn_seed = secrets.randbits(_DRAWN_SEED_BITS)
    unfolded = unfold(
        spec,
        Wildcards([]) if spec.template.mode == "off" else wildcards_of(settings.wildcards_dir),
        drawn_seed=drawn_seed,
        max_prompts=settings.max_prompts,
        max_chars=settings.max_body_bytes,
    )
    with _in_words_of(unfolded):
        job = expand(
            unfolded.spec,
            row,
            job_id=job_id or new_job_id(),
            tenant=tenant,
            created_at=time.time(),
            drawn_seed=drawn_seed,
            max_prompts=settings.max_prompts,
            max_images=settings.max_images,
            controlnets=farm.catalog.controlnets_for(row),
            input_hosts=hosts_of(settings.input_hosts),
            afterwards=(*([GRID_CHORE] if spec.grid else []), *afterwards),
            grid=unfolded.grid,
        )
    pictures = [(field, source) for field, source in pictures_of(spec) if not (is_preview and source == TO_COME)]
    if not may_name_all:
        check_owners(farm, pictures, tenant=tenant)
    check_keys(farm, pictures)
    if spec.webhook is not None:
        farm.webhooks.check(spec.webhook.url, field="webhook.url")
    return job


@contextmanager
def _in_words_of(unfolded: Unfolded) -> Iterator[None]:
    """Let what is refused of the plain job name the field that the client wrote."""
    try:
        yield
    except Refused as error:
        error.field = unfolded.written(error.field)
        raise
