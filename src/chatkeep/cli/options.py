"""The options, the settings and the store that commands share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from pydantic import ValidationError

from chatkeep.cli.terminal import print_error
from chatkeep.settings import Settings
from chatkeep.store import Store, open_store
from chatkeep.validation import all_wrong

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="sqlite:///FILE, postgresql://HOST/NAME or mongodb://HOST/NAME."
        " Default: CHATKEEP_DATABASE_URL, or else an SQLite file in your data folder.",
        show_default=False,
    ),
]

EmbedderName = Annotated[
    str | None,
    typer.Option(
        help="What makes vectors of documents: none, local, or a name such as openai:text-embedding-3-small."
        " Default: CHATKEEP_EMBEDDER, or else none.",
        show_default=False,
    ),
]

OwnerName = Annotated[str, typer.Argument(help="The owner: the sub claim of their tokens.")]


def load_settings() -> Settings:
    """Return the settings. Prints the invalid ones without their values, and exits with code 1."""
    try:
        return Settings()
    except ValidationError as error:
        for each in all_wrong(error):
            print_error(f"CHATKEEP_{str(each.loc[0]).upper()}: {each.message}" if each.loc else each.message)
        raise typer.Exit(1) from None


def store_url(given: str | None) -> str:
    """Return the URL of --database-url, or of the settings."""
    return given or load_settings().store_url


@asynccontextmanager
async def open_existing(url: str) -> AsyncIterator[Store]:
    """Open a store that has to exist: no file and no schema is created."""
    async with open_store(url, migrate=False) as store:
        await store.ping()
        yield store
