"""Who asks, and what of the farm is theirs: the operator, or a tenant whom a gateway in front has authenticated.

There are no keys here. Unless FARM_TRUST_TENANT_HEADER says that such a gateway is there, everybody is the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import fastapi
from fastapi import Depends, Path, Request

from api.expired import expired
from api.parts import Farm
from api.problems import FORBIDDEN, INVALID_REQUEST, JOB_EXPIRED, LEDGER_DOWN, UNKNOWN_JOB, HttpProblem
from farm.errors import Refused, UnknownJob
from farm.jobs import JOB_ID_FORM, Header
from farm.ledger import JobStatus

TENANT_NAME: Final = r"^[A-Za-z0-9._-]{1,64}$"
"""What a tenant may be called."""

_DEFAULT_TENANT: Final = "default"
_HEADER: Final = "Farm-Tenant"

TenantHeader = Annotated[
    str | None,
    fastapi.Header(
        alias=_HEADER,
        pattern=TENANT_NAME,
        description=(
            "Whose request this is, said by a gateway that has authenticated the client. Means nothing unless "
            "FARM_TRUST_TENANT_HEADER is set."
        ),
    ),
]
JobId = Annotated[str, Path(description="The `id` of a job.", examples=["job_0000z3k9v1q8m4t7x2c5"])]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose jobs a request makes, and which it sees."""

    tenant: str
    is_operator: bool

    @property
    def identity(self) -> str:
        """Whose preferences and task names a request's are."""
        return f"tenant:{self.tenant}"

    def sees(self, header: Header) -> bool:
        """Whether a job is the caller's to see and to change."""
        return self.may_see(header.tenant)

    def may_see(self, tenant: str) -> bool:
        """Whether what belongs to `tenant` is the caller's to see."""
        return self.is_operator or tenant == self.tenant


def caller_of(request: Request, farm: Farm, farm_tenant: TenantHeader = None) -> Caller:
    """Return who sends this request; raises Refused for a header that says two things."""
    # A gateway that adds its header to the client's, instead of replacing it, would let the client choose.
    if len(request.headers.getlist(_HEADER)) > 1:
        raise Refused("stands more than once; a gateway must replace what its client sent", field=_HEADER)
    if farm_tenant is None or not farm.settings.trust_tenant_header:
        return Caller(_DEFAULT_TENANT, is_operator=True)
    return Caller(farm_tenant, is_operator=False)


Asker = Annotated[Caller, Depends(caller_of)]
"""Annotation of an endpoint's parameter that is to receive who asks."""


def own_job(farm: Farm, caller: Asker, job_id: JobId) -> JobStatus:
    """Return the job that a path names; raises UnknownJob for another tenant's as for one that is not there.

    For one that has expired it raises HttpProblem, with the way to its manifest.
    """
    # What can be no job's id must never become part of a key.
    if JOB_ID_FORM.fullmatch(job_id):
        try:
            status = farm.ledger.job(job_id)
        except UnknownJob:
            if (problem := expired(farm, job_id, is_theirs=caller.may_see)) is not None:
                raise problem from None
        else:
            if caller.sees(status.header):
                return status
    raise UnknownJob(f"there is no job {job_id[:64]!r}", field="id", value=job_id)


OWN_JOB_PROBLEMS: Final = (UNKNOWN_JOB, JOB_EXPIRED, INVALID_REQUEST, LEDGER_DOWN)
"""What an endpoint may answer that asks for its OwnJob."""

OwnJob = Annotated[JobStatus, Depends(own_job)]
"""Annotation of an endpoint's parameter that is to receive the job its path names."""


def operator_only(caller: Asker) -> None:
    """Raise HttpProblem for a tenant."""
    if not caller.is_operator:
        raise HttpProblem(FORBIDDEN, f"tenants are the operator's business; this request is {caller.tenant}'s")
