"""`chatkeep recorder`: the pending messages and the dead letters in a recorder's journal."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import apsw
import typer
from rich.table import Table

from chatkeep.cli.terminal import err, escaped, local_time, out, print_error
from chatkeep.errors import ChatkeepError
from chatkeep.recorder.journal import (
    Dead,
    JournalDamaged,
    dead_letters,
    drop,
    erase_owner,
    is_damage,
    open_journal,
    revive,
    standing,
)
from chatkeep.values import from_micros

DAMAGED = "{}: the journal is damaged; a recorder that is started with it recovers what can be read"
STILL_THERE = "{} is left of a damaged journal, and may have messages of the owner; delete it if nobody needs it"

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
        entry, (owner, conversation_id) = letter.entry, letter.entry.key
        reason = escaped(f"{letter.error}: {letter.reason}")
        recorded = local_time(from_micros(entry.recorded_at))
        table.add_row(str(entry.rid), recorded, escaped(owner), str(conversation_id), reason)
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


@app.command()
def erase(
    file: JournalFile,
    owner: Annotated[str, typer.Argument(help="Whose messages are deleted.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete what an owner said from a journal: pending messages and dead letters. It cannot be undone.

    After `chatkeep erase` a recorder does it by itself, when it next comes to them. Exit code 1: files of a damaged
    journal are left, which it does not change.
    """
    if not yes:
        typer.confirm(f"Delete all messages of {owner!r} in {file}?", abort=True)
    with _opened(file) as journal:
        entries, dead = erase_owner(journal, owner)
    out.print(f"{entries:,} pending messages and {dead:,} dead letters are deleted")
    left = sorted(path for suffix in ("damaged-*", "recovering*") for path in file.parent.glob(f"{file.name}.{suffix}"))
    for path in left:
        print_error(STILL_THERE.format(path))
    if left:
        raise typer.Exit(1)


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
        with closing(journal):
            yield journal
    except (ChatkeepError, apsw.Error, JournalDamaged) as error:
        print_error(DAMAGED.format(file) if is_damage(error) else error)
        raise typer.Exit(1) from None
