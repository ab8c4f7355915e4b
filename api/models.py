"""Which models the farm renders, in the shape of OpenAI's list, with what a client must know to use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Path

from api.field_errors import FieldError, echo
from api.parts import Farm, Parts
from api.problems import LEDGER_DOWN, MODEL_NOT_FOUND, HttpProblem, documented
from api.report_schemas import Model, ModelDefaults, ModelList
from farm.catalog import ModelRow
from farm.ledger import WorkerReport
from farm.schedulers import schedulers_of

router = APIRouter(prefix="/v1/models", tags=["models"])

_OWNER: Final = "diffusion-farm"


@router.get("", response_model=ModelList, responses=documented(LEDGER_DOWN))
def list_models(farm: Farm) -> ModelList:
    """List the models of the catalog."""
    workers = farm.ledger.workers()
    return ModelList(data=[_model(farm, row, workers) for row in farm.catalog])


@router.get("/{model_id}", response_model=Model, responses=documented(MODEL_NOT_FOUND, LEDGER_DOWN))
def get_model(farm: Farm, model_id: Annotated[str, Path(description="A name from the list.")]) -> Model:
    """Describe one model."""
    if model_id not in farm.catalog:
        message = "is not in the catalog"
        error = FieldError(field="model_id", value=echo(model_id), message=message, choices=farm.catalog.names)
        raise HttpProblem(MODEL_NOT_FOUND, f"{echo(model_id)!r} {message}", errors=[error])
    return _model(farm, farm.catalog.row(model_id), farm.ledger.workers())


def _model(farm: Parts, row: ModelRow, workers: Sequence[WorkerReport]) -> Model:
    serving = [worker for worker in workers if row.name in worker.models]
    return Model(
        id=row.name,
        created=int(farm.started_at),
        owned_by=_OWNER,
        description=row.description,
        family=row.family,
        width=row.width,
        height=row.height,
        size_multiple=row.size_multiple,
        min_size=row.min_size,
        max_size=row.max_size,
        max_pixels=row.max_pixels,
        max_steps=row.max_steps,
        defaults=ModelDefaults(
            width=row.width,
            height=row.height,
            num_inference_steps=row.num_inference_steps,
            guidance_scale=row.guidance_scale,
            scheduler=row.scheduler,
            loras={lora.name: lora.weight for lora in row.loras},
        ),
        schedulers=[scheduler.name for scheduler in schedulers_of(row.scheduler_group)],
        controlnets=list(farm.catalog.controlnets_for(row)),
        available=bool(serving),
        num_workers=len(serving),
        num_workers_resident=sum(row.name in worker.resident for worker in serving),
    )
