"""`farm webhooks`: what became of a job's webhooks, and a test of a receiver."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cli import show
from cli.client import DEFAULT_API, FarmClient
from cli.exits import CliError
from cli.options import Api, JobId

app = typer.Typer(help="Webhooks: signed messages about jobs.", no_args_is_help=True)


@app.command(name="test")
def ping(
    url: Annotated[str, typer.Argument(metavar="URL", help="The receiver, as a job's webhook names it.")],
    *,
    api: Api = DEFAULT_API,
) -> None:
    """Have the farm send a signed `farm.ping` to a receiver, and say what it answered."""
    with FarmClient(api) as client:
        told = client.test_webhook(url)
    if not told.get("delivered"):
        raise CliError(f"{url}: {told.get('error')}")
    took = f"after {told.get('duration_s', 0):.2f} s"
    show.console.print(f"answered {told.get('status')} {took}; it was sent as {told.get('id')}", highlight=False)


@app.command(name="list")
def list_webhooks(job: JobId, *, api: Api = DEFAULT_API) -> None:
    """Show how far the webhooks of a job have got."""
    with FarmClient(api) as client:
        found = client.job_webhooks(job)
    if not found:
        show.console.print("[dim]the job has no webhook[/]")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("event", "state", "tries", "status", "last try", "reason"):
        table.add_column(name, no_wrap=name != "reason")
    for each in found:
        tried = each.get("tried_at")
        table.add_row(
            escape(str(each.get("event"))),
            escape(str(each.get("state"))),
            str(each.get("tries", 0)),
            str(each.get("status") or "-"),
            f"{show.age(tried)} ago" if tried else "-",
            escape(str(each.get("error") or "")),
        )
    show.console.print(table)
