"""`POST /sdapi/v1/txt2img` and `img2img`: a request becomes a job, and the client waits for its pictures."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from api.a1111.bodies import Model, body_of, read_model
from api.a1111.clients import Calling, Client
from api.a1111.controlnet import units_in
from api.a1111.errors import RENDERING, documented
from api.a1111.info import info_of
from api.a1111.inpainting import Masked, fit
from api.a1111.mapping import Inputs, Wanted, in_a1111s_words, job_of, wanted
from api.a1111.options import MODEL, Options, checked, model_named
from api.a1111.pictures import base64_of, composed, keep, on_white, picture_in, prepared
from api.a1111.progress import PREVIEW_EVERY_STEPS, WATCHED_S
from api.a1111.requests import Generation, Img2Img, Txt2Img
from api.a1111.styles import load_styles
from api.guard.callers import Asker, Caller
from api.parts import Farm, Parts
from api.problems import HttpProblem
from api.rendering import NO_WORKER, Finished, check_rendered, check_served, fetch, render
from farm.errors import FarmError, Refused
from farm.jobs import new_job_id
from farm.recipes import infotext, read_recipe
from farm.requests import ControlNetSpec, JobSpec

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

_SEED_BITS: Final = 32
_VERSION: Final = version("diffusion-farm")


class GenerationAnswer(BaseModel):
    """Pictures in A1111's shape."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"images": ["iVBORw0KGgo…"], "parameters": {}, "info": "{}"}]}
    )

    images: list[str] = Field(description="Files in base64, without a prefix; A1111's text is inside each.")
    parameters: dict[str, Any] = Field(description="The request, with what it left out.")
    info: str = Field(description="A JSON object as text: seeds, prompts, model, sampler, infotexts, …")


def _documented(model: type[Model]) -> dict[str, Any]:
    return {
        "response_model": GenerationAnswer,
        "responses": documented(*RENDERING),
        "openapi_extra": body_of(model),
    }


@router.post("/txt2img", **_documented(Txt2Img), name="a1111_txt2img")
async def txt2img(request: Request, farm: Farm, caller: Asker, client: Calling) -> Response:
    """Render pictures from a prompt, and wait for them. A client that hangs up cancels them."""
    asked = await read_model(request, farm, Txt2Img)
    return await _answer(request, farm, caller, client, asked)


@router.post("/img2img", **_documented(Img2Img), name="a1111_img2img")
async def img2img(request: Request, farm: Farm, caller: Asker, client: Calling) -> Response:
    """Render pictures from a picture, all of it or what a mask leaves, and wait for them."""
    asked = await read_model(request, farm, Img2Img)
    if not asked.init_images:
        raise Refused("is required", field="init_images")
    if len(asked.init_images) > max(1, asked.num_images):
        raise Refused("are more pictures than are asked for", field="init_images", value=len(asked.init_images))
    return await _answer(request, farm, caller, client, asked)


async def _answer(request: Request, farm: Parts, caller: Caller, client: Client, asked: Generation) -> Response:
    begun_at = time.time()
    want = await run_in_threadpool(_wanted, farm, client, asked)
    brings_pictures = isinstance(asked, Img2Img) or bool(asked.alwayson_scripts)
    # Few at once: a decoded picture is a hundred times its file.
    limiter = farm.decoders if brings_pictures else None
    spec = await to_thread.run_sync(_job, farm, caller.tenant, want, limiter=limiter)
    finished = await _rendered(request, farm, caller, client, spec, task_id=asked.force_task_id or "")
    check_rendered(finished)
    files = await fetch(farm, finished)
    finish = partial(_document, farm, want, spec, finished, files, begun_at=begun_at)
    return Response(await to_thread.run_sync(finish, limiter=limiter), media_type="application/json")


def _wanted(farm: Parts, client: Client, asked: Generation) -> Wanted:
    """Read a request against its client's options and its model; raises Refused, and HttpProblem without a worker."""
    given = farm.ledger.options(client.options)
    given |= checked(asked.override_settings, farm.catalog, at="override_settings")
    # Named again: what a client has set may have left the catalog since.
    row = farm.catalog.row(model_named(given.get(MODEL) or default_model(farm), farm.catalog))
    want = wanted(asked, row, Options.of(given))
    check_served(farm, row.name)
    return want


