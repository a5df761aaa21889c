"""`chatkeep recorder`: the pending messages and the dead letters in a recorder's journal."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import apsw
import typer
from pydantic import BaseModel

from chatkeep.cli.tables import print_json, print_table
from chatkeep.cli.terminal import confirm, err, local_time, out, print_error
from chatkeep.errors import ChatkeepError
from chatkeep.recorder.journal import (
    MAX_RID,
    Dead,
    JournalDamaged,
    Standing,
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
def status(
    file: JournalFile, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Show the pending messages, and the dead letters with their reasons. Exit code 1: there are dead letters."""
    with _opened(file) as journal:
        found, letters = standing(journal), dead_letters(journal)
    if as_json:
        print_json(_journal(found, letters))
    else:
        _print_status(found, letters)
    if letters:
        raise typer.Exit(1)


def _print_status(found: Standing, letters: list[Dead]) -> None:
    since = f", the oldest since {local_time(from_micros(found.oldest))}" if found.oldest is not None else ""
    out.print(f"{found.entries:,} messages wait for the store ({found.size:,} bytes){since}")
    out.print(f"{found.dead:,} dead letters")
    if letters:
        names = "NUMBER", "RECORDED", "CONVERSATION", "OWNER", "REASON"
        rows = [DeadLetter.of(each) for each in letters]
        print_table(names, [(str(r.number), r.recorded_at, str(r.conversation_id), r.owner_id, r.reason) for r in rows])


class DeadLetter(BaseModel):
    """A message that the store refused for good."""

    number: int
    recorded_at: datetime
    conversation_id: UUID
    owner_id: str
    reason: str

    @classmethod
    def of(cls, letter: Dead) -> "DeadLetter":
        """What is shown of it: not what it says."""
        owner, conversation_id = letter.entry.key
        return cls(
            number=letter.entry.rid,
            recorded_at=from_micros(letter.entry.recorded_at),
            conversation_id=conversation_id,
            owner_id=owner,
            reason=f"{letter.error}: {letter.reason}",
        )


class Journal(BaseModel):
    """What `status` shows as JSON."""

    pending: int
    pending_bytes: int
    oldest: datetime | None
    dead_letters: list[DeadLetter]


def _journal(found: Standing, letters: list[Dead]) -> Journal:
    return Journal(
        pending=found.entries,
        pending_bytes=found.size,
        oldest=None if found.oldest is None else from_micros(found.oldest),
        dead_letters=[DeadLetter.of(each) for each in letters],
    )


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
        confirm(f"Delete {len(numbers) if numbers else 'all'} dead letters of {file}?")
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
        confirm(f"Delete all messages of {owner!r} in {file}?")
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
    given = [max(0, min(each, MAX_RID)) for each in numbers or ()]  # SQLite takes no larger ones; nothing has these
    with _opened(file) as journal:
        count = change(journal, given or None)
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
        said = error if isinstance(error, ChatkeepError) else f"cannot open {file} as a journal: {error}"
        print_error(DAMAGED.format(file) if is_damage(error) else said)
        raise typer.Exit(1) from None
