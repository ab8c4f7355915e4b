"""`POST /v1/jobs:preview`: what would become of a job, were it sent; and the wildcards that its templates may name."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from api.batches.cells import JOB_PARAMETERS
from api.batches.estimates import Estimate, estimate
from api.batches.forms import Sent, job_asked, read_sent
from api.batches.places import told_by
from api.batches.preparing import prepare
from api.batches.wildcards import wildcards_of
from api.guard.callers import Asker, Caller
from api.job_examples import JOB_SPEC_BODY
from api.parts import Farm, Parts
from api.problems import JOB_SPEC_PROBLEMS, documented
from farm.jobs import Entry, ExpandedJob
from farm.prices import price_of

router = APIRouter(prefix="/v1", tags=["jobs"])

_MAX_SHOWN: Final = 20
_MAX_SHOWN_LINES: Final = 5


class PreviewedLora(BaseModel):
    """A LoRA that would act on a prompt's images, its weights added up."""

    name: str
    weight: float


class PreviewedPrompt(BaseModel):
    """A prompt with every parameter resolved: what its images would be made of."""

    prompt: str = Field(description="Its template settled, its LoRA tags taken out.")
    negative_prompt: str
    num_images: int = Field(description="Images of it; image i has `seed + i`.")
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    strength: float = Field(description="How much of the picture that it starts from gives way; 1 without one.")
    loras: list[PreviewedLora]

    @classmethod
    def of(cls, entry: Entry) -> PreviewedPrompt:
        """Return a prompt in this form."""
        names = [name for name in cls.model_fields if name != "loras"]
        return cls(
            **{name: getattr(entry, name) for name in names},
            loras=[PreviewedLora(**lora._asdict()) for lora in entry.loras],
        )


class Cost(BaseModel):
    """What it would take, guessed from what was measured; null where nothing of the kind was."""

    megapixel_steps: float = Field(description="Pixels x steps / 1,000,000 of all images, twice where guided.")
    gpu_s: float | None = Field(description="GPU seconds, by those of the model's latest jobs.")
    gpu_s_per_image: float | None
    price: float | None = Field(description="Of these, if FARM_GPU_HOUR_PRICE is set; in its currency.")


class JobPreview(BaseModel):
    """A job that is not sent yet."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "preview",
                    "model": "scenes",
                    "num_prompts": 2,
                    "num_images": 8,
                    "prompts": [
                        {
                            "prompt": "a red star",
                            "negative_prompt": "",
                            "num_images": 4,
                            "seed": 7,
                            "num_inference_steps": 20,
                            "guidance_scale": 5.0,
                            "scheduler": "dpmpp_2m",
                            "width": 128,
                            "height": 128,
                            "strength": 1.0,
                            "loras": [],
                        }
                    ],
                    "cost": {"megapixel_steps": 5.2, "gpu_s": 5.8, "gpu_s_per_image": 0.72, "price": 0.0008},
                    "images_ahead": 120,
                    "workers": 1,
                    "eta_s": 91.4,
                }
            ]
        }
    )

    object: Literal["preview"] = "preview"
    model: str
    num_prompts: int = Field(description="Prompts, templates and matrix unfolded.")
    num_images: int
    prompts: list[PreviewedPrompt] = Field(description=f"The first {_MAX_SHOWN}.")
    cost: Cost
    images_ahead: int = Field(description="That wait now, at the job's priority or a higher one.")
    workers: int = Field(description="Alive, that may serve the model.")
    eta_s: float | None = Field(description="Until its last image, if it was sent now; null where nothing is known.")

    @classmethod
    def of(cls, job: ExpandedJob, guess: Estimate, gpu_hour_price: float | None) -> JobPreview:
        """Return a job and the guess about it in this form."""
        total, gpu_s = job.header.total, guess.gpu_s
        return cls(
            model=job.header.model,
            num_prompts=len(job.entries),
            num_images=total,
            prompts=[PreviewedPrompt.of(entry) for entry in job.entries[:_MAX_SHOWN]],
            cost=Cost(
                megapixel_steps=guess.megapixel_steps,
                gpu_s=gpu_s,
                gpu_s_per_image=None if gpu_s is None else gpu_s / total,
                price=None if gpu_s is None else price_of(gpu_s, gpu_hour_price),
            ),
            images_ahead=guess.images_ahead,
            workers=guess.workers,
            eta_s=guess.eta_s,
        )


class WildcardFile(BaseModel):
    """A wildcard: `__name__` in a template stands for one of its lines."""

    name: str
    num_lines: int
    first_lines: list[str] = Field(description=f"The first {_MAX_SHOWN_LINES}.")


class WildcardList(BaseModel):
    """All wildcards, by name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"data": [{"name": "weather", "num_lines": 24, "first_lines": ["after the rain", "in thick fog"]}]}
            ]
        }
    )

    data: list[WildcardFile]


@router.post(
    "/jobs:preview",
    response_model=JobPreview,
    response_description="What would become of it. Nothing was written.",
    responses=documented(*JOB_SPEC_PROBLEMS),
    openapi_extra={"requestBody": JOB_SPEC_BODY, "parameters": JOB_PARAMETERS},
)
async def preview_job(request: Request, farm: Farm, caller: Asker) -> JobPreview:
    """Tell how many images a job would have, the first of its prompts, what it would cost and when it would be done.

    Takes what `POST /v1/jobs` takes and refuses what that refuses, but writes nothing. Seeds that the job does not name
    are drawn anew each time. `uploads/to-come` stands for a picture that will be uploaded before the job is sent.
    """
    sent = await read_sent(request, max_bytes=farm.settings.max_body_bytes)
    return await run_in_threadpool(_preview, farm, caller, sent)


def _preview(farm: Parts, caller: Caller, sent: Sent) -> JobPreview:
    spec, places = job_asked(sent, max_prompts=farm.settings.max_prompts)
    with told_by(places):
        job = prepare(farm, spec, tenant=caller.tenant, may_name_all=caller.is_operator, is_preview=True)
    return JobPreview.of(job, estimate(farm.ledger, job), farm.settings.gpu_hour_price)


@router.get("/wildcards", response_model=WildcardList)
def list_wildcards(farm: Farm) -> WildcardList:
    """List what `__name__` in a template may name: the wildcards that ship, and those in FARM_WILDCARDS_DIR."""
    wildcards = wildcards_of(farm.settings.wildcards_dir)
    found = []
    for name in wildcards.names:
        lines = wildcards.lines_if_readable(name)
        found.append(WildcardFile(name=name, num_lines=len(lines), first_lines=list(lines[:_MAX_SHOWN_LINES])))
    return WildcardList(data=found)
