"""`chatkeep owners` and `chatkeep erase`: all data of an owner."""

from typing import Annotated

import typer

from chatkeep.cli.options import DatabaseUrl, OwnerName, open_existing, store_url
from chatkeep.cli.terminal import out, run
from chatkeep.urls import without_secrets

app = typer.Typer(no_args_is_help=True, help="Owners of conversations.")


@app.command("rename")
def rename_owner(old: OwnerName, new: OwnerName, database_url: DatabaseUrl = None) -> None:
    """Move all data of an owner to another one, as with `rename local SUB` when authentication is switched on."""
    run(_rename_owner(store_url(database_url), old, new))


async def _rename_owner(url: str, old: str, new: str) -> None:
    async with open_existing(url) as store:
        count = await store.rename_owner(old, new)
        out.print(f"{count:,} conversations have a new owner")


def erase(
    owner: OwnerName,
    database_url: DatabaseUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Erase all data of an owner, and print the receipt as JSON. It cannot be undone."""
    url = store_url(database_url)
    if not yes:
        typer.confirm(f"Erase all data of {owner} from {without_secrets(url)}?", abort=True)
    run(_erase(url, owner))


async def _erase(url: str, owner: str) -> None:
    async with open_existing(url) as store:
        typer.echo((await store.erase_owner(owner)).model_dump_json(indent=2))
