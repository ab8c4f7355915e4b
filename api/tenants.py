"""Tenants over HTTP: how much of the farm each may take, and takes. For the operator; tenants are refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from api.bodies import parse_object, read_body
from api.guard.callers import TENANT_NAME, operator_only
from api.parts import Farm
from api.problems import (
    BODY_TOO_LARGE,
    FORBIDDEN,
    INVALID_REQUEST,
    LEDGER_DOWN,
    MALFORMED_JSON,
    UNSUPPORTED_MEDIA_TYPE,
    documented,
)
from farm.ledger import TenantLimits, TenantStatus

router = APIRouter(prefix="/v1/tenants", tags=["tenants"], dependencies=[Depends(operator_only)])

_PROBLEMS = (FORBIDDEN, INVALID_REQUEST, LEDGER_DOWN)
_MAX_BODY_BYTES: Final = 4096
_LIMITS_BODY: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/Limits"},
            "examples": {
                "twice": {"summary": "Twice the share of the others, no limits", "value": {"weight": 2}},
                "limited": {
                    "summary": "The usual share, at most 10,000 images waiting and 4 seats",
                    "value": {"weight": 1, "max_queued_images": 10_000, "max_running": 4},
                },
            },
        }
    },
}

TenantName = Annotated[str, Path(pattern=TENANT_NAME, description="A tenant's name.", examples=["default"])]


class Limits(BaseModel):
    """How much of the farm a tenant may take; what is left out has its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(
        1.0, ge=0.001, le=1000, allow_inf_nan=False, description="Its share of GPU time beside others that have work."
    )
    max_queued_images: int | None = Field(
        None, ge=0, le=2**53, description="Images that may wait; a job beyond is 429. Null: only the farm's own limit."
    )
    max_running: int | None = Field(
        None,
        ge=0,
        le=2**53,
        description="Images that may be handed out or have a seat at once. Null: as many as there is room for.",
    )


class Tenant(Limits):
    """A tenant: its limits, and its use of the farm."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "object": "tenant",
                    "name": "alice",
                    "weight": 2.0,
                    "max_queued_images": 10_000,
                    "max_running": None,
                    "queued_images": 380,
                    "running_images": 8,
                    "images_stored": 11_204,
                    "gpu_s": 7843.2,
                    "open_jobs": 2,
                }
            ]
        },
    )

    object: Literal["tenant"] = "tenant"
    name: str
    queued_images: int = Field(description="Images that wait, of all its jobs.")
    running_images: int = Field(description="Images that are handed out or have a seat: what `max_running` bounds.")
    images_stored: int = Field(description="Since the ledger began.")
    gpu_s: float = Field(description="Device time of those images.")
    open_jobs: int = Field(description="Jobs that are not settled.")

    @classmethod
    def of(cls, status: TenantStatus) -> Tenant:
        """Return a ledger's status in this form."""
        return cls(
            name=status.name,
            weight=status.limits.weight,
            max_queued_images=status.limits.max_queued_images,
            max_running=status.limits.max_running,
            queued_images=status.queued,
            running_images=status.running,
            images_stored=status.images,
            gpu_s=status.gpu_s,
            open_jobs=status.open_jobs,
        )


class TenantList(BaseModel):
    """The tenants that have limits of their own, or ever had a job; by name."""

    object: Literal["list"] = "list"
    data: list[Tenant]

    @classmethod
    def of(cls, statuses: Iterable[TenantStatus]) -> TenantList:
        """Return a ledger's statuses in this form."""
        return cls(data=[Tenant.of(status) for status in statuses])


class TenantCancelled(BaseModel):
    """What cancelling a tenant's work did."""

    object: Literal["tenant.cancelled"] = "tenant.cancelled"
    name: str
    cancelled_jobs: int = Field(description="Jobs that were open, and are cancelled now.")


@router.get("", response_model=TenantList, responses=documented(*_PROBLEMS))
def list_tenants(farm: Farm) -> TenantList:
    """List the tenants with their limits and their use of the farm."""
    return TenantList.of(farm.ledger.tenants())


@router.get("/{name}", response_model=Tenant, responses=documented(*_PROBLEMS))
def get_tenant(farm: Farm, name: TenantName) -> Tenant:
    """Tell a tenant's limits and its use of the farm. One that has sent nothing yet has the usual ones."""
    return Tenant.of(farm.ledger.tenant(name))


@router.put(
    "/{name}",
    response_model=Tenant,
    responses=documented(MALFORMED_JSON, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, *_PROBLEMS),
    openapi_extra={"requestBody": _LIMITS_BODY},
)
async def set_tenant(request: Request, farm: Farm, name: TenantName) -> Tenant:
    """Set a tenant's limits: all three; what the body leaves out is set to its default.

    They hold from the next hand-out and the next job on: nothing that waits or runs is taken away.
    """
    limits = parse_object(await read_body(request, max_bytes=_MAX_BODY_BYTES), Limits)
    await run_in_threadpool(farm.ledger.set_tenant, name, TenantLimits(**limits.model_dump()))
    return Tenant.of(await run_in_threadpool(farm.ledger.tenant, name))


@router.post("/{name}/cancel", response_model=TenantCancelled, responses=documented(*_PROBLEMS))
def cancel_tenant(farm: Farm, name: TenantName) -> TenantCancelled:
    """Cancel all jobs of a tenant, each as `DELETE /v1/jobs/{job_id}` does. Jobs that come later are not touched."""
    return TenantCancelled(name=name, cancelled_jobs=farm.ledger.cancel_tenant(name))
