"""The command line: what people do with a store from a terminal."""

import errno
import gc
import gzip
import os
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from chatkeep.cli_recorder import app as recorder
from chatkeep.errors import InvalidInput, NotFound
from chatkeep.formats.jsonl import Imported, export_lines, import_lines
from chatkeep.model import Conversation, Message
from chatkeep.settings import LOCAL_OWNER, Settings
from chatkeep.store import Store, open_store, without_password
from chatkeep.terminal import err, out, plain, run, when

SHOW_SECONDS = 0.1
"""How often the progress of an import is shown."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
db = typer.Typer(no_args_is_help=True, help="The database's schema.")
keys = typer.Typer(no_args_is_help=True, help="API keys, for scripts.")
owners = typer.Typer(no_args_is_help=True, help="Those whose conversations these are.")
for name, group in (("db", db), ("keys", keys), ("owners", owners), ("recorder", recorder)):
    app.add_typer(group, name=name)

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="sqlite:///FILE. Default: CHATKEEP_DATABASE_URL, or else a file in your data folder.", show_default=False
    ),
]


def _version(*, wanted: bool) -> None:
    if wanted:
        out.print(f"chatkeep {version('chatkeep')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=lambda value: _version(wanted=value), is_eager=True)
    ] = False,
) -> None:
    """Keep the conversations of AI applications: none lost, none doubled, none out of order."""


# --- serve -----------------------------------------------------------------------------------------------


@app.command()
def serve(
    database_url: DatabaseUrl = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [8765]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes that serve. [1]")] = None,
) -> None:
    """Serve the REST API. Ctrl-C finishes what is under way and stops.

    Without CHATKEEP_AUTH=jwt there is one user, local, and the server listens on this machine only.
    """
    given = {"database_url": database_url, "host": host, "port": port, "workers": workers}
    settings = _settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    _refuse_what_cannot_be_served(settings)
    # Here, because it is a second of start-up that the other commands need not take.
    from chatkeep.api.server import Server, Workers, config_of

    config = config_of(settings)
    with _listening(settings, config.backlog) as listening:  # who connects from here on is served, if not at once
        run(_prepare(settings))
        _say_where(settings, f"http://{_in_url(settings.host)}:{listening.getsockname()[1]}")
        if settings.workers == 1:
            run(Server(settings).serve(sockets=[listening]), config.get_loop_factory())
        else:
            Workers(settings, [listening]).run()


def _refuse_what_cannot_be_served(settings: Settings) -> None:
    if settings.auth == "none" and not settings.listens_on_loopback:
        raise typer.BadParameter(
            f"{settings.host} can be reached from other machines, and without authentication whoever reaches the"
            " server reads and deletes everything. Set CHATKEEP_AUTH=jwt, or use 127.0.0.1, ::1 or localhost.",
            param_hint="--host",
        )
    if settings.workers > 1 and settings.store_url.startswith("memory:"):
        raise typer.BadParameter(
            "memory:// is the memory of one process; several need a database that they share", param_hint="--workers"
        )


def _listening(settings: Settings, backlog: int) -> socket.socket:
    family, both = socket.AF_INET, False
    if ":" in settings.host:
        family, both = socket.AF_INET6, socket.has_dualstack_ipv6()  # `::` means every address, those of IPv4, too
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=backlog, dualstack_ipv6=both)
    except OSError as error:
        raise _cannot_listen(settings, error) from None


def _cannot_listen(settings: Settings, error: OSError) -> typer.BadParameter:
    if error.errno == errno.EADDRINUSE:
        return typer.BadParameter(
            f"port {settings.port} of {settings.host} is in use. Stop what listens there, or take another port; 0 takes"
            " a free one.",
            param_hint="--port",
        )
    if error.errno == errno.EACCES:
        return typer.BadParameter(
            f"the system does not let this user listen on port {settings.port}; take one above 1023",
            param_hint="--port",
        )
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such address"
    return typer.BadParameter(f"this machine cannot listen on {settings.host}: {reason}", param_hint="--host")


async def _prepare(settings: Settings) -> None:
    """Bring the schema up to date once, before several processes open the store, and say early what is wrong."""
    from chatkeep.api.app import quotas_of

    quotas_of(settings)
    async with open_store(settings.store_url):
        pass


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say_where(settings: Settings, url: str) -> None:
    lines = (
        f"chatkeep serves {without_password(settings.store_url)}",
        f"  {url}/api/docs",
        "Try:",
        f"  curl '{url}/api/conversations?limit=3'",
        f"  curl {url}/api/conversations -H 'Content-Type: application/json' -d '{{\"title\": \"My first\"}}'",
    )
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)


# --- import and export -----------------------------------------------------------------------------------


@dataclass
class _Tally:
    """What an import did so far."""

    conversations: int = 0
    messages: int = 0
    refused: int = 0


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="JSONL files, gzipped or not; - is standard input.")],
    database_url: DatabaseUrl = None,
    owner: Annotated[str, typer.Option(help="Whose conversations they become.")] = LOCAL_OWNER,
) -> None:
    """Import conversations, one a line, with their branches, tool calls and times.

    Importing again stores only what is new. A line that cannot be stored is reported with its number and does
    not stop the others; the exit code is 1 then.
    """
    # A load makes millions of objects and no cycles: looking for those took a third of its time.
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)
    tally = _Tally()
    seconds = run(_import(files, _url(database_url), owner, tally))
    rate = tally.messages / seconds
    out.print(
        f"{tally.messages:,} messages of {tally.conversations:,} conversations in {seconds:.1f} s ({rate:,.0f}/s)"
        + (f"; [red]{tally.refused:,} lines refused[/red]" if tally.refused else "")
    )
    if tally.refused:
        raise typer.Exit(1)


async def _import(files: list[Path], url: str, owner: str, tally: _Tally) -> float:
    """Import and return the seconds it took until everything was stored, indexed and closed."""
    async with open_store(url) as store:
        started = time.monotonic()
        with _progress() as progress:
            for file in files:
                await _import_file(store, owner, file, tally, progress)
    return time.monotonic() - started


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        console=err,
    )


async def _import_file(store: Store, owner: str, file: Path, tally: _Tally, progress: Progress) -> None:
    started, before = time.monotonic(), tally.messages
    name, size, raw = _open(file)
    task = progress.add_task(name, total=size, done="")
    with raw:
        try:
            shown = started
            async for result in import_lines(store, owner, _lines(raw)):
                _count(result, tally, name)
                if time.monotonic() - shown >= SHOW_SECONDS:
                    shown = time.monotonic()
                    _show(progress, task, tally.messages - before, started, raw.tell() if size else None)
        except (OSError, EOFError, zlib.error) as error:
            err.print(f"{name}: cannot be read further: {error}", style="red", markup=False)
            tally.refused += 1
    _show(progress, task, tally.messages - before, started, size or 1)
    progress.update(task, total=size or 1)


def _open(file: Path) -> tuple[str, int | None, BinaryIO]:
    """A file's name, its size where that is known, and its bytes."""
    if str(file) == "-":
        return "standard input", None, sys.stdin.buffer
    try:
        return file.name, file.stat().st_size, file.open("rb")
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None


