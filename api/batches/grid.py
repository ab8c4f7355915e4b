"""The picture of all images of a job: made when the job has ended, kept beside its images, told where it is.

What stands where is said in api.batches.grid_image. Making it is a chore (api/chores.py) that the job brings along.
"""

from __future__ import annotations

import io
import logging
import math
from typing import TYPE_CHECKING, Annotated, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, RedirectResponse
from PIL import Image
from pydantic import BaseModel, Field

from api.batches.grid_image import Dimension, Geometry, Layout, Shown, compose, geometry_of
from api.guard.callers import Asker, JobId, own_job
from api.links import SignedLinks
from api.parts import Farm, Parts
from api.problems import (
    GRID_NOT_READY,
    INVALID_REQUEST,
    JOB_EXPIRED,
    LEDGER_DOWN,
    NO_GRID,
    STORAGE_DOWN,
    UNKNOWN_JOB,
    HttpProblem,
    documented,
)
from farm.errors import Refused, UnknownJob
from farm.jobs import Entry, Header, UnitState
from farm.pictures import read_picture
from farm.storage import CONTENT_TYPES, ImageFormat, NoSuchObject, grid_key, object_key, thumbnail_key

if TYPE_CHECKING:
    from farm.ledger import ImageStatus
    from farm.ledger.records import Chore

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs/{job_id}/grid", tags=["jobs"])

_FORMATS: Final[tuple[ImageFormat, ...]] = ("png", "webp")
_RETRY_AFTER_S: Final = 2
_MAX_PNG_IMAGES: Final = 64  # a larger one is WebP, a tenth of the bytes
_MAX_PIXELS: Final = 16_384 * 16_384  # of an image; the farm made it
_WEBP_QUALITY: Final = 90


class GridLink(BaseModel):
    """Where the labelled picture of a job's images is."""

    object: Literal["grid"] = "grid"
    url: str = Field(description="Signed, for FARM_URL_EXPIRY_S seconds.")


@router.get(
    "",
    status_code=307,
    response_model=None,
    response_class=RedirectResponse,
    response_description="Go to the signed URL in `Location`: a PNG, or a WebP where there are many images.",
    responses={
        200: {"model": GridLink, "description": "The same URL, where `redirect` is false."},
        **documented(UNKNOWN_JOB, NO_GRID, JOB_EXPIRED, GRID_NOT_READY, INVALID_REQUEST, LEDGER_DOWN, STORAGE_DOWN),
    },
)
def get_grid(
    farm: Farm,
    links: SignedLinks,
    caller: Asker,
    job_id: JobId,
    *,
    redirect: Annotated[bool, Query(description="false: tell the URL instead, as pages need it.")] = True,
) -> RedirectResponse | JSONResponse:
    """Tell where the labelled picture of all images of a job is, which was sent with `grid: true`.

    It is made when the job has ended, and stays when the job has expired.
    """
    try:
        status = own_job(farm, caller, job_id)
    except HttpProblem as problem:
        if problem.kind is not JOB_EXPIRED:
            raise
        found = next((each for each in _FORMATS if farm.store.exists(grid_key(job_id, each))), None)
        if found is None:
            raise
        return _told(links.to(grid_key(job_id, found)), redirect=redirect)
    header = status.header
    if header.grid is None:
        raise HttpProblem(NO_GRID, f"{job_id} was sent without `grid: true`")
    if not status.state.is_final:
        raise HttpProblem(GRID_NOT_READY, f"{job_id} is {status.state}: its grid is made when all images are settled")
    key = grid_key(job_id, _format_of(header))
    if not farm.store.exists(key):
        detail = f"{job_id} has ended and its grid is being made; ask again in a moment"
        raise HttpProblem(GRID_NOT_READY, detail, headers={"Retry-After": str(_RETRY_AFTER_S)})
    return _told(links.to(key), redirect=redirect)


def _told(url: str, *, redirect: bool) -> RedirectResponse | JSONResponse:
    return RedirectResponse(url, status_code=307) if redirect else JSONResponse(GridLink(url=url).model_dump())


