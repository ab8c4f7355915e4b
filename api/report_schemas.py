"""Answers about the farm as a whole: throughput, workers, models, health. Durations are seconds."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import when
from farm.ledger import Rate as LedgerRate
from farm.ledger import Throughput as LedgerThroughput
from farm.ledger import WorkerReport
from farm.prices import price_per_1000

WindowName = Literal["1m", "5m", "1h"]
_WINDOW_NAMES: Final[dict[int, WindowName]] = {60: "1m", 300: "5m", 3600: "1h"}


class Rate(BaseModel):
    """What was done within a window of time."""

    images: int
    images_per_s: float
    gpu_s: float = Field(description="Device time of those images.")
    gpu_s_per_image: float | None
    mean_seat_occupancy: float | None = Field(description="Seats taken per denoising step; null without a step.")
    joules_per_image: float | None = Field(
        description="What GPUs took, idle or not, per image that they made; null where no GPU tells, and by model."
    )
    price_per_1000_images: float | None = Field(
        description="Of their device time, in the currency of FARM_GPU_HOUR_PRICE; null where that is not set."
    )


class Throughput(BaseModel):
    """How fast the farm runs, over the last minute, five minutes and hour."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "throughput",
                    "total": {
                        window: {
                            "images": images,
                            "images_per_s": images_per_s,
                            "gpu_s": 0.7 * images,
                            "gpu_s_per_image": 0.7,
                            "mean_seat_occupancy": 5.4,
                            "joules_per_image": 281.0,
                            "price_per_1000_images": 0.078,
                        }
                        for window, images, images_per_s in (("1m", 84, 1.4), ("5m", 390, 1.3), ("1h", 390, 0.108))
                    },
                    "by_model": {},
                    "by_worker": {},
                    "queued_images": 120,
                    "rendering_images": 8,
                    "images_stored": {"scenes": 390},
                }
            ]
        }
    )

    object: Literal["throughput"] = "throughput"
    total: dict[WindowName, Rate] = Field(description="Of the whole farm, by window.")
    by_model: dict[str, dict[WindowName, Rate]]
    by_worker: dict[str, dict[WindowName, Rate]] = Field(description="By worker node, such as host:gpu0.")
    queued_images: int
    rendering_images: int
    images_stored: dict[str, int] = Field(description="Images stored since the ledger began, by model.")

    @classmethod
    def of(
        cls, report: LedgerThroughput, *, images_stored: dict[str, int], gpu_hour_price: float | None = None
    ) -> Throughput:
        """Return the ledger's report in this form, with what images cost at this price of a GPU's hour."""

        def windows(rates: tuple[LedgerRate, ...]) -> dict[WindowName, Rate]:
            return {_WINDOW_NAMES[rate.window_s]: _rate(rate, gpu_hour_price) for rate in rates}

        return cls(
            total=windows(report.total),
            by_model={name: windows(rates) for name, rates in report.by_model.items()},
            by_worker={name: windows(rates) for name, rates in report.by_worker.items()},
            queued_images=report.queued_images,
            rendering_images=report.rendering_images,
            images_stored=images_stored,
        )


def _rate(rate: LedgerRate, gpu_hour_price: float | None) -> Rate:
    return Rate(
        images=rate.images,
        images_per_s=rate.images_per_s,
        gpu_s=rate.gpu_s,
        gpu_s_per_image=rate.gpu_s_per_image,
        mean_seat_occupancy=rate.mean_seat_occupancy,
        joules_per_image=rate.joules_per_image,
        price_per_1000_images=price_per_1000(rate.gpu_s, rate.images, gpu_hour_price),
    )


class Worker(WorkerReport):
    """A worker that is alive, as its last heartbeat told. Counters run since its start."""

    # mypy: the ledger's Unix times become moments here; nobody hands a Worker to the ledger.
    started_at: datetime  # type: ignore[assignment]
    seen_at: datetime  # type: ignore[assignment]
    mean_seat_occupancy: float | None = Field(description="Seats taken per step since its start; null without one.")

    @classmethod
    def of(cls, report: WorkerReport) -> Worker:
        """Return a heartbeat in this form."""
        told: dict[str, Any] = report.model_dump()
        told["started_at"], told["seen_at"] = when(report.started_at), when(report.seen_at)
        return cls(**told, mean_seat_occupancy=report.seat_steps / report.steps if report.steps else None)


class WorkerList(BaseModel):
    """The workers that are alive."""

    object: Literal["list"] = "list"
    data: list[Worker]


class ModelDefaults(BaseModel):
    """What a job gets that names nothing."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    loras: dict[str, float] = Field(description="Weights, by name, of LoRAs that every image of this model gets.")


class Model(BaseModel):
    """A model of the catalog: OpenAI's four fields, then ours."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "scenes",
                    "object": "model",
                    "created": 1795366800,
                    "owned_by": "diffusion-farm",
                    "description": "A small Stable Diffusion of drawn scenes that ships with the farm.",
                    "family": "sd15",
                    "width": 128,
                    "height": 128,
                    "size_multiple": 8,
                    "min_size": 64,
                    "max_size": 256,
                    "max_pixels": 65536,
                    "max_steps": 1000,
                    "defaults": {
                        "width": 128,
                        "height": 128,
                        "num_inference_steps": 20,
                        "guidance_scale": 5.0,
                        "scheduler": "dpmpp_2m",
                        "loras": {},
                    },
                    "schedulers": ["euler", "dpmpp_2m"],
                    "controlnets": ["sd15-canny"],
                    "available": True,
                    "num_workers": 1,
                    "num_workers_resident": 1,
                }
            ]
        }
    )

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which this API loaded its catalog; OpenAI's clients expect one.")
    owned_by: str
    description: str
    family: str
    width: int = Field(description="Native width, pixels.")
    height: int
    size_multiple: int = Field(description="Widths and heights are multiples of this.")
    min_size: int = Field(description="Smallest width or height.")
    max_size: int = Field(description="Largest width or height.")
    max_pixels: int = Field(description="Largest width × height.")
    max_steps: int
    defaults: ModelDefaults
    schedulers: list[str] = Field(description="Names that `scheduler` takes; diffusers' and A1111's work as well.")
    controlnets: list[str] = Field(description="Names that `controlnets[].model` takes.")
    available: bool = Field(description="Whether any live worker serves it. Jobs are accepted in any case.")
    num_workers: int = Field(description="Live workers that serve it.")
    num_workers_resident: int = Field(description="Live workers that hold it on their device now.")


class ModelList(BaseModel):
    """OpenAI's list shape."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """Whether a server that the API needs answers."""

    ok: bool
    detail: str | None = Field(None, description="What is wrong, if anything.")


class Readiness(BaseModel):
    """Everything the API needs answers."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": "ready", "checks": {"redis": {"ok": True}, "s3": {"ok": True}}}]}
    )

    status: Literal["ready"] = "ready"
    checks: dict[str, Check]
