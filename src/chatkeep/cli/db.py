"""`chatkeep db`: the schema of the database, and its distribution."""

from typing import Annotated

import typer
from pydantic import BaseModel

from chatkeep.cli.options import DatabaseUrl, check_file, open_existing, store_url
from chatkeep.cli.tables import AsJson, print_json
from chatkeep.cli.terminal import confirm, out, run, say
from chatkeep.store import open_store
from chatkeep.urls import without_secrets

app = typer.Typer(no_args_is_help=True, help="The schema of the database, and its distribution.")


class SchemaStatus(BaseModel):
    """What `status` shows."""

    database: str
    revision: str | None
    newest: str


@app.command()
def upgrade(database_url: DatabaseUrl = None) -> None:
    """Migrate the schema to the newest revision, and bring the search index up to date. Makes a missing SQLite file."""
    url = store_url(database_url)
    check_file(url, makes=True)
    run(_migrate(url, "head"))


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="Target revision; base removes all tables and data.")],
    database_url: DatabaseUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Migrate the schema back to a revision. Data that only newer revisions can hold is lost."""
    url = store_url(database_url)
    check_file(url)
    if not yes:
        confirm(f"Migrate {without_secrets(url)} back to {revision}? Data may be lost.")
    run(_migrate(url, revision))


@app.command()
def status(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Show the revision of the schema. Exit code 1: it is not the newest."""
    url = store_url(database_url)
    check_file(url)
    found = run(_status(url))
    if as_json:
        print_json(found)
    else:
        say(f"{found.database}: revision {found.revision or 'none'}, newest {found.newest}")
    if found.revision != found.newest:
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
        say(f"{without_secrets(url)}: revision {await store.schema_revision() or 'none'}")


async def _status(url: str) -> SchemaStatus:
    async with open_store(url, migrate=False) as store:
        revision = await store.schema_revision()
        return SchemaStatus(database=without_secrets(url), revision=revision, newest=store.newest_revision)
