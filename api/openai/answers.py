"""What the endpoints for images answer with, in OpenAI's shapes; and how it is made of what is stored."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.links import Links
from farm.jobs import Header
from farm.ledger import ImageStatus
from farm.storage import object_key


class TokenDetails(BaseModel):
    """Tokens by kind."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Always zero: the farm counts no tokens. Clients that add up costs find what they look for."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = Field(None, description="The file in base64, unless a URL was asked for.")
    url: str | None = Field(None, description="Signed.")
    revised_prompt: str | None = Field(None, description="Always null: prompts are taken as they are.")
    seed: int = Field(description="What to send to have it again.")


class ImagesAnswer(BaseModel):
    """The images that were asked for, in the order of their seeds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "created": 1795000000,
                    "background": "opaque",
                    "data": [{"b64_json": "iVBORw0KGgo…", "url": None, "revised_prompt": None, "seed": 7}],
                    "output_format": "png",
                    "size": "512x512",
                    "usage": Usage().model_dump(),
                }
            ]
        }
    )

    created: int = Field(description="Unix time of the last of them.")
    background: Literal["opaque"] = "opaque"
    data: list[ImageData]
    output_format: str
    size: str
    usage: Usage = Usage()


def images_answer(
    header: Header, images: Sequence[ImageStatus], data: list[ImageData], *, size: tuple[int, int]
) -> ImagesAnswer:
    """Return the answer that tells of these stored images of a job, each shown by its `data`."""
    return ImagesAnswer(
        created=int(max((image.stored_at or 0.0 for image in images), default=header.created_at)),
        data=data,
        output_format=header.output.format,
        size=f"{size[0]}x{size[1]}",
    )


def encoded(image: ImageStatus, file: bytes) -> ImageData:
    """Return an image by its bytes."""
    return ImageData(b64_json=base64.b64encode(file).decode(), seed=image.seed)


def as_url(links: Links, header: Header, image: ImageStatus, *, expiry_s: int | None = None) -> ImageData:
    """Return an image by a signed URL. No I/O."""
    key = object_key(header.id, image.index, header.output.format)
    return ImageData(url=links.to(key, expiry_s=expiry_s), seed=image.seed)
