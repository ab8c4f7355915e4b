"""What A1111's clients ask the server for before they render: models, samplers, LoRAs, options and the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from api.a1111.bodies import body_of, read_model
from api.a1111.clients import Calling
from api.a1111.errors import CHANGING, READING, WITH_BODY, documented
from api.a1111.generation import default_model
from api.a1111.listed import (
    VAE,
    ControlNetModels,
    ControlNetModules,
    ControlNetVersion,
    Embedding,
    Embeddings,
    Lora,
    Memory,
    Named,
    OptionChanges,
    Pong,
    PromptStyle,
    Sampler,
    Schedule,
    Scripts,
    SDModel,
    Upscaler,
)
from api.a1111.options import MODEL, checked, shown
from api.a1111.samplers import listed_samplers, listed_schedules
from api.a1111.styles import load_styles
from api.ingredients import files_below
from api.parts import Farm, Parts
from api.problems import UNKNOWN_MODEL, HttpProblem
from farm.weights.headers import BadHeader, read_header

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

_MATRIX: Final = 2  # dimensions of an embedding


@router.get("/sd-models", responses=documented(*READING), name="a1111_sd_models")
def list_sd_models(farm: Farm, _client: Calling) -> list[SDModel]:
    """List the models of the catalog."""
    return [SDModel(title=row.name, model_name=row.name, filename=row.source) for row in farm.catalog]


@router.get("/samplers", responses=documented(*READING), name="a1111_samplers")
def list_samplers(_client: Calling) -> list[Sampler]:
    """List the samplers, by A1111's names."""
    return [Sampler(**item) for item in listed_samplers()]


@router.get("/schedulers", responses=documented(*READING), name="a1111_schedulers")
def list_schedulers(_client: Calling) -> list[Schedule]:
    """List the schedules, by A1111's names."""
    return [Schedule(**item) for item in listed_schedules()]


@router.get("/upscalers", responses=documented(*READING), name="a1111_upscalers")
def list_upscalers(_client: Calling) -> list[Upscaler]:
    """List what `extra-single-image` enlarges with; a job's `output.upscale` knows ESRGANs too."""
    return [Upscaler(name=name, scale=4 if name != "None" else 1) for name in ("None", "Lanczos", "Nearest")]


@router.get("/latent-upscale-modes", responses=documented(*READING), name="a1111_latent_upscale_modes")
def list_latent_upscale_modes(_client: Calling) -> list[Named]:
    """List the ways in which a second pass enlarges latents."""
    return [Named(name="Latent")]


@router.get("/loras", responses=documented(*READING), name="a1111_loras")
def list_loras(farm: Farm, _client: Calling) -> list[Lora]:
    """List the LoRAs of the catalog, and those in `loras/` as far as the API sees that folder."""
    found = {row.name: row.source for row in farm.catalog.loras.values()}
    for name, path in files_below(farm.settings.models_dir / "loras").items():
        found.setdefault(name, f"loras/{path.name}" if path.parent.name == "loras" else str(name))
    return [Lora(name=name, alias=name, path=path) for name, path in sorted(found.items())]


@router.get("/embeddings", responses=documented(*READING), name="a1111_embeddings")
def list_embeddings(farm: Farm, _client: Calling) -> Embeddings:
    """List the textual inversions in `embeddings/`, as far as the API sees that folder."""
    folder = farm.settings.models_dir / "embeddings"
    loaded: dict[str, Embedding] = {}
    skipped: dict[str, Embedding] = {}
    for name, path in files_below(folder).items():
        word = name.rpartition("/")[2]
        sizes = _vectors_in(path)
        (skipped if sizes is None else loaded)[word] = Embedding(
            vectors=(sizes or (0, 0))[0], shape=(sizes or (0, 0))[1]
        )
    for suffix in (".pt", ".bin"):
        skipped |= {name.rpartition("/")[2]: Embedding(vectors=0, shape=0) for name in files_below(folder, suffix)}
    return Embeddings(loaded=loaded, skipped=skipped)


def _vectors_in(path: Path) -> tuple[int, int] | None:
    """Return how many vectors an embedding's file has, and of what length; None when it is none."""
    try:
        shapes = [tensor.shape for tensor in read_header(path).values()]
    except (BadHeader, OSError):
        return None
    vectors = [shape for shape in shapes if len(shape) == _MATRIX]
    return (vectors[0][0], vectors[0][1]) if vectors else None


@router.get("/sd-vae", responses=documented(*READING), name="a1111_sd_vae")
def list_sd_vae(_client: Calling) -> list[VAE]:
    """List VAEs to choose from: none, each model of the catalog has its own."""
    return []


@router.get("/hypernetworks", responses=documented(*READING), name="a1111_hypernetworks")
def list_hypernetworks(_client: Calling) -> list[Named]:
    """List hypernetworks: none."""
    return []


@router.get("/face-restorers", responses=documented(*READING), name="a1111_face_restorers")
def list_face_restorers(_client: Calling) -> list[Named]:
    """List face restorers: none."""
    return []


@router.get("/realesrgan-models", responses=documented(*READING), name="a1111_realesrgan_models")
def list_realesrgan_models(_client: Calling) -> list[Named]:
    """List Real-ESRGAN models that this API may name: none."""
    return []


@router.get("/extensions", responses=documented(*READING), name="a1111_extensions")
def list_extensions(_client: Calling) -> list[Named]:
    """List extensions: none."""
    return []