def keep_grid(farm: Parts, chore: Chore) -> None:
    """Make the picture of a job's images and keep it, unless the job goes on by now: then there will be another chore.

    Raises StorageDown and LedgerDown.
    """
    try:
        status = farm.ledger.job(chore.job)
        if status.header.grid is None or not status.state.is_final:
            return
        sheet = _picture_of(farm, status.header)
    except UnknownJob:
        return
    image_format = _format_of(status.header)
    data = io.BytesIO()
    sheet.save(data, image_format, **({"quality": _WEBP_QUALITY} if image_format == "webp" else {"optimize": False}))
    farm.store.put(grid_key(chore.job, image_format), data.getvalue(), CONTENT_TYPES[image_format])
    extra = {"action": "grid_made", "job": chore.job, "bytes": data.tell()}
    log.info("Made the grid of %s: %dx%d", chore.job, *sheet.size, extra=extra)


def _format_of(header: Header) -> ImageFormat:
    return "png" if header.total <= _MAX_PNG_IMAGES else "webp"


def _picture_of(farm: Parts, header: Header) -> Image.Image:
    images = farm.ledger.images(header.id, offset=0, limit=header.total)
    entries = farm.ledger.entries(header.id, 0, header.num_entries - 1)
    dimensions = _dimensions(header, entries)
    sizes = [(each.width, each.height) if each.hires is None else each.hires[:2] for each in entries]
    largest = (max(width for width, _ in sizes), max(height for _, height in sizes))
    title = header.model if len(dimensions[-1].labels) > 1 else entries[0].prompt
    subtitle = _subtitle(header, entries)
    geometry = geometry_of(Layout.of(dimensions), largest=largest, has_subtitle=True)
    return compose(
        geometry,
        lambda index: _shown(farm, header, images[index], sizes[images[index].prompt_index], geometry),
        title=title,
        subtitle=subtitle,
    )


def _dimensions(header: Header, entries: list[Entry]) -> list[Dimension]:
    """Return what varies over a job, first what should stand along the edges: the matrix, seeds, prompts."""
    axes = header.grid or ()
    num_images = header.runs[0].num_images
    cells = math.prod(len(axis.labels) for axis in axes)
    dimensions = []
    stride = num_images * cells
    for axis in axes:
        stride //= len(axis.labels)
        dimensions.append(Dimension(axis.name, axis.labels, stride))
    seeds = tuple(str(entries[0].seed + number) for number in range(num_images))
    is_same = len({entry.seed for entry in entries}) == 1
    names = seeds if is_same else tuple(f"+{number}" for number in range(num_images))
    dimensions.append(Dimension("seed", names, 1))
    prompts = tuple(entry.prompt for entry in entries[::cells])
    dimensions.append(Dimension("prompt", prompts, num_images * cells))
    return dimensions


def _subtitle(header: Header, entries: list[Entry]) -> str:
    """Tell what all images have in common."""
    first, varying = entries[0], {axis.name for axis in header.grid or ()}
    told = {
        "width": f"{first.width} x {first.height}" if "height" not in varying else "",
        "num_inference_steps": f"{first.num_inference_steps} steps",
        "guidance_scale": f"guidance {first.guidance_scale:g}",
        "scheduler": first.scheduler,
    }
    same = [
        text
        for name, text in told.items()
        if text and name not in varying and len({getattr(entry, name) for entry in entries}) == 1
    ]
    return "  ·  ".join([header.model, *same, f"{header.total} image{'s' * (header.total > 1)}"])


def _shown(farm: Parts, header: Header, image: ImageStatus, size: tuple[int, int], geometry: Geometry) -> Shown | str:
    """Return an image, its thumbnail where that will do, or a word for why there is none."""
    if image.state is not UnitState.STORED:
        return image.state.value
    thumbnail_px = header.output.thumbnail_px
    if thumbnail_px is not None and thumbnail_px >= max(geometry.cell):
        key = thumbnail_key(header.id, image.index)
    else:
        key = object_key(header.id, image.index, header.output.format)
    try:
        picture, _ = read_picture(farm.store.get(key), max_pixels=_MAX_PIXELS)
    except (NoSuchObject, Refused):
        return "missing"
    return Shown(picture, *size)
