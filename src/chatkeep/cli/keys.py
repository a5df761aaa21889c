"""`chatkeep keys`: API keys, for scripts."""

from datetime import timedelta
from typing import Annotated

import typer

from chatkeep.access import ApiKey
from chatkeep.cli.ids import HELP, key_of
from chatkeep.cli.options import DatabaseUrl, OwnerName, open_existing, store_url
from chatkeep.cli.tables import AsJson, Cell, print_json, print_table
from chatkeep.cli.terminal import note, one_line, refused, run, say
from chatkeep.keys import READ, SCOPES, WRITE, make_key

MAX_DAYS = 36_500
"""Most days until a key expires: a hundred years."""

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
    """Create an API key for an owner, and print it. It cannot be shown again.

    A server with CHATKEEP_AUTH=jwt takes it in place of a token. Only the key is on standard output: KEY=$(chatkeep
    keys create ada) keeps it in a variable.
    """
    if days is not None and days > MAX_DAYS:
        raise refused("--days", f"a key lasts at most {MAX_DAYS:,} days; without the option it does not expire")
    run(_create_key(store_url(database_url), owner, name, tuple(scope or ()), days))


async def _create_key(url: str, owner: str, name: str, scopes: tuple[str, ...], days: int | None) -> None:
    lifetime = None if days is None else timedelta(days=days)
    new = make_key(owner, name, scopes or (READ, WRITE), lifetime)
    async with open_existing(url) as store:
        await store.access.create_key(new.key, new.secret_hash)
    note("Keep it safe: it is not shown again. Send it as: Authorization: Bearer KEY")
    typer.echo(new.text)


@app.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Argument(help="Only keys of this owner.", show_default=False)] = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the API keys, without their secrets.

    In a pipe: id, owner, name, scopes, and the times when it was created, expires and was last used, with tabs.
    """
    run(_list_keys(store_url(database_url), owner, as_json=as_json))


async def _list_keys(url: str, owner: str | None, *, as_json: bool) -> None:
    async with open_existing(url) as store:
        found = await store.access.list_keys(owner)
    if as_json:
        print_json(*found)
    elif found:
        print_table(NAMES, [_row(key) for key in found])
    if not found:
        note("There are no API keys." if owner is None else f"{owner} has no API keys.")


NAMES = ("ID", "OWNER", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED")


def _row(key: ApiKey) -> tuple[Cell, ...]:
    times = key.created_at, key.expires_at, key.last_used_at
    return key.id, key.owner_id, key.name, " ".join(key.scopes), *times


@app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help=f"The key's id, as `keys list` shows it, {HELP}.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke an API key. It is refused from now on."""
    run(_revoke_key(store_url(database_url), key_id))


async def _revoke_key(url: str, key_id: str) -> None:
    async with open_existing(url) as store:
        key = await key_of(store, key_id)
        await store.access.revoke_key(key.id)
    named = f" ({key.name})" if key.name else ""
    say(one_line(f"revoked {key.id}{named} of {key.owner_id}"))
