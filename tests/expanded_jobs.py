"""Jobs as the ledger takes them, from the fields of a body: what the API does with a request, in one line of a test."""

from __future__ import annotations

import time
from typing import Any

from farm.catalog import Catalog, ModelRow
from farm.expand import ExpandedJob, expand
from farm.jobs import new_job_id
from farm.requests import JobSpec


def expanded_job(
    *,
    row: ModelRow | None = None,
    tenant: str = "default",
    created_at: float | None = None,
    afterwards: tuple[str, ...] = (),
    **fields: Any,
) -> ExpandedJob:
    """Expand a job of one prompt for the model that ships, or for `row`, with a new id.

    `fields` are its body's.
    """
    row = row or Catalog().row("scenes")
    return expand(
        JobSpec.model_validate({"model": row.name, "prompts": ["a red circle"], "seed": 1, **fields}),
        row,
        job_id=new_job_id(),
        tenant=tenant,
        created_at=time.time() if created_at is None else created_at,
        drawn_seed=0,
        max_prompts=10_000,
        max_images=10_000_000,
        afterwards=afterwards,
    )
