"""Pictures that clients bring along: checked, kept under a key that follows from their bytes, and found again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, NamedTuple

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from api.bodies import check_media_type, read_bytes
from api.guard.callers import Asker
from api.guard.inputs import NOTHING_THERE, key_of_picture
from api.links import SignedLinks
from api.parts import Farm, Parts
from api.problems import BODY_TOO_LARGE, INVALID_REQUEST, STORAGE_DOWN, UNSUPPORTED_MEDIA_TYPE, documented
from farm.errors import Fatal, Refused, StorageDown
from farm.pictures import is_url, read_picture
from farm.storage import CONTENT_TYPES

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_MAX_LOOKED_UP: Final = 64  # keys of one job that are looked for while its client waits
_BODY: Final = {
    "required": True,
    "description": "The file's bytes, as they are.",
    "content": {
        media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in CONTENT_TYPES.values()
    },
}
_HEADERS: Final = {
    "Location": {"description": "The picture's signed URL.", "schema": {"type": "string"}, "required": True}
}


class Upload(BaseModel):
    """A picture that jobs may name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "upload",
                    "key": "uploads/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae.png",
                    "width": 512,
                    "height": 512,
                    "bytes": 402133,
                    "url": "http://localhost:8080/stored/uploads/2c26….png?X-Amz-Algorithm=…",
                }
            ]
        }
    )

    object: str = "upload"
    key: str = Field(description="What `image`, `mask_image` and `controlnets[].image` of a job take.")
    width: int = Field(description="Pixels, turned the way the file's EXIF says.")
    height: int
    bytes: int
    url: str = Field(description="Signed, for FARM_URL_EXPIRY_S seconds.")


@router.post(
    "",
    status_code=201,
    response_model=Upload,
    response_description="Kept, or there already.",
    responses={
        201: {"headers": _HEADERS},
        **documented(BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, STORAGE_DOWN),
    },
    openapi_extra={"requestBody": _BODY},
)
async def upload_picture(request: Request, farm: Farm, links: SignedLinks, caller: Asker) -> JSONResponse:
    """Keep a picture for jobs to start from.

    Its key follows from its bytes and from whose it is, so that sending it again changes nothing. PNG, JPEG, WebP or
    AVIF, whatever of them `Content-Type` says; what does not decode is refused.
    """
    check_media_type(request, sorted(CONTENT_TYPES.values()))
    body = await read_bytes(request, max_bytes=farm.settings.max_upload_bytes)
    # Few at once: a decoded picture is a hundred times its file.
    kept = await to_thread.run_sync(keep_picture, farm, body, caller.tenant, limiter=farm.decoders)
    upload = Upload(**kept._asdict(), bytes=len(body), url=links.to(kept.key))
    return JSONResponse(upload.model_dump(mode="json"), status_code=201, headers={"Location": upload.url})


class KeptPicture(NamedTuple):
    """A picture in the store; sizes in pixels, as it is looked at."""

    key: str
    width: int
    height: int


def keep_picture(farm: Parts, body: bytes, tenant: str, *, field: str = "body") -> KeptPicture:
    """Check a tenant's picture and put it into the store; raises Refused, naming `field`, and StorageDown.

    It decodes: call it within `farm.decoders`.
    """
    try:
        image, image_format = read_picture(body, max_pixels=farm.settings.max_upload_pixels)
    except Refused as error:
        raise Refused(
            str(error), field=field, value=error.value or f"{len(body):,} bytes", choices=error.choices
        ) from error
    key = key_of_picture(body, image_format, tenant=tenant)
    farm.store.put(key, body, CONTENT_TYPES[image_format])
    width, height = image.size
    extra = {"action": "picture_uploaded", "key": key, "bytes": len(body)}
    log.info("Kept a picture of %dx%d", width, height, extra=extra)
    return KeptPicture(key, width, height)


def check_keys(farm: Parts, pictures: Iterable[tuple[str, str]]) -> None:
    """Raise Refused when a job's pictures, (field, source) each, have a key among them under which nothing lies.

    A courtesy: a worker would find out as well. Where there are many keys, or the store does not answer, it will.
    """
    fields: dict[str, str] = {}
    for field, source in pictures:
        if not is_url(source):
            fields.setdefault(source, field)
    if len(fields) > _MAX_LOOKED_UP:
        return
    try:
        for key, field in fields.items():
            if not farm.store.exists(key):
                raise Refused(NOTHING_THERE, field=field, value=key)
    except (StorageDown, Fatal) as error:
        log.warning("Pictures of a job were not looked for: %s", error, extra={"action": "pictures_unchecked"})
