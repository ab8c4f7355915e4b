"""The `farm` command: its subcommands and their options, nothing else. Each hands over to a file of its own."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import edits, keys, models, preview, promptfiles, show, tenants, watch, webhooks
from cli.client import DEFAULT_API, FarmClient
from cli.download import download as download_images
from cli.exits import CliError, Exit
from cli.manifest import bring_manifest
from cli.options import Api, Files, JobId, Model, Num, Prompt, Seed, Setting, Steps, Template
from cli.pictures import upload_file
from cli.processes import child_env, python_module
from cli.replay import replay as replay_image
from cli.submit import follow, tell_download
from cli.submit import submit as submit_job

app = typer.Typer(
    help="A batch rendering farm for Stable Diffusion.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(tenants.app, name="tenants")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(edits.app)
app.add_typer(preview.app)


class OutputFormat(StrEnum):
    """File formats of images."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"


class PriorityName(StrEnum):
    """Who is served first."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"


class ReproducibilityName(StrEnum):
    """How far the same request gives the same image."""

    FAST = "fast"
    INVARIANT = "invariant"


@app.command()
def up(
    *,
    host: Annotated[str, typer.Option(help="Address the API listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of the API.")] = 8080,
    data: Annotated[Path, typer.Option(help="Folder for everything the farm keeps.", metavar="DIR")] = Path("data"),
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Workers on the CPU; with GPUs it is one for each.")
    ] = None,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True, help="Stop when standard input ends.")] = False,
) -> None:
    """Start a whole farm on this machine: queue, storage, API and workers. Ctrl-C stops it."""
    from cli.up import UpOptions, run_up  # noqa: PLC0415  the servers' wheels are an extra

    run_up(UpOptions(host=host, port=port, data=data, workers=workers, until_eof=until_eof))


@app.command()
def submit(
    *,
    files: Files = None,
    prompt: Prompt = None,
    model: Model = None,
    steps: Steps = None,
    guidance: Annotated[float | None, typer.Option("--guidance", "-g", help="Guidance scale.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Sampler, such as dpmpp_2m or euler.")] = None,
    seed: Seed = None,
    num: Num = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="Picture to start from: a file, a key of the farm, or a URL.")
    ] = None,
    mask: Annotated[str | None, typer.Option(metavar="FILE", help="White is painted anew, black is kept.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of the picture gives way, up to 1.")] = None,
    negative: Annotated[str | None, typer.Option(help="What should not be in the pictures.")] = None,
    priority: Annotated[PriorityName | None, typer.Option(help="Who is served first.")] = None,
    reproducibility: Annotated[
        ReproducibilityName | None, typer.Option(help="invariant: the same bytes whatever else is rendered.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Yours to set; may be repeated.")] = None,
    output: Annotated[OutputFormat | None, typer.Option(help="File format.")] = None,
    thumbnail: Annotated[int | None, typer.Option(metavar="PX", help="Also store a small version.")] = None,
    upscale: Annotated[int | None, typer.Option(metavar="N", help="Also store a version N times as large.")] = None,
    upscaler: Annotated[str | None, typer.Option(help="lanczos, or a model in upscalers/.")] = None,
    safety_checker: Annotated[
        bool | None, typer.Option("--safety-checker/--no-safety-checker", help="Black out what is not safe for work.")
    ] = None,
    reuse: Annotated[
        bool | None, typer.Option("--reuse/--no-reuse", help="Take images that were made before from storage.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Where to tell of the job's end.")] = None,
    template: Template = None,
    grid: Annotated[bool | None, typer.Option("--grid", help="Also one labelled picture of all images.")] = None,
    settings: Setting = None,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end.")] = True,
    folder: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Bring the images here.")] = None,
    api: Api = DEFAULT_API,
) -> None:
    """Submit a batch of prompts, and watch it being rendered. Ctrl-C leaves; the job goes on."""
    if folder is not None and not wait:
        raise CliError("-o needs the job's end: leave out --no-wait, or run farm download later", code=Exit.USAGE)
    options: dict[str, Any] = {
        "model": model,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "seed": seed,
        "num_images_per_prompt": num,
        "width": width,
        "height": height,
        "image": image,
        "mask_image": mask,
        "strength": strength,
        "negative_prompt": negative,
        "priority": priority,
        "reproducibility": reproducibility,
        "labels": promptfiles.parse_labels(label or []),
        "output": given(
            format=output, thumbnail_px=thumbnail, upscale=upscale, upscaler=upscaler, safety_checker=safety_checker
        ),
        "reuse": reuse,
        "webhook": given(url=webhook),
        "template": given(mode=template),
        "grid": grid,
    }
    job = promptfiles.build_job(files or [], prompt or [], options)
    with FarmClient(api) as client:
        query = promptfiles.parse_settings(settings or [])
        raise typer.Exit(submit_job(client, job, query, wait=wait, folder=folder))


def given(**options: object) -> dict[str, object]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def upload(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="PNG, JPEG, WebP or AVIF.")],
    *,
    api: Api = DEFAULT_API,
) -> None:
    """Bring pictures to the farm; prints their keys, which jobs name as image, mask_image or a ControlNet's image."""
    with FarmClient(api) as client:
        for file in files:
            show.console.print(upload_file(client, file)["key"], soft_wrap=True, markup=False)


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="A job's id; without one, the whole farm.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=100, help="Jobs to list.")] = 10,
    api: Api = DEFAULT_API,
) -> None:
    """Show the farm (jobs, workers, throughput), or one job."""
    with FarmClient(api) as client:
        if job is not None:
            found = client.job(job)
            show.console.print(show.job_table(found))
            if found["counts"]["failed"]:
                watch.report(client, found)
            return
        jobs, workers, throughput = client.jobs(limit=limit), client.workers(), client.throughput()
    for title, rows, table in (
        ("no jobs yet", jobs, show.jobs_table(jobs)),
        ("no worker reports", workers, show.workers_table(workers)),
        ("", [throughput], show.rates_table(throughput)),
    ):
        show.console.print(table if rows else f"[dim]{title}[/]")
        show.console.print()
    queued, rendering = throughput.get("queued_images", 0), throughput.get("rendering_images", 0)
    show.console.print(f"{queued} images queued, {rendering} rendering")


