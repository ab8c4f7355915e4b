"""What a job may name beside its model and is asked for by who writes one: LoRAs, and pictures that were sent before.

Keeping pictures is for api/uploads.py; A1111's list of LoRAs is in api/a1111/lists.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api.guard.callers import Asker
from api.guard.inputs import NOTHING_THERE
from api.links import SignedLinks
from api.parts import DEFAULT_TENANT, Farm
from api.problems import INVALID_REQUEST, NOT_FOUND, STORAGE_DOWN, HttpProblem, documented
from farm.storage import uploader_of

router = APIRouter(prefix="/v1")

_SAFETENSORS: Final = ".safetensors"
_MAX_LISTED: Final = 10_000  # files of a folder
_UPLOAD_KEY: Final = r"^uploads/(of-[^/]+/)?[0-9a-f]{64}\.[a-z]{3,4}$"


class Lora(BaseModel):
    """A LoRA that `loras[].name`, and `<lora:name:weight>` in a prompt, may name."""

    object: Literal["lora"] = "lora"
    name: str
    family: str | None = Field(description="Of the models it fits; null for a file, whose name does not say.")
    description: str = ""


class LoraList(BaseModel):
    """LoRAs by name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"object": "list", "data": [{"object": "lora", "name": "lcm-sd15", "family": "sd15"}]}]
        }
    )

    object: Literal["list"] = "list"
    data: list[Lora]


class KnownUpload(BaseModel):
    """A picture that was sent before."""

    object: Literal["upload"] = "upload"
    key: str
    url: str = Field(description="Signed anew, for FARM_URL_EXPIRY_S seconds.")


@router.get("/loras", response_model=LoraList, tags=["models"])
def list_loras(farm: Farm) -> LoraList:
    """List the LoRAs of the catalog, and those in `loras/` as far as the API sees that folder."""
    found = {name: Lora(name=name, family=None) for name in files_below(farm.settings.models_dir / "loras")}
    for row in farm.catalog.loras.values():
        found[row.name] = Lora(name=row.name, family=row.family, description=row.description)
    return LoraList(data=[found[name] for name in sorted(found)])


@router.get(
    "/uploads",
    response_model=KnownUpload,
    responses=documented(NOT_FOUND, INVALID_REQUEST, STORAGE_DOWN),
    tags=["uploads"],
)
def find_upload(
    farm: Farm,
    links: SignedLinks,
    caller: Asker,
    key: Annotated[str, Query(pattern=_UPLOAD_KEY, max_length=1024, description="What `POST /v1/uploads` answered.")],
) -> KnownUpload:
    """Tell where a picture is that was sent before; one of another tenant's is as if it were not there."""
    if not caller.may_see(uploader_of(key) or DEFAULT_TENANT) or not farm.store.exists(key):
        raise HttpProblem(NOT_FOUND, NOTHING_THERE)
    return KnownUpload(key=key, url=links.to(key))


def files_below(folder: Path, suffix: str = _SAFETENSORS) -> dict[str, Path]:
    """Return the files below a folder by their names there without the ending; none where there is no such folder."""
    found: dict[str, Path] = {}
    for path in folder.rglob(f"*{suffix}"):
        found[path.relative_to(folder).with_suffix("").as_posix()] = path
        if len(found) == _MAX_LISTED:
            break
    return dict(sorted(found.items()))
