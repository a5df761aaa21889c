"""`chatkeep backup`: a copy of a store in use."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from chatkeep.cli.options import DatabaseUrl, check_file, store_url
from chatkeep.cli.stopping import stoppable
from chatkeep.cli.terminal import err, out, print_error
from chatkeep.errors import ChatkeepError
from chatkeep.store import Backup, open_store


def backup(
    file: Annotated[Path, typer.Argument(help="The copy. An existing one is replaced when the new one is complete.")],
    database_url: DatabaseUrl = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Read the copy again and check it before it gets its name.")
    ] = True,
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Make no copy; check the one in FILE.")] = False,
) -> None:
    """Copy a SQLite store, with everything in it, while it is in use.

    The copy is a database of its own: restore it with --database-url sqlite:///FILE. For PostgreSQL and MongoDB use
    their own tools; docs/backup.md has the commands.
    """
    if verify_only:
        _print(file, _check(file), verified=True)
        return
    url = store_url(database_url)
    check_file(url)
    with stoppable(lambda: f"{file} was not written") as stop:
        copied = stop.run(_backup(file, url, verify))
    _print(file, copied, verified=verify)


async def _backup(file: Path, url: str, verify: bool) -> Backup:  # noqa: FBT001 - as the option is
    async with open_store(url, migrate=False) as store:
        with _progress() as progress:
            task = progress.add_task("copying", total=None)

            def update(done: int, size: int) -> None:
                progress.update(task, completed=done, total=size)
                if verify and done == size:
                    progress.add_task("verifying", total=None)

            return await store.backup(file, verify=verify, progress=update)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    return Progress(*columns, console=err, disable=not err.is_terminal)


def _check(file: Path) -> Backup:
    from chatkeep.stores.sqlite.backup import check  # takes APSW, which other databases need not have

    try:
        return check(file)
    except ChatkeepError as error:
        print_error(error)
        raise typer.Exit(1) from None


def _print(file: Path, found: Backup, *, verified: bool) -> None:
    counts = f"{found.owners:,} owners, {found.conversations:,} conversations, {found.messages:,} messages"
    state = "intact" if verified else "not verified"
    out.print(f"{file}: {counts}, revision {found.revision}, {state}", markup=False, soft_wrap=True)
