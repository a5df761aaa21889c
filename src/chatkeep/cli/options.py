"""The options, the settings and the store that commands share."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from chatkeep.cli.terminal import note, print_error
from chatkeep.errors import InvalidInput
from chatkeep.settings import Settings, invalid_settings, misspelt_variables
from chatkeep.store import Store, file_path, open_store
from chatkeep.urls import split_url

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

Owner = Annotated[
    str,
    typer.Option(
        help="Owner of the conversations: the first argument of the library's calls, or the sub claim of a token."
        " `chatkeep owners list` shows who there is."
    ),
]

OwnerName = Annotated[str, typer.Argument(help="The owner: the sub claim of their tokens.")]


def load_settings() -> Settings:
    """Return the settings. Prints the invalid ones, and exits with code 1; warns of names that look misspelt."""
    for name, meant in misspelt_variables().items():
        note(f"Warning: {name} is not a setting, and is not read; did you mean {meant}?", "yellow")
    try:
        return Settings()
    except ValidationError as error:
        for reason in invalid_settings(error):
            print_error(reason)
        raise typer.Exit(1) from None


def store_url(given: str | None) -> str:
    """Return the URL of --database-url, or of the settings."""
    return load_settings().store_url if given is None else given


@asynccontextmanager
async def open_existing(url: str) -> AsyncIterator[Store]:
    """Open a store that has to exist: no file and no schema is created."""
    check_file(url)
    async with open_store(url, migrate=False) as store:
        await store.ping()
        yield store


def check_file(url: str, *, makes: bool = False) -> None:
    """Raise InvalidInput if `url` names a SQLite file that cannot be used. It may be missing if the command `makes` it.

    Nothing is opened: closing a file drops the locks that SQLite has on it.
    """
    if split_url(url).scheme != "sqlite" or not (name := file_path(url)):
        return
    file = Path(name)
    try:
        file = file.expanduser().absolute()
        exists, is_folder = file.exists(), file.is_dir()
    except (OSError, RuntimeError) as error:  # the second for ~NAME if there is no such user
        raise InvalidInput(f"cannot use {file}: {getattr(error, 'strerror', None) or error}") from None
    if is_folder:
        inside = f"{url.partition('?')[0].rstrip('/')}/chat.db"
        raise InvalidInput(f"{file} is a folder; name a file in it, such as {inside}")
    if exists:
        _check_access(file, os.R_OK | os.W_OK, "read and write")
    elif not makes:
        raise InvalidInput(
            f"there is no database {file}; `chatkeep import`, `ingest`, `serve` and `db upgrade` make one."
            " To use another one: --database-url sqlite:///FILE, or CHATKEEP_DATABASE_URL"
        )
    elif not file.parent.is_dir():
        raise InvalidInput(f"there is no folder {file.parent} for the database; make it first")
    else:
        _check_access(file.parent, os.W_OK | os.X_OK, "make a database in")


def _check_access(path: Path, mode: int, what: str) -> None:
    if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        raise InvalidInput(f"this user may not {what} {path}")
