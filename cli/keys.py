"""`farm keys`: who may use the farm, and for what. The operator's key makes the others: FARM_API_KEY names it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import show
from cli.client import DEFAULT_API, FarmClient
from cli.options import Api

app = typer.Typer(help="API keys: made, listed, revoked.", invoke_without_command=True)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="A key's id.")]


@app.callback()
def keys(context: typer.Context, *, api: Api = DEFAULT_API) -> None:
    """List the keys; or make or revoke one."""
    if context.invoked_subcommand is None:
        list_keys(api=api)


@app.command(name="list")
def list_keys(*, api: Api = DEFAULT_API) -> None:
    """List the keys that were made, and when they were used."""
    with FarmClient(api) as client:
        show.console.print(show.keys_table(client.keys()))


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for; people read it.")],
    *,
    tenant: Annotated[str | None, typer.Option(help="Whose jobs it makes and sees.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(metavar="SCOPE", help="read, submit, metrics or operator; may be repeated.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="When it ends, such as 2027-01-31T00:00:00Z.")
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option(metavar="N", help="Requests a minute; others are told to wait.")
    ] = None,
    api: Api = DEFAULT_API,
) -> None:
    """Make a key, and print it: it is shown once, so keep it."""
    given = {
        "name": name,
        "tenant": tenant,
        "scopes": scope or None,
        "expires_at": expires,
        "max_requests_per_minute": per_minute,
    }
    body: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    with FarmClient(api) as client:
        made = client.create_key(body)
    show.errors.print(
        f"key {made['id']} of tenant {made['tenant']} ({', '.join(made['scopes'])}); it is not shown again"
    )
    # Alone on standard output, as a script wants it.
    show.console.print(made["key"], markup=False)


@app.command()
def revoke(key_id: KeyId, *, api: Api = DEFAULT_API) -> None:
    """Revoke a key: within seconds it opens nothing any more."""
    with FarmClient(api) as client:
        show.console.print(show.keys_table([client.revoke_key(key_id)]))
