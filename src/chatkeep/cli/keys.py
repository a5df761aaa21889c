"""`chatkeep keys`: API keys, for scripts."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table

from chatkeep.cli.options import DatabaseUrl, OwnerName, existing, store_url
from chatkeep.cli.terminal import err, out, plain, run, when
from chatkeep.errors import NotFound
from chatkeep.keys import READ, WRITE, make_key

app = typer.Typer(no_args_is_help=True, help="API keys, for scripts.")


@app.command("create")
def create_key(
    owner: OwnerName,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="chatkeep:read, chatkeep:write, chatkeep:admin; may be given again. [read and write]"),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days that it is valid for. [for ever]")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an API key for an owner and show it: this once."""
    run(_create_key(store_url(database_url), owner, name, tuple(scope or ()), days))


async def _create_key(url: str, owner: str, name: str, scopes: tuple[str, ...], days: int | None) -> None:
    lifetime = None if days is None else timedelta(days=days)
    new = make_key(owner, name, scopes or (READ, WRITE), lifetime)
    async with existing(url) as store:
        await store.access.create_key(new.key, new.secret_hash)
    err.print("Keep it safe: it is not shown again. Send it as: Authorization: Bearer KEY")
    typer.echo(new.text)


@app.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Argument(help="Only this owner's.", show_default=False)] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the API keys, without their secrets."""
    run(_list_keys(store_url(database_url), owner))


async def _list_keys(url: str, owner: str | None) -> None:
    async with existing(url) as store:
        found = await store.access.list_keys(owner)
    table = Table("id", "owner", "name", "scopes", "made", "expires", "last used", box=None)
    for key in found:
        times = (when(moment) if moment else "-" for moment in (key.expires_at, key.last_used_at))
        table.add_row(key.id, plain(key.owner_id), plain(key.name), " ".join(key.scopes), when(key.created_at), *times)
    out.print(table if found else "There are no API keys.")


@app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id, as `keys list` shows it.")], database_url: DatabaseUrl = None
) -> None:
    """Revoke an API key: it is refused from now on."""
    run(_revoke_key(store_url(database_url), key_id))


async def _revoke_key(url: str, key_id: str) -> None:
    async with existing(url) as store:
        if not await store.access.revoke_key(key_id):
            raise NotFound("there is no API key with this id; `chatkeep keys list` shows them", got=key_id)
    out.print("revoked")
