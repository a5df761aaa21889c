"""`chatkeep db`: the schema of the database."""

from typing import Annotated

import typer

from chatkeep.cli.options import DatabaseUrl, existing, store_url
from chatkeep.cli.terminal import out, run
from chatkeep.store import open_store, without_password

app = typer.Typer(no_args_is_help=True, help="The database's schema.")


@app.command()
def upgrade(database_url: DatabaseUrl = None) -> None:
    """Bring the schema to the newest revision, and the search index up to date."""
    run(_migrate(store_url(database_url), "head"))


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="The revision to go back to; base removes all tables and data.")],
    database_url: DatabaseUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take the schema back to a revision. What only newer revisions can hold is lost."""
    if not yes:
        typer.confirm(
            f"Take {without_password(store_url(database_url))} back to {revision}? Data may be lost.", abort=True
        )
    run(_migrate(store_url(database_url), revision))


@app.command()
def status(database_url: DatabaseUrl = None) -> None:
    """Say at which revision the schema is. Exit code 1: not at the newest."""
    url = store_url(database_url)
    revision, newest = run(_revision(url))
    out.print(f"{without_password(url)}: revision {revision or 'none'}, newest {newest}", soft_wrap=True, markup=False)
    if revision != newest:
        raise typer.Exit(1)


@app.command()
def distribute(database_url: DatabaseUrl = None) -> None:
    """Spread the data over the machines of a Citus cluster or the shards of a MongoDB, by owner. Safe to run again."""
    run(_distribute(store_url(database_url)))


async def _distribute(url: str) -> None:
    async with existing(url) as store:
        spread = await store.distribute()
        out.print(f"distributed: {', '.join(spread)}" if spread else "everything is distributed already")


async def _migrate(url: str, revision: str) -> None:
    async with open_store(url, migrate=False) as store:
        await store.migrate(revision)
        revision = await store.schema_revision() or "none"
        out.print(f"{without_password(url)}: revision {revision}", soft_wrap=True, markup=False)


async def _revision(url: str) -> tuple[str | None, str]:
    async with open_store(url, migrate=False) as store:
        return await store.schema_revision(), store.newest_revision
