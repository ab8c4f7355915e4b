"""Answers about jobs and images, as OpenAPI shows them. Times are RFC 3339 in UTC, durations are seconds.

What clients send is farm.requests.JobSpec; how it stands is told by the ledger's records. This file only gives them
their form.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm.jobs import Counts, Header, JobState, UnitState
from farm.ledger import ImageStatus, JobStatus
from farm.prices import price_of, price_per_1000
from farm.requests import Output, Priority, Reproducibility

_JOB_ID: Final = "job_0000z3k9v1q8m4t7x2c5"
_WHEN: Final = "2026-11-22T17:00:00Z"


def when(unix_s: float) -> datetime:
    """Return a moment given as Unix time."""
    return datetime.fromtimestamp(unix_s, UTC)


def when_if(unix_s: float | None) -> datetime | None:
    """Return a moment given as Unix time, if any."""
    return None if unix_s is None else when(unix_s)


class JobLinks(BaseModel):
    """Where to go from a job; paths on this server."""

    self: str
    images: str
    manifest: str = Field(description="There when the job has ended.")
    grid: str | None = Field(None, description="Of one labelled picture of all images, if it was asked for; likewise.")

    @classmethod
    def of(cls, header: Header) -> JobLinks:
        """Return the links of a job."""
        path = f"/v1/jobs/{header.id}"
        grid = None if header.grid is None else f"{path}/grid"
        return cls(self=path, images=f"{path}/images", manifest=f"{path}/manifest", grid=grid)


class ImageCounts(BaseModel):
    """Images of a job by state; they always sum to `total`."""

    total: int
    queued: int
    rendering: int
    stored: int
    failed: int
    cancelled: int

    @classmethod
    def of(cls, counts: Counts) -> ImageCounts:
        """Return the ledger's counts in this form."""
        return cls(
            total=counts.total,
            queued=counts.queued,
            rendering=counts.rendering,
            stored=counts.stored,
            failed=counts.failed,
            cancelled=counts.cancelled,
        )


