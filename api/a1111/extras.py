"""Pictures that are only looked at or enlarged: `png-info` and `extra-single-image`. No job, no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, Field

from api.a1111.bodies import Lenient, body_of, read_model
from api.a1111.clients import Calling
from api.a1111.errors import CHANGING, READING, WITH_BODY, documented
from api.a1111.info import parameters_of
from api.a1111.inpainting import CROP_AND_RESIZE, RESIZE_AND_FILL, fit
from api.a1111.pictures import base64_of, bytes_of, encoded, on_white, picture_in
from api.a1111.requests import Name, Share
from api.parts import Farm, Parts
from farm.errors import Refused
from farm.recipes import NoRecipe, read_infotext, texts_in

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

_RESAMPLINGS: Final = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
_MAX_BATCH: Final = 64
_BY_FACTOR: Final = 0


class PictureToRead(Lenient):
    """Body of POST /sdapi/v1/png-info."""

    image: str = Field("", description="In base64.")


class PictureInfo(BaseModel):
    """What a file tells of how it was made."""

    info: str = Field(description="A1111's text; empty without one.")
    items: dict[str, str] = Field(description="Other texts in the file, by their names.")
    parameters: dict[str, Any] = Field(description="A1111's text, taken apart.")


class Enlarging(Lenient):
    """How pictures are enlarged."""

    resize_mode: Annotated[int, Field(ge=0, le=1)] = Field(0, description="0: by upscaling_resize; 1: to a size.")
    upscaling_resize: Annotated[float, Field(gt=0, le=8)] = 2.0
    upscaling_resize_w: Annotated[int, Field(ge=1, le=16_384)] = 512
    upscaling_resize_h: Annotated[int, Field(ge=1, le=16_384)] = 512
    upscaling_crop: bool = Field(default=True, description="Whether what does not fit the shape is cut off.")
    upscaler_1: Name = Field("None", description="`None`, which changes nothing, `Lanczos` or `Nearest`.")
    upscaler_2: Name = "None"
    extras_upscaler_2_visibility: Share = Field(0, description="Refused unless 0, or upscaler_2 is None.")
    gfpgan_visibility: Share = Field(0, description="Refused unless 0.")
    codeformer_visibility: Share = Field(0, description="Refused unless 0.")
    codeformer_weight: Share = 0
    upscale_first: bool = False
    show_extras_results: bool = True


class PictureToEnlarge(Enlarging):
    """Body of POST /sdapi/v1/extra-single-image."""

    image: str = Field("", description="In base64.")


class NamedPicture(Lenient):
    """One of several pictures."""

    data: str
    name: Name = ""


class PicturesToEnlarge(Enlarging):
    """Body of POST /sdapi/v1/extra-batch-images."""

    imageList: list[NamedPicture] = Field(max_length=_MAX_BATCH)  # noqa: N815  as A1111 has it


class Enlarged(BaseModel):
    """A picture, enlarged."""

    html_info: str = ""
    image: str = Field(description="A PNG in base64.")


class AllEnlarged(BaseModel):
    """Pictures, enlarged."""

    html_info: str = ""
    images: list[str] = Field(description="PNGs in base64, in order.")


@router.post(
    "/png-info",
    responses=documented(*WITH_BODY, *READING),
    openapi_extra=body_of(PictureToRead),
    name="a1111_png_info",
)
async def read_png_info(request: Request, farm: Farm, _client: Calling) -> PictureInfo:
    """Tell what a file says of how it was made: PNG, JPEG, WebP or AVIF."""
    asked = await read_model(request, farm, PictureToRead)
    return await to_thread.run_sync(_read, asked.image)


def _read(image: str) -> PictureInfo:
    try:
        info, items = texts_in(bytes_of(image, field="image"))
    except NoRecipe as error:
        raise Refused("is no picture that can be read", field="image", value=image) from error
    parameters: dict[str, Any] = {}
    if info:
        try:
            parameters = parameters_of(read_infotext(info))
        except Refused:  # words of another kind
            parameters = {}
    return PictureInfo(info=info, items=items, parameters=parameters)


@router.post(
    "/extra-single-image",
    responses=documented(*WITH_BODY, *CHANGING),
    openapi_extra=body_of(PictureToEnlarge),
    name="a1111_extra_single_image",
)
async def enlarge_picture(request: Request, farm: Farm, _client: Calling) -> Enlarged:
    """Enlarge a picture; what needs a model is for a job's `output.upscale`."""
    asked = await read_model(request, farm, PictureToEnlarge)
    (image,) = await to_thread.run_sync(_enlarged, farm, asked, [("image", asked.image)], limiter=farm.decoders)
    return Enlarged(image=image)


@router.post(
    "/extra-batch-images",
    responses=documented(*WITH_BODY, *CHANGING),
    openapi_extra=body_of(PicturesToEnlarge),
    name="a1111_extra_batch_images",
)
async def enlarge_pictures(request: Request, farm: Farm, _client: Calling) -> AllEnlarged:
    """Enlarge pictures, each as `extra-single-image` does."""
    asked = await read_model(request, farm, PicturesToEnlarge)
    given = [(f"imageList.{at}.data", picture.data) for at, picture in enumerate(asked.imageList)]
    return AllEnlarged(images=await to_thread.run_sync(_enlarged, farm, asked, given, limiter=farm.decoders))


def _enlarged(farm: Parts, asked: Enlarging, given: Sequence[tuple[str, str]]) -> list[str]:
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if (value := getattr(asked, name)) > 0:
            raise Refused("the farm restores no faces", field=name, value=value, choices=["0"])
    if asked.upscaler_2 != "None" and asked.extras_upscaler_2_visibility > 0:
        raise Refused("one upscaler is used at a time", field="upscaler_2", value=asked.upscaler_2, choices=["None"])
    if asked.upscaler_1 not in _RESAMPLINGS:
        raise Refused(
            "is none that works without a GPU; a job's output.upscale knows others",
            field="upscaler_1",
            value=asked.upscaler_1,
            choices=list(_RESAMPLINGS),
        )
    max_pixels = farm.settings.max_upload_pixels
    return [
        base64_of(
            encoded(_resized(on_white(picture_in(text, field=field, max_pixels=max_pixels)), asked, max_pixels), "png")
        )
        for field, text in given
    ]


def _resized(picture: Image.Image, asked: Enlarging, max_pixels: int) -> Image.Image:
    resampling = _RESAMPLINGS[asked.upscaler_1]
    if resampling is None:
        return picture
    width, height = asked.upscaling_resize_w, asked.upscaling_resize_h
    if asked.resize_mode == _BY_FACTOR:
        width, height = (max(1, round(side * asked.upscaling_resize)) for side in picture.size)
    if width * height > max_pixels:
        raise Refused(
            f"{width}x{height} pixels are more than a picture may have", field="upscaling_resize", value=width * height
        )
    if asked.resize_mode == _BY_FACTOR:
        return picture.resize((width, height), resampling)
    return fit(picture, width, height, CROP_AND_RESIZE if asked.upscaling_crop else RESIZE_AND_FILL)
