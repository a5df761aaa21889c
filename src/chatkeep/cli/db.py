"""`chatkeep db`: the schema of the database, and its distribution."""

from typing import Annotated

import typer

from chatkeep.cli.options import DatabaseUrl, open_existing, store_url
from chatkeep.cli.terminal import out, run
from chatkeep.store import open_store
from chatkeep.urls import without_secrets

app = typer.Typer(no_args_is_help=True, help="The schema of the database, and its distribution.")


@app.command()
def upgrade(database_url: DatabaseUrl = None) -> None:
    """Migrate the schema to the newest revision, and bring the search index up to date."""
    run(_migrate(store_url(database_url), "head"))


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="Target revision; base removes all tables and data.")],
    database_url: DatabaseUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Migrate the schema back to a revision. Data that only newer revisions can hold is lost."""
    if not yes:
        typer.confirm(
            f"Migrate {without_secrets(store_url(database_url))} back to {revision}? Data may be lost.", abort=True
        )
    run(_migrate(store_url(database_url), revision))


@app.command()
def status(database_url: DatabaseUrl = None) -> None:
    """Show the revision of the schema. Exit code 1: it is not the newest."""
    url = store_url(database_url)
    revision, newest = run(_revision(url))
    out.print(f"{without_secrets(url)}: revision {revision or 'none'}, newest {newest}", soft_wrap=True, markup=False)
    if revision != newest:
        raise typer.Exit(1)


@app.command()
def distribute(database_url: DatabaseUrl = None) -> None:
    """Distribute the data by owner over a Citus cluster or the shards of a MongoDB cluster. Idempotent."""
    run(_distribute(store_url(database_url)))


async def _distribute(url: str) -> None:
    async with open_existing(url) as store:
        distributed = await store.distribute()
        out.print(f"distributed: {', '.join(distributed)}" if distributed else "everything is distributed already")


async def _migrate(url: str, revision: str) -> None:
    async with open_store(url, migrate=False) as store:
        await store.migrate(revision)
        revision = await store.schema_revision() or "none"
        out.print(f"{without_secrets(url)}: revision {revision}", soft_wrap=True, markup=False)


async def _revision(url: str) -> tuple[str | None, str]:
    async with open_store(url, migrate=False) as store:
        return await store.schema_revision(), store.newest_revision
