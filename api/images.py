"""The images of a job over HTTP: listed, told one by one, cancelled one by one; signed URLs of what is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from api.guard.callers import OWN_JOB_PROBLEMS, OwnJob
from api.links import Links, SignedLinks
from api.parts import Farm
from api.problems import UNKNOWN_IMAGE, documented
from api.schemas import Image, ImageInFull, ImagePage
from farm.jobs import Header, UnitState
from farm.ledger import ImageStatus
from farm.recipes import job_of_picture
from farm.storage import object_key, thumbnail_key, upscaled_key

router = APIRouter(prefix="/v1/jobs/{job_id}/images", tags=["jobs"])

_MAX_OFFSET: Final = 2**53

Index = Annotated[int, Path(ge=0, le=_MAX_OFFSET, description="The image's place in the job, from 0.")]


class ImagesQuery(BaseModel):
    """Which images of a job to list."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(0, ge=0, le=_MAX_OFFSET, description="Index of the first image.")
    limit: int = Field(100, ge=1, le=1000, description="Images on a page.")


@router.get("", response_model=ImagePage, responses=documented(*OWN_JOB_PROBLEMS))
def list_images(farm: Farm, links: SignedLinks, job: OwnJob, query: Annotated[ImagesQuery, Query()]) -> ImagePage:
    """List a job's images in order, with a signed URL for each that is stored. Follow `next` until it is null."""
    header = job.header
    images = farm.ledger.images(header.id, offset=query.offset, limit=query.limit)
    end = query.offset + len(images)
    following = urlencode({"offset": end, "limit": query.limit})
    return ImagePage(
        data=[image_of(links, header, status) for status in images],
        total=header.total,
        offset=query.offset,
        limit=query.limit,
        next=f"/v1/jobs/{header.id}/images?{following}" if images and end < header.total else None,
    )


@router.get("/{index}", response_model=ImageInFull, responses=documented(UNKNOWN_IMAGE, *OWN_JOB_PROBLEMS))
def get_image(farm: Farm, links: SignedLinks, job: OwnJob, index: Index) -> ImageInFull:
    """Tell where one image of a job is, and what asks for it again."""
    header = job.header
    image = image_of(links, header, farm.ledger.image(header.id, index))
    (entry,) = farm.ledger.entries(header.id, image.prompt_index, image.prompt_index)
    # A row may have left the catalog since; a job for it would be refused in any case.
    loras = farm.catalog.row(header.model).loras if header.model in farm.catalog else ()
    again = job_of_picture(replace(entry, seed=image.seed), model=header.model, model_loras=loras)
    again |= {
        "output": header.output.model_dump(mode="json", exclude_defaults=True),
        "reproducibility": header.reproducibility.value,
    }
    name = None if image.key is None else image.key.removeprefix("jobs/").replace("/", "_")
    return ImageInFull(
        **image.model_dump(),
        download_url=None if image.key is None else links.to(image.key, save_as=name),
        again=again,
    )


@router.delete(
    "/{index}",
    response_model=Image,
    response_description="The image as it stands now: cancelled, or as it had been settled before.",
    responses=documented(UNKNOWN_IMAGE, *OWN_JOB_PROBLEMS),
)
def cancel_image(farm: Farm, links: SignedLinks, job: OwnJob, index: Index) -> Image:
    """Cancel one image of a job.

    One that waits is not started any more, one that is being rendered leaves its batch at the next step, and another
    takes its seat. One that is stored or failed stays as it is, and so does the rest of the job.
    """
    return image_of(links, job.header, farm.ledger.cancel_image(job.header.id, index))


def image_of(links: Links, header: Header, status: ImageStatus) -> Image:
    """Return an image of a job in the form that is told, with signed URLs of what is stored of it."""
    if status.state is not UnitState.STORED:
        return Image.of(status)
    signed, job_id, index, output = links.to, header.id, status.index, header.output
    key = object_key(job_id, index, output.format)
    thumbnail = None if output.thumbnail_px is None else thumbnail_key(job_id, index)
    upscaled = None if output.upscale is None else upscaled_key(job_id, index, output.format, output.upscale)
    return Image.of(
        status,
        key=key,
        url=signed(key),
        thumbnail_url=None if thumbnail is None else signed(thumbnail),
        upscaled_url=None if upscaled is None else signed(upscaled),
    )