@app.command(name="watch")
def watch_job(
    job: JobId,
    *,
    folder: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Bring the images here.")] = None,
    api: Api = DEFAULT_API,
) -> None:
    """Follow a job to its end. Ctrl-C leaves; the job goes on."""
    with FarmClient(api) as client:
        raise typer.Exit(follow(client, client.job(job), folder=folder))


@app.command()
def download(
    job: JobId,
    *,
    folder: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where to.")],
    extras: Annotated[bool, typer.Option("--extras", help="Bring thumbnails and enlarged versions too.")] = False,
    api: Api = DEFAULT_API,
) -> None:
    """Bring a job's images into a folder; what is there already is skipped."""
    with FarmClient(api) as client:
        raise typer.Exit(tell_download(download_images(client, job, folder, with_extras=extras), folder))


@app.command()
def manifest(
    job: JobId,
    *,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Save it here.")] = None,
    api: Api = DEFAULT_API,
) -> None:
    """Print what was asked for and what became of it, image by image, of a job that has ended; JSON Lines."""
    with FarmClient(api) as client:
        bring_manifest(client, job, out)


@app.command()
def prune(
    *,
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Such as 30d, 12h or 90m.")],
    jobs: Annotated[bool, typer.Option("--jobs", help="Images and manifests of jobs.")] = False,
    uploads: Annotated[bool, typer.Option("--uploads", help="Pictures that clients brought along.")] = False,
    files: Annotated[bool, typer.Option("--files", help="Files and batches of OpenAI clients.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even when Redis is away, and nobody knows what jobs need.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data folder of a farm that farm up runs; else FARM_* say where.")
    ] = None,
) -> None:
    """Delete what is old from the storage, jobs, uploads and files alike unless one is named; asks first."""
    from cli.prune import PruneOptions, run_prune  # noqa: PLC0415  ledger and storage are not for every command

    run_prune(PruneOptions(older_than, jobs, uploads, files, dry_run, yes, force, data))


@app.command()
def replay(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of the farm's, or of AUTOMATIC1111's.")],
    *,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Keep the new picture here.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Another model than the one it names.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Fail unless the very same bytes come out.")] = False,
    api: Api = DEFAULT_API,
) -> None:
    """Render a picture again by the recipe in its file, and tell whether it is the same."""
    with FarmClient(api) as client:
        raise typer.Exit(replay_image(client, image, model=model, out=out, verify=verify))


@app.command(name="plan")
def plan_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the catalog.")],
    *,
    vram: Annotated[
        float | None, typer.Option(min=0.1, metavar="GIB", help="The card's memory; without it, the cards here.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Images that must share a step.")] = 1,
    guided: Annotated[
        bool | None, typer.Option("--guided/--unguided", help="With guidance an image is two rows.")
    ] = None,
    lossy: Annotated[bool, typer.Option("--lossy/--exact", help="Whether weights may lose bits.")] = True,
    extra: Annotated[float, typer.Option(min=0, metavar="GIB", help="LoRAs and ControlNets beside the model.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Sizes in bytes, for programs.")] = False,
) -> None:
    """Show how a model would be laid out on a card, before anything is loaded."""
    from cli.plan import PlanOptions, run_plan  # noqa: PLC0415  the catalog is not for every command

    options = PlanOptions(vram, width, height, batch, guided, lossy, extra, as_json)
    run_plan(model, options)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure this card: its ceilings, models against them and against diffusers, a whole farm; --help tells all."""
    from cli.bench import run_bench  # noqa: PLC0415  the servers' wheels are an extra

    raise typer.Exit(run_bench(context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def worker(context: typer.Context) -> None:
    """Run the workers of this machine for a farm elsewhere (FARM_REDIS_URL and FARM_S3_… say where)."""
    command = python_module("worker.launcher", *context.args)
    os.execve(command[0], command, child_env())  # noqa: S606  it takes our place, so signals reach it directly


@app.command()
def demo(
    *,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="A prompt file other than the usual.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for demo/ and demo-data/.")] = Path("out"),
) -> None:
    """Render a set of prompts on a farm of its own, into out/demo/, and stop it again."""
    from cli.demo import PROMPTS, run_demo  # noqa: PLC0415  as in up

    run_demo(prompts or PROMPTS, out)


def main() -> None:
    """Run the command line; errors become one message and an exit code."""
    try:
        app()
    except CliError as error:
        show.fail(str(error))
        sys.exit(error.code)


if __name__ == "__main__":
    main()
