"""`chatkeep import` and `export`: conversations in and out."""

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO
from uuid import UUID

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from chatkeep.cli.input import MAX_LINE_BYTES, check_inputs, open_input, read_lines
from chatkeep.cli.options import DatabaseUrl, Owner, check_file, open_existing, store_url
from chatkeep.cli.output import opened_target, refuse_own_file
from chatkeep.cli.owners import who_there_is
from chatkeep.cli.stopping import Stop, stoppable
from chatkeep.cli.terminal import err, note, out
from chatkeep.formats.jsonl import Imported, export_lines, import_lines
from chatkeep.model import UPDATABLE
from chatkeep.settings import LOCAL_OWNER
from chatkeep.store import Store, open_store

PROGRESS_SECONDS = 0.1
"""Time between two updates of the progress bar."""


@dataclass(frozen=True)
class _Options:
    """How files are imported."""

    owner: str
    update: bool
    max_line_bytes: int
    stop: Stop


@dataclass
class _Totals:
    """The counts of an import so far."""

    messages: int = 0
    new: int = 0
    known: int = 0
    changed: int = 0
    refused: int = 0

    def __str__(self) -> str:
        named = ((self.new, "new"), (self.known, "known"), (self.changed, "changed"), (self.refused, "refused"))
        return ", ".join(f"{count:,} {name}" for count, name in named)


def import_(
    files: Annotated[list[Path], typer.Argument(help="JSONL files, optionally gzipped. - is standard input.")],
    database_url: DatabaseUrl = None,
    owner: Owner = LOCAL_OWNER,
    update: Annotated[
        bool, typer.Option("--update", help="Take over title, metadata, deletions, answers and head where they differ.")
    ] = False,
    max_line_bytes: Annotated[
        int, typer.Option(min=1, help="Longest line, in bytes, which is held in memory with what it says.")
    ] = MAX_LINE_BYTES,
) -> None:
    """Import conversations, one per line, with their branches, tool calls and times.

    Importing again stores only what is new, and says what differs. The thread that is visible goes on with new
    messages that follow it; otherwise it moves with --update only. A line that cannot be stored is reported with its
    number, and the import continues; the exit code is 1 then.
    """
    # An import allocates millions of objects and no cycles: the collector took a third of the time.
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)
    totals = _Totals()
    url = store_url(database_url)
    check_file(url, makes=True)
    check_inputs(files)
    with stoppable(lambda: f"run it again to go on. Conversations so far: {totals}") as stop:
        seconds = stop.run(_import(files, url, _Options(owner, update, max_line_bytes, stop), totals))
    rate = totals.messages / seconds
    out.print(
        f"{totals.messages:,} messages in {seconds:.1f} s ({rate:,.0f}/s); conversations: {totals}",
        style="red" if totals.refused else None,
        soft_wrap=True,
    )
    if totals.refused:
        raise typer.Exit(1)


async def _import(files: list[Path], url: str, options: _Options, totals: _Totals) -> float:
    """Return the seconds until everything was stored and indexed, and the store closed."""
    async with open_store(url) as store:
        started = time.monotonic()
        with _progress() as progress:
            for file in files:
                await _import_file(store, file, options, totals, progress)
    return time.monotonic() - started


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        console=err,
        disable=not err.is_terminal,
    )


async def _import_file(store: Store, file: Path, options: _Options, totals: _Totals, progress: Progress) -> None:
    started, before = time.monotonic(), totals.messages
    name, size, raw = open_input(file)
    task = progress.add_task(name, total=size, done="")

    def report(number: int | None, reason: str) -> None:
        totals.refused += 1
        place = name if number is None else f"{name}:{number}"
        note(f"{place}: {reason}", "red")

    with raw:
        shown = started
        lines = options.stop.each(read_lines(raw, report, options.max_line_bytes))
        async for result in import_lines(store, options.owner, lines, update=options.update):
            _count(result, totals, name, update=options.update)
            if time.monotonic() - shown >= PROGRESS_SECONDS:
                shown = time.monotonic()
                _update(progress, task, totals.messages - before, started, raw.tell() if size else None)
    _update(progress, task, totals.messages - before, started, size or 1)
    progress.update(task, total=size or 1)


def _count(result: Imported, totals: _Totals, name: str, *, update: bool) -> None:
    if result.error is not None:
        totals.refused += 1
        note(f"{name}:{result.number}: {result.error}", "red")
    if (receipt := result.receipt) is None:
        return
    totals.messages += receipt.messages
    if receipt.created:
        totals.new += 1
    elif receipt.messages or receipt.differences:
        totals.changed += 1
    else:
        totals.known += 1
    if left := receipt.left:
        verb = "differs" if len(left) == 1 else "differ"
        updatable = [each for each in left if each in UPDATABLE and not update]
        hint = f"; --update takes over {' and '.join(updatable)}" if updatable else ""
        said = f"{name}:{result.number}: {' and '.join(left)} {verb} here{hint}"
        note(said, "yellow")


def _update(progress: Progress, task: TaskID, messages: int, started: float, position: int | None) -> None:
    rate = messages / max(time.monotonic() - started, 0.001)
    progress.update(task, completed=position or 0, done=f"{messages:,} messages, {rate:,.0f}/s")


def export(
    file: Annotated[
        Path | None, typer.Argument(help="Target file; .gz compresses. - is standard output, and the default.")
    ] = None,
    database_url: DatabaseUrl = None,
    owner: Owner = LOCAL_OWNER,
) -> None:
    """Export conversations without loss, one per line, in the format that `import` reads.

    Others may write meanwhile: each conversation is as it was when its turn came. One that cannot be read is named,
    the others are exported, and the exit code is 1.
    """
    url = store_url(database_url)
    check_file(url)
    refuse_own_file(url, file)
    incomplete = "the export is not complete, and has replaced no file"
    with stoppable(lambda: incomplete) as stop, opened_target(file) as target:
        failures = stop.run(_export(target, url, owner, stop))
    if failures:
        raise typer.Exit(1)


async def _export(target: BinaryIO, url: str, owner: str, stop: Stop) -> int:
    async with open_existing(url) as store:
        return await _write(store, owner, target, stop)


async def _write(store: Store, owner: str, target: BinaryIO, stop: Stop) -> int:
    """Write an export, name what cannot be read, and count that."""
    failures, is_empty = 0, True

    def failed(id_: UUID, error: Exception) -> None:
        nonlocal failures
        failures += 1
        note(f"{id_}: not exported: {error}", "red")

    async for piece in export_lines(store, owner, failed=failed):
        with stop.blocking():
            target.write(piece)
        is_empty = False
    with stop.blocking():
        target.flush()
    if is_empty and not failures:
        note(f"{owner} has no conversation to export{await who_there_is(store, owner)}")
    return failures