@router.get("/prompt-styles", responses=documented(*READING), name="a1111_prompt_styles")
def list_prompt_styles(farm: Farm, _client: Calling) -> list[PromptStyle]:
    """List the styles of FARM_STYLES_FILE."""
    return [PromptStyle(**style._asdict()) for style in load_styles(farm.settings.styles_file)]


@router.get("/scripts", responses=documented(*READING), name="a1111_scripts")
def list_scripts(farm: Farm, _client: Calling) -> Scripts:
    """List the scripts: ControlNet, where the catalog has ControlNets."""
    names = ["controlnet", "controlnet m2m"] if farm.catalog.controlnets else []
    return Scripts(txt2img=names, img2img=names)


@router.get("/script-info", responses=documented(*READING), name="a1111_script_info")
def list_script_info(_client: Calling) -> list[Named]:
    """List the arguments of scripts: none has any that a form could show."""
    return []


@router.get("/memory", responses=documented(*READING), name="a1111_memory")
def get_memory(farm: Farm, _client: Calling) -> Memory:
    """Tell of memory: the API's host, and all GPUs of the farm together."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    gpus = [worker.gpu for worker in farm.ledger.workers() if worker.gpu is not None]
    cuda_total = sum(gpu.memory_total_bytes or 0 for gpu in gpus)
    cuda_used = sum(gpu.memory_used_bytes or 0 for gpu in gpus)
    system = {"free": cuda_total - cuda_used, "used": cuda_used, "total": cuda_total}
    return Memory(
        ram={"free": free, "used": total - free, "total": total},
        cuda={"system": system} if gpus else {"error": "no worker reports a GPU"},
    )


@router.get("/cmd-flags", responses=documented(*READING), name="a1111_cmd_flags")
def get_cmd_flags(_client: Calling) -> dict[str, Any]:
    """Tell the few of A1111's command line flags that mean something here."""
    return {"api": True, "nowebui": True, "version": f"diffusion-farm {version('diffusion-farm')}"}


@router.get("/options", responses=documented(*READING), name="a1111_get_options")
def get_options(farm: Farm, client: Calling) -> dict[str, Any]:
    """Tell the options as they hold for the calling client: what it has set, and defaults."""
    given = farm.ledger.options(client.options)
    return shown(given, model=_model_of(farm, given))


def _model_of(farm: Parts, given: Mapping[str, Any]) -> str | None:
    if given.get(MODEL) in farm.catalog:
        return str(given[MODEL])
    try:
        return default_model(farm)
    except HttpProblem:  # nobody serves any
        return None


@router.post(
    "/options",
    responses=documented(*WITH_BODY, UNKNOWN_MODEL, *CHANGING),
    openapi_extra=body_of(OptionChanges),
    name="a1111_set_options",
)
async def set_options(request: Request, farm: Farm, client: Calling) -> None:
    """Change options for the calling client alone, for thirty days from the last change.

    The model, CLIP_stop_at_last_layers, samples_format and jpeg_quality act; what would change pictures in a way that
    the farm does not offer is refused; everything else is kept and told again.
    """
    changes = await read_model(request, farm, OptionChanges)
    await run_in_threadpool(_set_options, farm, client.options, changes.root)


def _set_options(farm: Parts, client: str, changes: Mapping[str, Any]) -> None:
    farm.ledger.set_options(client, checked(changes, farm.catalog))


@router.post("/refresh-checkpoints", responses=documented(*CHANGING), name="a1111_refresh_checkpoints")
@router.post("/refresh-vae", responses=documented(*CHANGING), name="a1111_refresh_vae")
@router.post("/refresh-loras", responses=documented(*CHANGING), name="a1111_refresh_loras")
@router.post("/refresh-embeddings", responses=documented(*CHANGING), name="a1111_refresh_embeddings")
def refresh(_client: Calling) -> None:
    """Do nothing: files in `loras/` and `embeddings/` are found without, the catalog is read at the start."""


@router.post("/reload-checkpoint", responses=documented(*CHANGING), name="a1111_reload_checkpoint")
@router.post("/unload-checkpoint", responses=documented(*CHANGING), name="a1111_unload_checkpoint")
def reload_checkpoint(_client: Calling) -> dict[str, Any]:
    """Do nothing: which models are on which GPU is decided by what is asked for."""
    return {}


controlnet_router = APIRouter(prefix="/controlnet", tags=["a1111"])


@controlnet_router.get("/version", responses=documented(*READING), name="a1111_controlnet_version")
def get_controlnet_version() -> ControlNetVersion:
    """Tell the version of the ControlNet extension that this is like."""
    return ControlNetVersion()


@controlnet_router.get("/model_list", responses=documented(*READING), name="a1111_controlnet_models")
def list_controlnet_models(farm: Farm) -> ControlNetModels:
    """List the ControlNets of the catalog."""
    return ControlNetModels(model_list=list(farm.catalog.controlnets))


@controlnet_router.get("/module_list", responses=documented(*READING), name="a1111_controlnet_modules")
def list_controlnet_modules() -> ControlNetModules:
    """List preprocessors: none, pictures come prepared."""
    return ControlNetModules(module_list=["none"])


ping_router = APIRouter(prefix="/internal", tags=["a1111"])


@ping_router.get("/ping", responses=documented(*READING), name="a1111_ping")
def ping() -> Pong:
    """Answer."""
    return Pong()
