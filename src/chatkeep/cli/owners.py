"""`chatkeep owners` and `chatkeep erase`: who has conversations, and all data of an owner."""

from shlex import quote
from typing import Annotated

import typer
from pydantic import BaseModel

from chatkeep.cli.options import DatabaseUrl, OwnerName, check_file, open_existing, store_url
from chatkeep.cli.tables import AsJson, print_json, print_table
from chatkeep.cli.terminal import confirm, note, one_line, out, run
from chatkeep.store import Store
from chatkeep.urls import without_secrets

app = typer.Typer(no_args_is_help=True, help="Owners of conversations.")

NAMED = 5
"""Owners that are named if a list is empty."""


class OwnerLine(BaseModel):
    """An owner in the list."""

    owner_id: str
    conversations: int


@app.command("list")
def list_owners(
    database_url: DatabaseUrl = None,
    after: Annotated[str, typer.Option(help="Only owners after this one: the last of the list before.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most owners to list.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the owners of conversations, and how many each has.

    An owner is the first argument of the library's calls, the sub claim of a token, or local: the only one of a
    server without authentication, and what the commands take without --owner.
    """
    run(_list_owners(store_url(database_url), after, limit, as_json=as_json))


async def _list_owners(url: str, after: str, limit: int, *, as_json: bool) -> None:
    async with open_existing(url) as store:
        found = await store.access.list_owners(after=after, limit=limit + 1)
        lines = [await _line(store, owner) for owner in found[:limit]]
    if as_json:
        print_json(*lines)
    elif lines:
        print_table(("CONVERSATIONS", "OWNER"), [(each.conversations, each.owner_id) for each in lines])
    if not lines:
        note(f"Nobody has a conversation in {without_secrets(url)}.")
    elif len(found) > limit:
        note(f"There are more: --after {quote(lines[-1].owner_id)}, or --limit.", "dim")


async def _line(store: Store, owner: str) -> OwnerLine:
    page = await store.list_conversations(owner, limit=1, total=True)
    return OwnerLine(owner_id=owner, conversations=page.total or 0)


async def who_there_is(store: Store, owner: str) -> str:
    """Return how to name another owner, as the end of a sentence about one who does not have what is looked for."""
    found = [each for each in await store.access.list_owners(limit=NAMED + 2) if each != owner]
    if not found:
        return "; there is no other owner in this database"
    more = ", and others: `chatkeep owners list`" if len(found) > NAMED else ""
    return f"; --owner names another one: {', '.join(map(one_line, found[:NAMED]))}{more}"


@app.command("rename")
def rename_owner(old: OwnerName, new: OwnerName, database_url: DatabaseUrl = None) -> None:
    """Move all data of an owner to another one, as with `rename local SUB` when authentication is switched on."""
    run(_rename_owner(store_url(database_url), old, new))


async def _rename_owner(url: str, old: str, new: str) -> None:
    async with open_existing(url) as store:
        count = await store.rename_owner(old, new)
        out.print(f"{count:,} conversations have a new owner")
        if not count:
            note(f"{old} had none; `chatkeep owners list` shows who has.")


def erase(
    owner: OwnerName,
    database_url: DatabaseUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Erase all data of an owner, and print the receipt as JSON. It cannot be undone."""
    url = store_url(database_url)
    check_file(url)
    if not yes:
        confirm(f"Erase all data of {owner} from {without_secrets(url)}?")
    run(_erase(url, owner))


async def _erase(url: str, owner: str) -> None:
    async with open_existing(url) as store:
        typer.echo((await store.erase_owner(owner)).model_dump_json(indent=2))
