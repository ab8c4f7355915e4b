"""Who asks, and what of the farm is theirs: the operator, or a tenant, told by a key or by a gateway in front.

With FARM_AUTH=keys every request must show an API key (keyring.py); with `open`, whoever reaches the API is the
operator. Either way FARM_TRUST_TENANT_HEADER lets the operator's requests be a tenant's: those of a gateway that has
authenticated its clients. What happens to a request that may not enter is gate.py's part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

import fastapi
from fastapi import Depends, Path, Request
from fastapi.concurrency import run_in_threadpool

from api.expired import expired
from api.guard.credentials import tokens_in
from api.guard.keyring import OpenedBy
from api.parts import DEFAULT_TENANT, Farm, Parts
from api.problems import (
    FORBIDDEN,
    INVALID_REQUEST,
    JOB_EXPIRED,
    LEDGER_DOWN,
    UNAUTHENTICATED,
    UNKNOWN_JOB,
    HttpProblem,
)
from farm.errors import Refused, UnknownJob
from farm.jobs import JOB_ID_FORM, Header
from farm.ledger import JobStatus

TENANT_NAME: Final = r"^[A-Za-z0-9._-]{1,64}$"
"""What a tenant may be called."""

Scope = Literal["read", "submit", "metrics", "operator"]
"""What a key may be good for; `submit` includes `read`, `operator` all of them."""

_IMPLIED: Final[dict[Scope, frozenset[Scope]]] = {
    "read": frozenset({"read"}),
    "submit": frozenset({"read", "submit"}),
    "metrics": frozenset({"metrics"}),
    "operator": frozenset(get_args(Scope)),
}
_HEADER: Final = "Farm-Tenant"
_CHALLENGES: Final = {"bearer": 'Bearer realm="Diffusion Farm"', "basic": 'Basic realm="Diffusion Farm"'}
# Clients of A1111 know Basic alone. Elsewhere it is taken and not asked for: browsers would open a window of their own.
_ASKED_FOR_BASIC: Final = ("/sdapi/", "/internal/")

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
    """Whose jobs a request makes, and what it may do and see."""

    tenant: str
    scopes: frozenset[Scope]
    opened_by: OpenedBy | None = None  # the key that it showed

    @property
    def is_operator(self) -> bool:
        """Whether the whole farm is the caller's to see and to change."""
        return "operator" in self.scopes

    @property
    def identity(self) -> str:
        """Whose preferences and task names a request's are, and who is told to have done something."""
        return f"tenant:{self.tenant}" if self.opened_by is None else f"key:{self.opened_by.key_id}"

    def sees(self, header: Header) -> bool:
        """Whether a job is the caller's to see and to change."""
        return self.may_see(header.tenant)

    def may_see(self, tenant: str) -> bool:
        """Whether what belongs to `tenant` is the caller's to see."""
        return self.is_operator or tenant == self.tenant


_OPERATOR: Final = Caller(DEFAULT_TENANT, _IMPLIED["operator"])
_CALLER: Final = "farm.caller"  # in a request's scope


def caller_in(scope: MutableMapping[str, Any]) -> Caller | None:
    """Return who sends the request of this scope, None as long as that has not been asked."""
    caller: Caller | None = scope.get(_CALLER)
    return caller


async def identify(request: Request) -> Caller:
    """Return who sends a request; the second time as the first.

    Raises HttpProblem (401) without a key that is good, where one is asked for; Refused for a header that says two
    things; LedgerDown.
    """
    known = caller_in(request.scope)
    if known is None:
        farm: Parts = request.app.state.parts
        caller = _OPERATOR
        if farm.settings.auth == "keys":
            tokens = tokens_in(request)
            # Mostly the key was seen seconds ago, and a thread would cost more than the answer.
            is_at_hand = all(farm.keyring.is_at_hand(token) for token in tokens)
            opened = _open(farm, tokens) if is_at_hand else await run_in_threadpool(_open, farm, tokens)
            caller = _caller_with(opened, request, has_tokens=bool(tokens))
        known = request.scope[_CALLER] = _on_behalf_of_tenant(request, farm, caller)
    return known


def scopes_of(names: Iterable[Scope]) -> frozenset[Scope]:
    """Return scopes with all that they include."""
    return frozenset[Scope]().union(*(_IMPLIED[name] for name in names))


def _open(farm: Parts, tokens: Iterable[str]) -> OpenedBy | None:
    return next((opened for token in tokens if (opened := farm.keyring.open(token))), None)


def _caller_with(opened: OpenedBy | None, request: Request, *, has_tokens: bool) -> Caller:
    if opened is not None:
        known = [scope for scope in _IMPLIED if scope in opened.scopes]  # a later release may have more
        return Caller(opened.tenant, scopes_of(known), opened)
    detail = (
        "the key is unknown, revoked or expired" if has_tokens else "send an API key as `Authorization: Bearer farm_…`"
    )
    challenge = "basic" if request.scope["path"].startswith(_ASKED_FOR_BASIC) else "bearer"
    raise HttpProblem(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": _CHALLENGES[challenge]})


def _on_behalf_of_tenant(request: Request, farm: Parts, caller: Caller) -> Caller:
    """Return the tenant that a trusted gateway names, or the caller."""
    names = request.headers.getlist(_HEADER)
    # A gateway that adds its header to the client's, instead of replacing it, would let the client choose.
    if len(names) > 1:
        raise Refused("stands more than once; a gateway must replace what its client sent", field=_HEADER)
    if names and not re.fullmatch(TENANT_NAME, names[0]):
        raise Refused("is no tenant's name", field=_HEADER, value=names[0], choices=[TENANT_NAME])
    if not names or not farm.settings.trust_tenant_header:
        return caller
    if not caller.is_operator:
        raise HttpProblem(FORBIDDEN, f"a key of {caller.tenant} cannot speak for others: leave out {_HEADER}")
    return Caller(names[0], _IMPLIED["submit"])


async def caller_of(request: Request, farm_tenant: TenantHeader = None) -> Caller:  # noqa: ARG001  for the document
    """Return who sends this request, as `identify` does."""
    return await identify(request)


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


async def job_of_path(farm: Farm, caller: Asker, job_id: JobId) -> JobStatus:
    """Return the job that a path names as `own_job` does, by a read that all who ask at one time share."""
    return await shared_job(farm, caller, job_id)


async def shared_job(farm: Parts, caller: Caller, job_id: str, *, may_be_old: bool = False) -> JobStatus:
    """Return a job as `own_job` does, by a shared read; `may_be_old` as for `Watcher.job`."""
    if JOB_ID_FORM.fullmatch(job_id):
        with suppress(UnknownJob):
            status = await farm.watcher.job(job_id, may_be_old=may_be_old)
            if caller.sees(status.header):
                return status
    return await run_in_threadpool(own_job, farm, caller, job_id)  # it has expired, or there is none


OwnJob = Annotated[JobStatus, Depends(job_of_path)]
"""Annotation of an endpoint's parameter that is to receive the job its path names."""


def operator_only(caller: Asker) -> None:
    """Raise HttpProblem for a tenant."""
    if not caller.is_operator:
        raise HttpProblem(FORBIDDEN, f"this is the operator's business; the request is {caller.tenant}'s")
