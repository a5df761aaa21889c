"""`chatkeep recorder`: the pending messages and the dead letters in a recorder's journal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import apsw
import typer
from rich.table import Table

from chatkeep.cli.terminal import err, escaped, local_time, out, print_error
from chatkeep.errors import ChatkeepError
from chatkeep.recorder.journal import Dead, dead_letters, drop, open_journal, revive, standing
from chatkeep.values import from_micros

app = typer.Typer(no_args_is_help=True, help="The journal of a recorder. Works while it records.")

JournalFile = Annotated[Path, typer.Argument(help="The journal's file.")]
Numbers = Annotated[
    list[int] | None,
    typer.Argument(help="Numbers of dead letters, as `status` shows them. Default: all.", show_default=False),
]


@app.command()
def status(file: JournalFile) -> None:
    """Show the pending messages, and the dead letters with their reasons. Exit code 1: there are dead letters."""
    with _opened(file) as journal:
        found, letters = standing(journal), dead_letters(journal)
    since = f", the oldest since {local_time(from_micros(found.oldest))}" if found.oldest is not None else ""
    out.print(f"{found.entries:,} messages wait for the store ({found.size:,} bytes){since}")
    out.print(f"{found.dead:,} dead letters")
    if letters:
        out.print(_table(letters))
        raise typer.Exit(1)


def _table(letters: list[Dead]) -> Table:
    table = Table("number", "recorded", "owner", "conversation", "reason", box=None)
    for letter in letters:
        owner, conversation_id = letter.key
        reason = escaped(f"{letter.error}: {letter.reason}")
        table.add_row(
            str(letter.rid), local_time(from_micros(letter.recorded_at)), escaped(owner), str(conversation_id), reason
        )
    return table


@app.command()
def retry(file: JournalFile, numbers: Numbers = None) -> None:
    """Deliver dead letters again, in their old order. Use it when the reason is gone."""
    _change(file, numbers, revive, "dead letters are delivered again")


@app.command("drop")
def drop_(
    file: JournalFile,
    numbers: Numbers = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete dead letters. It cannot be undone."""
    if not yes:
        typer.confirm(f"Delete {len(numbers) if numbers else 'all'} dead letters of {file}?", abort=True)
    _change(file, numbers, drop, "dead letters are deleted")


def _change(
    file: Path, numbers: list[int] | None, change: Callable[[apsw.Connection, list[int] | None], int], done: str
) -> None:
    with _opened(file) as journal:
        count = change(journal, numbers or None)
    out.print(f"{count:,} {done}")
    if numbers and count < len(set(numbers)):
        err.print("There is no dead letter with some of these numbers; `status` shows them.", style="red")
        raise typer.Exit(1)


@contextmanager
def _opened(file: Path) -> Iterator[apsw.Connection]:
    try:
        journal = open_journal(file)
    except ChatkeepError as error:
        print_error(error)
        raise typer.Exit(1) from None
    try:
        yield journal
    finally:
        journal.close()