class Job(BaseModel):
    """A job as it stands."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _JOB_ID,
                    "object": "job",
                    "tenant": "default",
                    "model": "scenes",
                    "state": "rendering",
                    "paused": False,
                    "total": 8,
                    "counts": {"total": 8, "queued": 2, "rendering": 2, "stored": 4, "failed": 0, "cancelled": 0},
                    "num_prompts": 2,
                    "priority": "normal",
                    "reproducibility": "fast",
                    "output": {"format": "png", "quality": 90},
                    "labels": {"shoot": "spring"},
                    "created_at": _WHEN,
                    "started_at": "2026-11-22T17:00:00.120Z",
                    "finished_at": None,
                    "eta_s": 3.1,
                    "images_per_s": 1.3,
                    "gpu_s": 2.9,
                    "gpu_s_per_image": 0.725,
                    "price": 0.0003,
                    "price_per_1000_images": 0.081,
                    "retries": 0,
                    "reused": 0,
                    "links": {
                        "self": f"/v1/jobs/{_JOB_ID}",
                        "images": f"/v1/jobs/{_JOB_ID}/images",
                        "manifest": f"/v1/jobs/{_JOB_ID}/manifest",
                        "grid": None,
                    },
                }
            ]
        }
    )

    id: str
    object: Literal["job"] = "job"
    tenant: str = Field(description="Whose it is.")
    model: str
    state: JobState = Field(
        description=(
            "`queued`: no image has been started. `rendering`: some has, some is not settled. `paused`: nothing of "
            "it is rendered, until it is resumed. `done`: every image is stored, or cancelled singly. `failed`: every "
            "image is settled and at least one failed. `cancelled`: cancelled before that."
        )
    )
    paused: bool = Field(description="Whether it was paused; what is being rendered then is still finished.")
    total: int = Field(description="Images of the job.")
    counts: ImageCounts
    num_prompts: int = Field(description="Distinct prompts of the job.")
    priority: Priority
    reproducibility: Reproducibility
    output: Output
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None = Field(description="When a worker took its first image.")
    finished_at: datetime | None = Field(description="When its last image was settled, or it was cancelled.")
    eta_s: float | None = Field(description="Seconds until its last image; 0 when settled, null when unknown.")
    images_per_s: float | None = Field(description="Over its run so far; null before its first image.")
    gpu_s: float = Field(description="Device time of its stored images, summed.")
    gpu_s_per_image: float | None = Field(description="Null before its first image.")
    price: float | None = Field(
        description="Of its device time so far, in the currency of FARM_GPU_HOUR_PRICE; null where that is not set."
    )
    price_per_1000_images: float | None = Field(description="At this job's pace; null without a price or an image.")
    retries: int = Field(description="Hand-outs beyond the first, over all images.")
    reused: int = Field(description="Images that were not rendered but found in storage, as `reuse` allows.")
    links: JobLinks

    @classmethod
    def of(cls, status: JobStatus, gpu_hour_price: float | None = None) -> Job:
        """Return a ledger's status in this form, with what it costs at this price of a GPU's hour."""
        header, counts = status.header, status.counts
        return cls(
            id=header.id,
            tenant=header.tenant,
            model=header.model,
            state=status.state,
            paused=status.paused,
            total=header.total,
            counts=ImageCounts.of(counts),
            num_prompts=header.num_entries,
            priority=header.priority,
            reproducibility=header.reproducibility,
            output=header.output,
            labels=header.labels,
            created_at=when(header.created_at),
            started_at=when_if(status.started_at),
            finished_at=when_if(status.finished_at),
            eta_s=status.eta_s,
            images_per_s=status.images_per_s,
            gpu_s=status.gpu_s,
            gpu_s_per_image=status.gpu_s / counts.stored if counts.stored else None,
            price=price_of(status.gpu_s, gpu_hour_price),
            price_per_1000_images=price_per_1000(status.gpu_s, counts.stored, gpu_hour_price),
            retries=status.retries,
            reused=status.reused,
            links=JobLinks.of(header),
        )


class JobList(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool = Field(description="Whether older jobs remain to be looked at.")
    next: str | None = Field(description="Path of the next page; null on the last.")


class Image(BaseModel):
    """One image of a job as it stands."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "image",
                    "index": 3,
                    "prompt_index": 0,
                    "prompt": "a red circle above a blue square",
                    "seed": 10,
                    "state": "stored",
                    "attempts": 1,
                    "key": f"jobs/{_JOB_ID}/00000003.png",
                    "url": f"http://localhost:8080/stored/jobs/{_JOB_ID}/00000003.png?X-Amz-Signature=…",
                    "thumbnail_url": None,
                    "upscaled_url": None,
                    "stored_at": _WHEN,
                    "render_s": 1.42,
                    "gpu_s": 0.71,
                    "worker": "host:gpu0",
                    "error": None,
                    "history": [],
                }
            ]
        }
    )

    object: Literal["image"] = "image"
    index: int = Field(description="Its place in the job, from 0: all images of prompt 0, then of prompt 1, …")
    prompt_index: int = Field(description="Its prompt's place in `prompts`, from 0.")
    prompt: str
    seed: int
    state: UnitState
    attempts: int = Field(description="How often it was handed to a worker.")
    key: str | None = Field(description="Its object key in the bucket, once stored.")
    url: str | None = Field(description="A signed GET URL, once stored: needs no key, ends after FARM_URL_EXPIRY_S.")
    thumbnail_url: str | None = Field(
        description="Likewise of its thumbnail, where `output.thumbnail_px` asked for it."
    )
    upscaled_url: str | None = Field(
        description="Likewise of its enlarged version, where `output.upscale` asked for it."
    )
    stored_at: datetime | None
    render_s: float | None = Field(description="From taking its seat in the batch to its pixels.")
    gpu_s: float | None = Field(description="Its share of device time.")
    worker: str | None = Field(description="The node that made it, such as host:gpu0.")
    error: str | None = Field(description="Why it was given up, if it was.")
    history: list[str] = Field(description="Reasons of its lost or failed attempts, oldest first.")

    @classmethod
    def of(
        cls,
        status: ImageStatus,
        *,
        key: str | None = None,
        url: str | None = None,
        thumbnail_url: str | None = None,
        upscaled_url: str | None = None,
    ) -> Image:
        """Return a ledger's status in this form; without `key`, of an image that is not stored."""
        return cls(
            index=status.index,
            prompt_index=status.prompt_index,
            prompt=status.prompt,
            seed=status.seed,
            state=status.state,
            attempts=status.attempts,
            key=key,
            url=url,
            thumbnail_url=thumbnail_url,
            upscaled_url=upscaled_url,
            stored_at=when_if(status.stored_at),
            render_s=status.render_s,
            gpu_s=status.gpu_s,
            worker=status.worker,
            error=status.error,
            history=list(status.history),
        )


class ImageInFull(Image):
    """One image with what it takes to save it, and to ask for it again."""

    download_url: str | None = Field(description="As `url`, but browsers save it, under a name of its own.")
    again: dict[str, Any] = Field(
        description=(
            "The body of `POST /v1/jobs` that asks for this image again, every parameter as it was resolved; "
            "`output` and `reproducibility` are the job's."
        ),
        examples=[{"model": "scenes", "prompts": ["a red circle above a blue square"], "seed": 10}],
    )


class ImagePage(BaseModel):
    """Images of a job in order."""

    object: Literal["list"] = "list"
    data: list[Image]
    total: int = Field(description="Images of the job.")
    offset: int
    limit: int
    next: str | None = Field(description="Path of the next page; null on the last.")
