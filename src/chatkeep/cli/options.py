"""What every command that opens a store begins with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from pydantic import ValidationError

from chatkeep.cli.terminal import err
from chatkeep.settings import Settings
from chatkeep.store import Store, open_store

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="sqlite:///FILE. Default: CHATKEEP_DATABASE_URL, or else a file in your data folder.", show_default=False
    ),
]

OwnerName = Annotated[str, typer.Argument(help="The owner: the sub of their tokens.")]


def given_settings() -> Settings:
    """The settings; one that is not valid is a sentence, without its value."""
    try:
        return Settings()
    except ValidationError as error:
        for each in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in each["loc"]).upper()
            text = str(each.get("ctx", {}).get("error") or f"CHATKEEP_{name}: {each['msg']}")
            err.print(f"Error: {text}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def store_url(given: str | None) -> str:
    return given or given_settings().store_url


@asynccontextmanager
async def existing(url: str) -> AsyncIterator[Store]:
    """A store that is only read: a file that is not there is not made."""
    async with open_store(url, migrate=False) as store:
        await store.ping()
        yield store
