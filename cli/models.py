"""`farm models`: what the farm offers, and the files behind it: fetched, checked, registered under a name.

`list` asks the farm; all else works on this machine's models folder, hub cache and catalog file, and needs no farm.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli import show
from cli.client import DEFAULT_API, FarmClient
from cli.options import Api

app = typer.Typer(help="Models: list, fetch, check, register.", invoke_without_command=True)

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Models, LoRAs or ControlNets of the catalog.")]
Full = Annotated[bool, typer.Option("--full", help="Weights in 32 bits, which CPUs take, where there are both.")]


class FamilyName(StrEnum):
    """Families of models."""

    SD15 = "sd15"
    SDXL = "sdxl"
    FLUX = "flux"
    SD3 = "sd3"


@app.callback()
def models(context: typer.Context, *, api: Api = DEFAULT_API) -> None:
    """List the models the farm offers; or fetch, check and register them."""
    if context.invoked_subcommand is None:
        list_models(api=api)


@app.command(name="list")
def list_models(*, api: Api = DEFAULT_API) -> None:
    """List the models the farm offers."""
    with FarmClient(api) as client:
        show.console.print(show.models_table(client.models()))


@app.command()
def pull(names: Names, *, full: Full = False) -> None:
    """Download what models need, so that no worker has to. What is here already is not downloaded again."""
    from cli.model_files import pull as pull_files  # noqa: PLC0415  the catalog is not for every command

    pull_files(names, prefer_fp16=not full)


@app.command()
def verify(names: Names, *, full: Full = False) -> None:
    """Read all weights of models and compare them with what the hub, or their first reading, says they are."""
    from cli.model_files import verify as verify_files  # noqa: PLC0415

    verify_files(names, prefer_fp16=not full)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What jobs will call it.")],
    *,
    source: Annotated[str, typer.Option(help="A folder, a .safetensors file, or a repository of the hub.")],
    family: Annotated[FamilyName | None, typer.Option(help="Told by the files when they are here.")] = None,
    filename: Annotated[str | None, typer.Option(help="The one .safetensors file of a repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Folder or repository whose configs go with a single file.")
    ] = None,
    vae: Annotated[str | None, typer.Option(metavar="SOURCE", help="A VAE to take instead of its own.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Native width in pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Native height in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Sampler, such as dpmpp_2m or euler.")] = None,
    clip_skip: Annotated[int | None, typer.Option(min=0, help="Last layers of CLIP to leave out.")] = None,
    description: Annotated[str | None, typer.Option(help="For people.")] = None,
    catalog: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Catalog file; FARM_CATALOG_FILE without it.")
    ] = None,
) -> None:
    """Register a model under a name in the catalog file. Settings that are not given are those usual in its family."""
    from cli.register import register  # noqa: PLC0415

    given = {
        "source": source,
        "filename": filename,
        "revision": revision,
        "config": config,
        "vae": None if vae is None else {"source": vae},
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "clip_skip": clip_skip,
        "description": description,
    }
    register(name, family and family.value, {key: value for key, value in given.items() if value is not None}, catalog)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of the catalog file.")],
    *,
    catalog: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Catalog file; FARM_CATALOG_FILE without it.")
    ] = None,
) -> None:
    """Take a model out of the catalog file; its files stay."""
    from cli.register import unregister  # noqa: PLC0415

    unregister(name, catalog)