def _lines(raw: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, unpacked where it is gzip."""
    start = raw.peek(2)[:2] if hasattr(raw, "peek") else b""
    return iter(gzip.open(raw)) if start == b"\x1f\x8b" else iter(raw)


def _count(result: Imported, tally: _Tally, name: str) -> None:
    if result.error is not None:
        tally.refused += 1
        err.print(f"{name}:{result.number}: {result.error}", style="red", markup=False, soft_wrap=True)
    elif result.messages or result.size > 1:
        tally.conversations += 1
        tally.messages += result.messages


def _show(progress: Progress, task: TaskID, messages: int, started: float, position: int | None) -> None:
    rate = messages / max(time.monotonic() - started, 0.001)
    progress.update(task, completed=position or 0, done=f"{messages:,} messages, {rate:,.0f}/s")


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="Where to; .gz packs. Standard output when absent.")] = None,
    database_url: DatabaseUrl = None,
    owner: Annotated[str, typer.Option(help="Whose conversations.")] = LOCAL_OWNER,
) -> None:
    """Export conversations, one a line, in the shape that `import` reads, with nothing lost."""
    run(_export(file, _url(database_url), owner))


async def _export(file: Path | None, url: str, owner: str) -> None:
    async with _existing(url) as store:
        if file is None:
            await _write(store, owner, sys.stdout.buffer)
            return
        with _replacing(file) as target:
            await _write(store, owner, target)


@contextmanager
def _replacing(file: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole; packed where the name says so, without the time of day."""
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as raw:
        if file.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                yield cast("BinaryIO", packed)
        else:
            yield raw
    part.replace(file)


async def _write(store: Store, owner: str, target: BinaryIO) -> None:
    async for piece in export_lines(store, owner):
        target.write(piece.encode())
    target.flush()


# --- list and show ---------------------------------------------------------------------------------------


@app.command("list")
def list_(
    database_url: DatabaseUrl = None,
    context: Annotated[str | None, typer.Option(help="Only conversations of this context.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    owner: Annotated[str, typer.Option(help="Whose conversations.")] = LOCAL_OWNER,
) -> None:
    """List conversations, most recently updated first."""
    run(_list(_url(database_url), owner, context, limit))


async def _list(url: str, owner: str, context: str | None, limit: int) -> None:
    async with _existing(url) as store:
        page = await store.list_conversations(owner, context_id=context, limit=limit, total=True)
    table = Table(box=None, header_style="bold")
    table.add_column("Updated", no_wrap=True)
    table.add_column("Messages", justify="right")
    table.add_column("Title", no_wrap=True, overflow="ellipsis")
    table.add_column("Id", no_wrap=True)
    for item in page.items:
        table.add_row(when(item.updated_at), f"{item.last_seq:,}", plain(item.title or "(no title)"), str(item.id))
    out.print(table)
    if page.total and page.total > len(page.items):
        out.print(f"{len(page.items)} of {page.total:,}; --limit shows more")


@app.command()
def show(
    conversation_id: Annotated[str, typer.Argument(help="The conversation's id, as `list` shows it.")],
    database_url: DatabaseUrl = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many messages, from the newest back.")] = 50,
    owner: Annotated[str, typer.Option(help="Whose conversation.")] = LOCAL_OWNER,
) -> None:
    """Show a conversation: the path that ends with its head."""
    run(_show_conversation(_url(database_url), owner, conversation_id, limit))


async def _show_conversation(url: str, owner: str, conversation_id: str, limit: int) -> None:
    async with _existing(url) as store:
        conversation = await store.get_conversation(owner, conversation_id)
        page = await store.history(owner, conversation_id, limit=limit, total=True)
    _print_head(conversation, page.total or 0)
    if page.next is not None:
        out.print("… earlier messages: --limit", style="dim")
    for message in page.items:
        _print_message(message)


def _print_head(conversation: Conversation, length: int) -> None:
    out.print(plain(conversation.title or "(no title)", "bold"))
    others = conversation.last_seq - length
    out.print(
        f"{length:,} messages, updated {when(conversation.updated_at)}"
        + (f"; {others:,} more on other branches or deleted" if others else ""),
        style="dim",
    )


def _print_message(message: Message) -> None:
    status = "" if message.status == "complete" else f" ({message.status})"
    colour = {"user": "cyan", "assistant": "green"}.get(message.role, "yellow")
    line = Text(f"\n{message.role}{status}", style=f"bold {colour}")
    line.append(f"  {when(message.sent_at or message.created_at)}", style="dim")
    out.print(line)
    if message.content:
        out.print(plain(message.content))
    for call in message.metadata.get("tool_calls") or ():
        function = call.get("function", {}) if isinstance(call, dict) else {}
        out.print(plain(f"→ {function.get('name')}({function.get('arguments')})", "yellow"))


# --- who may do what -------------------------------------------------------------------------------------

OwnerName = Annotated[str, typer.Argument(help="The owner: the sub of their tokens.")]


@keys.command("create")
def create_key(
    owner: OwnerName,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="chatkeep:read, chatkeep:write, chatkeep:admin; may be given again. [read and write]"),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days that it is valid for. [for ever]")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an API key for an owner and show it: this once."""
    run(_create_key(_url(database_url), owner, name, tuple(scope or ()), days))


async def _create_key(url: str, owner: str, name: str, scopes: tuple[str, ...], days: int | None) -> None:
    from chatkeep.api.auth import READ, WRITE, hash_secret, make_key, secret_of

    lifetime = None if days is None else timedelta(days=days)
    key, text = make_key(owner, name, scopes or (READ, WRITE), lifetime)
    async with _existing(url) as store:
        await store.access.create_key(key, hash_secret(secret_of(text)))
    err.print("Keep it safe: it is not shown again. Send it as: Authorization: Bearer KEY")
    typer.echo(text)


@keys.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Argument(help="Only this owner's.", show_default=False)] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the API keys, without their secrets."""
    run(_list_keys(_url(database_url), owner))


async def _list_keys(url: str, owner: str | None) -> None:
    async with _existing(url) as store:
        found = await store.access.list_keys(owner)
    table = Table("id", "owner", "name", "scopes", "made", "expires", "last used", box=None)
    for key in found:
        times = (when(moment) if moment else "-" for moment in (key.expires_at, key.last_used_at))
        table.add_row(key.id, plain(key.owner_id), plain(key.name), " ".join(key.scopes), when(key.created_at), *times)
    out.print(table if found else "There are no API keys.")


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id, as `keys list` shows it.")], database_url: DatabaseUrl = None
) -> None:
    """Revoke an API key: it is refused from now on."""
    run(_revoke_key(_url(database_url), key_id))


async def _revoke_key(url: str, key_id: str) -> None:
    async with _existing(url) as store:
        if not await store.access.revoke_key(key_id):
            raise NotFound("there is no API key with this id; `chatkeep keys list` shows them", got=key_id)
    out.print("revoked")


@owners.command("rename")
def rename_owner(old: OwnerName, new: OwnerName, database_url: DatabaseUrl = None) -> None:
    """Give everything that one owner has to another: `rename local SUB` on the day authentication is switched on."""
    run(_rename_owner(_url(database_url), old, new))


async def _rename_owner(url: str, old: str, new: str) -> None:
    async with _existing(url) as store:
        count = await store.access.rename_owner(old, new)
        out.print(f"{count:,} conversations have a new owner")


@app.command()
def erase(
    owner: OwnerName,
    database_url: DatabaseUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase everything of an owner, and print the receipt as JSON. It cannot be undone."""
    url = _url(database_url)
    if not yes:
        typer.confirm(f"Erase everything of {owner} from {without_password(url)}?", abort=True)
    run(_erase(url, owner))


async def _erase(url: str, owner: str) -> None:
    async with _existing(url) as store:
        typer.echo((await store.erase_owner(owner)).model_dump_json(indent=2))


# --- db --------------------------------------------------------------------------------------------------


@db.command()
def upgrade(database_url: DatabaseUrl = None) -> None:
    """Bring the schema to the newest revision, and the search index up to date."""
    run(_migrate(_url(database_url), "head"))


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="The revision to go back to; base removes all tables and data.")],
    database_url: DatabaseUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take the schema back to a revision. What only newer revisions can hold is lost."""
    if not yes:
        typer.confirm(f"Take {without_password(_url(database_url))} back to {revision}? Data may be lost.", abort=True)
    run(_migrate(_url(database_url), revision))


@db.command()
def status(database_url: DatabaseUrl = None) -> None:
    """Say at which revision the schema is. Exit code 1: not at the newest."""
    url = _url(database_url)
    revision, newest = run(_revision(url))
    out.print(f"{without_password(url)}: revision {revision or 'none'}, newest {newest}", soft_wrap=True, markup=False)
    if revision != newest:
        raise typer.Exit(1)


@db.command()
def distribute(database_url: DatabaseUrl = None) -> None:
    """Spread the data over the machines of a Citus cluster or the shards of a MongoDB, by owner. Safe to run again."""
    run(_distribute(_url(database_url)))


async def _distribute(url: str) -> None:
    async with _existing(url) as store:
        spread = await store.distribute()
        out.print(f"distributed: {', '.join(spread)}" if spread else "everything is distributed already")


async def _migrate(url: str, revision: str) -> None:
    async with open_store(url, migrate=False) as store:
        await store.migrate(revision)
        revision = await store.schema_revision() or "none"
        out.print(f"{without_password(url)}: revision {revision}", soft_wrap=True, markup=False)


async def _revision(url: str) -> tuple[str | None, str]:
    async with open_store(url, migrate=False) as store:
        return await store.schema_revision(), store.newest_revision


# ---------------------------------------------------------------------------------------------------------


def _settings() -> Settings:
    """The settings; one that is not valid is a sentence, without its value."""
    try:
        return Settings()
    except ValidationError as error:
        for each in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in each["loc"]).upper()
            text = str(each.get("ctx", {}).get("error") or f"CHATKEEP_{name}: {each['msg']}")
            err.print(f"Error: {text}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _url(given: str | None) -> str:
    return given or _settings().store_url


@asynccontextmanager
async def _existing(url: str) -> AsyncIterator[Store]:
    """A store that is only read: a file that is not there is not made."""
    async with open_store(url, migrate=False) as store:
        await store.ping()
        yield store
