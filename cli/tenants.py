"""`farm tenants`: whose work the farm does, and how much of it each may take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import show
from cli.client import DEFAULT_API, FarmClient
from cli.exits import CliError, Exit
from cli.options import Api

app = typer.Typer(help="Tenants: their limits, and their use of the farm.", invoke_without_command=True)


@app.callback()
def tenants(context: typer.Context, *, api: Api = DEFAULT_API) -> None:
    """List the tenants; or set the limits of one."""
    if context.invoked_subcommand is None:
        with FarmClient(api) as client:
            show.console.print(show.tenants_table(client.tenants()))


@app.command(name="set")
def set_limits(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A tenant.")],
    *,
    weight: Annotated[float | None, typer.Option(help="Its share of GPU time beside others that have work.")] = None,
    max_queued: Annotated[
        str | None, typer.Option(metavar="N|none", help="Images that may wait; a job beyond is refused.")
    ] = None,
    max_running: Annotated[
        str | None, typer.Option(metavar="N|none", help="Images that may be rendered at once.")
    ] = None,
    api: Api = DEFAULT_API,
) -> None:
    """Set limits of a tenant; those that are not named stay as they are."""
    changed: dict[str, Any] = {}
    if weight is not None:
        changed["weight"] = weight
    if max_queued is not None:
        changed["max_queued_images"] = limit_of(max_queued, option="--max-queued")
    if max_running is not None:
        changed["max_running"] = limit_of(max_running, option="--max-running")
    if not changed:
        raise CliError("nothing to set: name --weight, --max-queued or --max-running", code=Exit.USAGE)
    with FarmClient(api) as client:
        # The API sets all limits at once.
        before = client.tenant(name)
        kept = {limit: before.get(limit) for limit in ("weight", "max_queued_images", "max_running")}
        show.console.print(show.tenants_table([client.set_tenant(name, {**kept, **changed})]))


def limit_of(text: str, *, option: str) -> int | None:
    """Return the number of a limit, None for `none`. Raises CliError."""
    if text == "none":
        return None
    if text.isdecimal():
        return int(text)
    raise CliError(f"{option} takes a number or none, not {text!r}", code=Exit.USAGE)
