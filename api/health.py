"""Whether this process lives, and whether it can do its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from anyio import to_thread
from fastapi import APIRouter

from api.parts import Farm
from api.problems import NOT_READY, HttpProblem, documented
from api.report_schemas import Check, Health, Readiness
from farm.errors import FarmError

router = APIRouter(tags=["health"])

_PATIENCE_S: Final = 3.0
_RETRY_AFTER_S: Final = 5


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """Answer: the process is alive. Asks nobody else, so an outage of Redis gets no API restarted."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses=documented(NOT_READY))
async def readyz(farm: Farm) -> Readiness:
    """Tell whether Redis and S3 answer, each within three seconds. A missing bucket is created."""
    checks: dict[str, Check] = {}
    # Probes have a few threads of their own: a server that hangs must not use up those of the other requests.
    limiter = farm.probes

    async def run(name: str, probe: Callable[[], None]) -> None:
        try:
            with anyio.fail_after(_PATIENCE_S):
                await to_thread.run_sync(probe, abandon_on_cancel=True, limiter=limiter)
        except TimeoutError:
            checks[name] = Check(ok=False, detail=f"no answer within {_PATIENCE_S:.0f} s")
        except FarmError as error:
            checks[name] = Check(ok=False, detail=str(error))
        else:
            checks[name] = Check(ok=True)

    async with anyio.create_task_group() as group:
        group.start_soon(run, "redis", farm.ledger.ping)
        group.start_soon(run, "s3", farm.store.ensure_bucket)
    checks = dict(sorted(checks.items()))
    down = [name for name, check in checks.items() if not check.ok]
    if down:
        raise HttpProblem(
            NOT_READY,
            "; ".join(f"{name}: {checks[name].detail}" for name in down),
            headers={"Retry-After": str(_RETRY_AFTER_S)},
            checks={name: check.model_dump() for name, check in checks.items()},
        )
    return Readiness(checks=checks)
