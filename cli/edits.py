"""Commands that change what was submitted: `farm cancel`, `pause`, `resume`, `retry`. Each shows the job afterwards."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import show
from cli.client import DEFAULT_API, FarmClient
from cli.exits import CliError, Exit
from cli.options import Api, JobId

app = typer.Typer()


@app.command()
def cancel(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job's id.")] = None,
    *,
    image: Annotated[
        list[int] | None, typer.Option("--image", min=0, metavar="N", help="Only this image; may be repeated.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="All jobs of a tenant instead of one job.")] = None,
    api: Api = DEFAULT_API,
) -> None:
    """Cancel a job, some of its images, or all jobs of a tenant; images that are stored stay."""
    if (job is None) == (tenant is None) or (image and job is None):
        raise CliError("name a job, a job and --image N, or --tenant NAME", code=Exit.USAGE)
    with FarmClient(api) as client:
        if tenant is not None:
            count = client.cancel_tenant(tenant)["cancelled_jobs"]
            show.console.print(f"{count} job{'s' * (count != 1)} of {tenant} cancelled", markup=False)
            return
        assert job is not None  # noqa: S101  told apart above
        for index in image or ():
            client.cancel_image(job, index)
        if not image:
            client.cancel(job)
        tell(client.job(job))


@app.command()
def pause(job: JobId, *, api: Api = DEFAULT_API) -> None:
    """Pause a job: nothing more of it is started, what is being rendered is finished."""
    with FarmClient(api) as client:
        tell(client.pause(job))


@app.command()
def resume(job: JobId, *, api: Api = DEFAULT_API) -> None:
    """Resume a paused job, in the place it had."""
    with FarmClient(api) as client:
        tell(client.resume(job))


@app.command()
def retry(job: JobId, *, api: Api = DEFAULT_API) -> None:
    """Try the failed images of a job again."""
    with FarmClient(api) as client:
        tell(client.retry(job))


def tell(job: dict[str, Any]) -> None:
    """Show a job as it stands."""
    show.console.print(show.job_table(job))
