"""`chatkeep mcp`: the MCP server on standard input and output, for a client that starts it."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from chatkeep.cli.options import DatabaseUrl, EmbedderName, Owner, check_file, load_settings, open_existing
from chatkeep.cli.stopping import SIGNALS
from chatkeep.cli.terminal import run
from chatkeep.keys import READ, WRITE, WRITE_ANY_ROLE
from chatkeep.settings import LOCAL_OWNER, Settings
from chatkeep.store import Store, open_store
from chatkeep.values import valid_owner

if TYPE_CHECKING:
    import anyio

    from chatkeep.retrieval.search import Retrieval

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 1 << 20
"""Longest message of the client, as over HTTP."""


def mcp(
    database_url: DatabaseUrl = None,
    owner: Owner = LOCAL_OWNER,
    embedder: EmbedderName = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse to create and append.")] = False,
    any_role: Annotated[
        bool, typer.Option("--any-role", help="Let the client append what others than the user said, too.")
    ] = False,
) -> None:
    """Serve conversations and documents of one owner to an MCP client, on standard input and output.

    The client starts it: docs/mcp.md has its settings. It ends with its input, or at Ctrl-C. Logs are on standard
    error.
    """
    given = {"database_url": database_url, "embedder": embedder}
    settings = load_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    check_file(settings.store_url, makes=not read_only)
    scopes = [READ] if read_only else [READ, WRITE, WRITE_ANY_ROLE] if any_role else [READ, WRITE]
    run(_until_stopped(settings, owner, frozenset(scopes)))


async def _until_stopped(settings: Settings, owner: str, scopes: frozenset[str]) -> None:
    """Serve until the input ends, or a signal arrives; the second signal ends the process at once."""
    from chatkeep.api.logs import configure

    configure(settings.log_format, settings.log_level)
    serving = asyncio.create_task(_serve(settings, valid_owner(owner), scopes))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        serving.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    await asyncio.wait([serving])
    if not serving.cancelled():
        await serving


async def _serve(settings: Settings, owner: str, scopes: frozenset[str]) -> None:
    # Imported here: it takes a second, which the other commands do not need.
    from mcp.server.stdio import stdio_server

    from chatkeep.api.auth import Principal
    from chatkeep.api.document_services import DocumentServices
    from chatkeep.api.server import embedders_of
    from chatkeep.mcp import build_server

    principal = Principal(owner, scopes)
    embedders = embedders_of(settings)
    async with (
        _opened(settings.store_url, read_only=not principal.may_write()) as store,
        aclosing(DocumentServices(store, settings, embedders)) as documents,
    ):

        async def retrieval() -> "Retrieval":
            return (await documents.made()).retrieval

        server = build_server(store, retrieval, lambda _context: principal)
        lines = cast("anyio.AsyncFile[str]", Lines(0))
        async with stdio_server(stdin=lines) as (read, write):
            await server.run(read, write, server.create_initialization_options())


def _opened(url: str, *, read_only: bool) -> AbstractAsyncContextManager[Store]:
    """The store; made, and brought to the newest schema, unless it is only read."""
    return open_existing(url) if read_only else open_store(url)


class Lines:
    """The lines of a file descriptor, read by a thread that ends with the process.

    The SDK's own reader cannot be cancelled while it waits for a line, so that Ctrl-C would not end the server.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "rb", closefd=False)
        self._loop = asyncio.get_running_loop()
        self._lines = asyncio.Queue[str | None](1)
        threading.Thread(target=self._read_all, name="chatkeep-stdin", daemon=True).start()

    async def __aiter__(self) -> AsyncIterator[str]:
        while (line := await self._lines.get()) is not None:
            yield line

    def _read_all(self) -> None:
        while line := _next_line(self._file):
            self._give(line.decode("utf-8", "replace"))
        self._give(None)

    def _give(self, line: str | None) -> None:
        """Wait until the line before has been taken."""
        asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop).result()


def _next_line(file: BinaryIO) -> bytes:
    """Return the next line that is not too long; nothing at the end."""
    while len(line := file.readline(MAX_LINE_BYTES)) == MAX_LINE_BYTES and not line.endswith(b"\n"):
        while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        logger.error("left out a message of the client, which has more than %d bytes", MAX_LINE_BYTES)
    return line