def default_model(farm: Parts) -> str:
    """Return the model of those who name none: FARM_A1111_MODEL, or else the first of the catalog that is served.

    Raises HttpProblem when nobody serves any.
    """
    if farm.settings.a1111_model is not None:
        return farm.settings.a1111_model
    served = {model for worker in farm.ledger.workers() for model in worker.models}
    for name in farm.catalog.names:
        if name in served:
            return name
    raise HttpProblem(NO_WORKER, "no worker is alive", headers={"Retry-After": "10"})


def _job(farm: Parts, tenant: str, want: Wanted) -> JobSpec:
    """Return the job of a request, its pictures in the store; raises Refused and StorageDown."""
    asked, settings = want.asked, farm.settings
    images: list[str] = []
    masks: list[str] = []
    if isinstance(asked, Img2Img):
        for at in range(min(len(asked.init_images), asked.num_images)):
            found = prepared(asked, at, width=want.width, height=want.height, max_pixels=settings.max_upload_pixels)
            if isinstance(found, Masked):
                images.append(keep(farm, tenant, found.image))
                masks.append(keep(farm, tenant, found.mask))
            else:
                images.append(keep(farm, tenant, found))
    inputs = Inputs(tuple(images), tuple(masks), _controlnets(farm, tenant, want, images))
    return job_of(want, inputs, load_styles(settings.styles_file), seed=secrets.randbits(_SEED_BITS))


def _controlnets(farm: Parts, tenant: str, want: Wanted, images: list[str]) -> tuple[ControlNetSpec, ...]:
    specs = []
    known = farm.catalog.controlnets_for(want.row)
    for unit in units_in(want.asked.alwayson_scripts, known):
        if unit.picture:
            field = f"{unit.at}.image"
            picture = picture_in(unit.picture, field=field, max_pixels=farm.settings.max_upload_pixels)
            key = keep(farm, tenant, fit(on_white(picture), want.width, want.height, unit.resize_mode))
        elif images:
            key = images[0]
        else:
            raise Refused("is required", field=f"{unit.at}.image")
        specs.append(unit.spec(key))
    return tuple(specs)


async def _rendered(
    request: Request, farm: Parts, caller: Caller, client: Client, spec: JobSpec, *, task_id: str
) -> Finished:
    """Open the job and wait for it, with the ledger knowing that this client does."""
    job_id = new_job_id()
    await run_in_threadpool(_begin, farm, client, job_id, task_id)
    try:
        return await render(farm, caller, spec, request, job_id=job_id)
    except Refused as error:
        raise in_a1111s_words(error) from error
    finally:
        with suppress(FarmError):  # whoever asks for progress will find that it has ended
            await run_in_threadpool(farm.ledger.end_task, client.own, job_id)


def _begin(farm: Parts, client: Client, job_id: str, task_id: str) -> None:
    farm.ledger.want_previews(job_id, for_s=WATCHED_S, every_steps=PREVIEW_EVERY_STEPS)
    farm.ledger.begin_task(client.own, job_id, scope=client.scope, task_id=task_id)


def _document(
    farm: Parts, want: Wanted, spec: JobSpec, finished: Finished, files: list[bytes], *, begun_at: float
) -> bytes:
    """Return the answer as JSON; what was rendered under a mask lies in its picture."""
    asked, options = want.asked, want.options
    recipes = [read_recipe(file) for file in files]
    if isinstance(asked, Img2Img) and asked.mask and asked.send_images:
        files = [
            composed(file, _original(farm, want, image.index), options.image_format, quality=options.quality, text=text)
            for file, image, text in zip(files, finished.stored, map(infotext, recipes), strict=True)
        ]
    entry = farm.ledger.entries(finished.status.header.id, 0, 0)[0]
    info = info_of(want, spec, entry, finished.stored, recipes, begun_at=begun_at, version=_VERSION)
    images = [base64_of(file) for file in files] if asked.send_images else []
    return json.dumps({"images": images, "parameters": _echo(asked), "info": info}, ensure_ascii=False).encode()


def _original(farm: Parts, want: Wanted, index: int) -> Masked:
    """Return the picture that a result belongs into. Prepared again: nobody holds it while it is rendered."""
    asked = want.asked
    assert isinstance(asked, Img2Img)  # noqa: S101  narrows the type
    at = index % len(asked.init_images)
    found = prepared(asked, at, width=want.width, height=want.height, max_pixels=farm.settings.max_upload_pixels)
    assert isinstance(found, Masked)  # noqa: S101  likewise
    return found


def _echo(asked: Generation) -> dict[str, Any]:
    document = asked.model_dump(mode="json")
    if isinstance(asked, Img2Img) and not asked.include_init_images:
        document |= {"init_images": None, "mask": None}
    return document
