"""The pictures within A1111's requests: out of base64, made to fit, into the farm's bucket; and results into base64."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Final

from PIL import ExifTags, Image, PngImagePlugin

from api.a1111.inpainting import Masked, MaskUse, fit, laid_over, mask_in, masked
from api.a1111.requests import Img2Img
from api.guard.inputs import key_of_picture
from api.parts import Parts
from farm.errors import Refused
from farm.pictures import read_picture
from farm.storage import CONTENT_TYPES, ImageFormat

_DATA_URL: Final = re.compile(r"data:[^,;]{0,100}(?:;[^,;]{0,100}){0,4},")
_UNICODE: Final = b"UNICODE\x00"
_BLANKS: Final = str.maketrans("", "", " \t\r\n")


def bytes_of(text: str, *, field: str) -> bytes:
    """Return the bytes of a picture in base64, with or without `data:image/…;base64,`; raises Refused."""
    if text.startswith(("http://", "https://")):
        raise Refused("is a URL; send the picture itself, in base64", field=field, value=text)
    if found := _DATA_URL.match(text):
        text = text[found.end() :]
    text = text.translate(_BLANKS)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"is no base64: {error}", field=field, value=text) from error


def picture_in(text: str, *, field: str, max_pixels: int) -> Image.Image:
    """Return the picture in base64, decoded; raises Refused."""
    data = bytes_of(text, field=field)
    try:
        return read_picture(data, max_pixels=max_pixels)[0]
    except Refused as error:
        raise Refused(str(error), field=field, value=f"{len(data):,} bytes", choices=error.choices) from error


def on_white(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB; what is transparent lies on white."""
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    return picture.convert("RGB")


def keep(farm: Parts, tenant: str, picture: Image.Image) -> str:
    """Put a tenant's picture into the store for a job to start from; return its key, which follows from its pixels."""
    data = encoded(picture, "png")
    key = key_of_picture(data, "png", tenant=tenant)
    farm.store.put(key, data, CONTENT_TYPES["png"])
    return key


def prepared(asked: Img2Img, at: int, *, width: int, height: int, max_pixels: int) -> Image.Image | Masked:
    """Return picture `at` of a request as it is rendered from, with its mask if there is one; raises Refused."""
    field = f"init_images.{at}"
    original = on_white(picture_in(asked.init_images[at], field=field, max_pixels=max_pixels))
    if not asked.mask:
        return fit(original, width, height, asked.resize_mode)
    mask = mask_in(picture_in(asked.mask, field="mask", max_pixels=max_pixels))
    use = MaskUse(
        blur_x=asked.mask_blur if asked.mask_blur_x is None else asked.mask_blur_x,
        blur_y=asked.mask_blur if asked.mask_blur_y is None else asked.mask_blur_y,
        invert=bool(asked.inpainting_mask_invert),
        fill=asked.inpainting_fill,
        full_res=asked.inpaint_full_res,
        full_res_padding=asked.inpaint_full_res_padding,
    )
    return masked(original, mask, use, width=width, height=height, resize_mode=asked.resize_mode)


def composed(file: bytes, over: Masked, image_format: ImageFormat, *, quality: int, text: str) -> bytes:
    """Return the file of a result laid over what it was made from; `text` is A1111's about it."""
    with Image.open(io.BytesIO(file)) as result:
        whole = laid_over(result, over)
    return encoded(whole, image_format, quality=quality, text=text)


def encoded(picture: Image.Image, image_format: ImageFormat, *, quality: int = 90, text: str = "") -> bytes:
    """Return a picture as a file, with A1111's text inside where that lies in such a file."""
    buffer = io.BytesIO()
    if image_format == "png":
        info = PngImagePlugin.PngInfo()
        if text:
            info.add_text("parameters", text)
        picture.save(buffer, "PNG", compress_level=1, pnginfo=info)
    else:
        exif = Image.Exif()
        if text:
            comment = _UNICODE + text.encode("utf-16-be", errors="replace")
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment[:60_000]
        picture.convert("RGB").save(buffer, image_format.upper(), quality=quality, exif=exif.tobytes())
    return buffer.getvalue()


def base64_of(file: bytes) -> str:
    """Return a file as A1111 sends it: base64 without a prefix."""
    return base64.b64encode(file).decode("ascii")
