"""`chatkeep keys`: API keys, for scripts."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table

from chatkeep.cli.options import DatabaseUrl, OwnerName, open_existing, store_url
from chatkeep.cli.terminal import err, escaped, local_time, out, run
from chatkeep.errors import NotFound
from chatkeep.keys import READ, SCOPES, WRITE, make_key

app = typer.Typer(no_args_is_help=True, help="API keys, for scripts.")


@app.command("create")
def create_key(
    owner: OwnerName,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(SCOPES)}; repeatable. Default: read and write."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until the key expires. Default: never.")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create an API key for an owner, and print it. It cannot be shown again."""
    run(_create_key(store_url(database_url), owner, name, tuple(scope or ()), days))


async def _create_key(url: str, owner: str, name: str, scopes: tuple[str, ...], days: int | None) -> None:
    lifetime = None if days is None else timedelta(days=days)
    new = make_key(owner, name, scopes or (READ, WRITE), lifetime)
    async with open_existing(url) as store:
        await store.access.create_key(new.key, new.secret_hash)
    err.print("Keep it safe: it is not shown again. Send it as: Authorization: Bearer KEY")
    typer.echo(new.text)


@app.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Argument(help="Only keys of this owner.", show_default=False)] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the API keys, without their secrets."""
    run(_list_keys(store_url(database_url), owner))


async def _list_keys(url: str, owner: str | None) -> None:
    async with open_existing(url) as store:
        found = await store.access.list_keys(owner)
    table = Table("id", "owner", "name", "scopes", "created", "expires", "last used", box=None)
    for key in found:
        times = (local_time(time) if time else "-" for time in (key.created_at, key.expires_at, key.last_used_at))
        table.add_row(key.id, escaped(key.owner_id), escaped(key.name), " ".join(key.scopes), *times)
    out.print(table if found else "There are no API keys.")


@app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke an API key. It is refused from now on."""
    run(_revoke_key(store_url(database_url), key_id))


async def _revoke_key(url: str, key_id: str) -> None:
    async with open_existing(url) as store:
        if not await store.access.revoke_key(key_id):
            raise NotFound("there is no API key with this id; `chatkeep keys list` shows them", got=key_id)
    out.print("revoked")
