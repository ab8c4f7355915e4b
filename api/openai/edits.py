"""`POST /v1/images/edits`: images from another one, with or without a mask; `/variations`, which is no more, says so.

The pictures are kept as uploads are (api/uploads.py). A mask is OpenAI's: what is transparent in it is painted anew.
"""

from __future__ import annotations

import io
from typing import Any, Final

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from PIL import Image, ImageChops
from starlette.datastructures import UploadFile

from api.guard.callers import Asker
from api.jobs import IdempotencyKey
from api.openai.answers import ImagesAnswer
from api.openai.errors import documented
from api.openai.forms import MEDIA_TYPE, OVERHEAD_BYTES, read_form
from api.openai.images import ANSWERS, answer, row_of
from api.openai.requests import EditRequest, fitting_size, job_of, pictures_of
from api.parts import Farm, Parts
from api.problems import HttpProblem, Kind
from api.uploads import keep_picture
from farm.errors import Refused
from farm.pictures import read_picture

router = APIRouter(prefix="/v1/images", tags=["openai"])

RETIRED: Final = Kind("endpoint-retired", 404, "This endpoint is retired")

_NUM_FILES: Final = 2
_OPAQUE: Final = 255


def _form_schema() -> dict[str, Any]:
    schema = EditRequest.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {
        "image": {**file, "description": "PNG, JPEG, WebP or AVIF; one."},
        "mask": {**file, "description": "As large as the image, with transparency where it is painted anew."},
    }
    schema["required"] = ["prompt", "image"]
    return schema


@router.post(
    "/edits",
    response_model=ImagesAnswer,
    response_description="The images; with `stream` a stream of events that ends with each of them.",
    responses=ANSWERS,
    openapi_extra={"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": _form_schema()}}}},
)
async def edit_image(request: Request, farm: Farm, caller: Asker, idempotency_key: IdempotencyKey = None) -> Response:
    """Make images from another one: all of it anew, or what a mask leaves open.

    `size: auto` is the image's own, or the nearest that the model renders.
    """
    max_bytes = _NUM_FILES * farm.settings.max_upload_bytes + OVERHEAD_BYTES
    async with read_form(request, max_bytes=max_bytes, max_files=_NUM_FILES) as form:
        form.check_files("image", "mask")
        image, mask = form.one_file("image"), form.one_file("mask") if "mask" in form.files else None
        asked = form.parse(EditRequest)
        asked.check_stream()
        row = await run_in_threadpool(row_of, farm, asked.model)
        # Few at once: a decoded picture is a hundred times its file.
        size, keys = await to_thread.run_sync(_keep, farm, caller.tenant, image, mask, limiter=farm.decoders)
    if asked.size in (None, "auto"):
        width, height = fitting_size(*size, row)
        asked = asked.model_copy(update={"size": f"{width}x{height}"})
    pictures = pictures_of(asked, row, image=keys[0], mask=keys[1])
    spec = job_of(asked, row, **pictures)
    return await answer(farm, caller, request, asked, spec, idempotency_key=idempotency_key, events="image_edit")


@router.post("/variations", status_code=404, response_model=None, responses=documented(RETIRED))
async def vary_image() -> None:
    """Tell that there are no variations any more, at OpenAI neither: edit the image with a prompt."""
    raise HttpProblem(RETIRED, "variations are retired, here as at OpenAI: POST /v1/images/edits with a prompt")


def _keep(
    farm: Parts, tenant: str, image: UploadFile, mask: UploadFile | None
) -> tuple[tuple[int, int], tuple[str, str | None]]:
    """Check the pictures and keep them; return the image's size and the keys of both."""
    kept = keep_picture(farm, _bytes_of(farm, image, "image"), tenant, field="image")
    size = (kept.width, kept.height)
    if mask is None:
        return size, (kept.key, None)
    data = _bytes_of(farm, mask, "mask")
    try:
        picture, _ = read_picture(data, max_pixels=farm.settings.max_upload_pixels)
    except Refused as error:
        raise Refused(str(error), field="mask", choices=error.choices) from error
    key = keep_picture(farm, farm_mask(picture, size), tenant, field="mask").key
    return size, (kept.key, key)


def _bytes_of(farm: Parts, file: UploadFile, field: str) -> bytes:
    most = farm.settings.max_upload_bytes
    data = file.file.read(most + 1)
    if len(data) > most:
        raise Refused(f"has more than {most:,} bytes", field=field, value=file.size, choices=[f"1 to {most}"])
    return data


def farm_mask(mask: Image.Image, size: tuple[int, int]) -> bytes:
    """Return OpenAI's mask as the farm has it, a PNG: white, and painted anew, where the given one is transparent.

    Raises Refused for one that is not of the image's size (width, height), or that keeps everything.
    """
    if mask.size != size:
        found, wanted = (f"{width}x{height}" for width, height in (mask.size, size))
        raise Refused(f"must be as large as the image, {wanted}", field="mask", value=found, choices=[wanted])
    alpha = mask.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (_OPAQUE, _OPAQUE):
        raise Refused("is nowhere transparent: that is where the image is painted anew", field="mask")
    file = io.BytesIO()
    ImageChops.invert(alpha).save(file, "PNG", compress_level=1)
    return file.getvalue()
