"""How fast the farm runs, and who is at work."""

from __future__ import annotations

from fastapi import APIRouter

from api.parts import Farm
from api.problems import LEDGER_DOWN, documented
from api.report_schemas import Throughput, Worker, WorkerList

router = APIRouter(prefix="/v1", tags=["reports"])


@router.get("/throughput", response_model=Throughput, responses=documented(LEDGER_DOWN))
def get_throughput(farm: Farm) -> Throughput:
    """Tell images per second, seat occupancy, and what an image costs: of the farm, by model and by worker.

    GPU seconds, joules, and a price if an hour of a GPU has one.
    """
    return Throughput.of(
        farm.ledger.throughput(),
        images_stored=farm.ledger.images_by_model(),
        gpu_hour_price=farm.settings.gpu_hour_price,
    )


@router.get("/workers", response_model=WorkerList, responses=documented(LEDGER_DOWN))
def list_workers(farm: Farm) -> WorkerList:
    """List the workers that are alive, by name."""
    return WorkerList(data=[Worker.of(report) for report in farm.ledger.workers()])
