"""A proxy before PostgreSQL that knows its protocol: it loses one answer, or falls silent."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self
from urllib.parse import urlsplit

COMMAND_COMPLETE, PORTAL_SUSPENDED = b"C", b"s"

ONE_ROW = "ROW"
"""The answer if a client wants one row only: whether there are more, and what was done, is not said."""


class Proxy:
    """Passes on what clients and the server say.

    async with Proxy(url) as proxy, open_store(proxy.url) as store:
        proxy.lose("COMMIT")
    """

    def __init__(self, url: str) -> None:
        """Take the URL of the server."""
        self._server_url = urlsplit(url)
        self._answer: str | None = None
        self._left = 0
        self._silent = False
        self._talks: set[asyncio.Task[object]] = set()
        self.answered: list[str] = []
        """What the server has done, as it says it: `BEGIN`, `INSERT 0 1`, `COMMIT` …"""

    @property
    def url(self) -> str:
        """The URL of the server, through the proxy."""
        server = self._server_url
        there = f"{server.username}:{server.password}@127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return server._replace(netloc=there).geturl()

    def lose(self, answer: str, nth: int = 1) -> None:
        """Keep the nth answer from now on that begins so to itself, and end the connection that waits for it."""
        self._answer, self._left = answer, nth

    @property
    def has_lost(self) -> bool:
        """Whether that has happened."""
        return self._answer is not None and self._left == 0

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Take connections and bytes, and pass nothing on: what is lost meanwhile never arrives."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await asyncio.sleep(0.01)  # what it has accepted begins
        for talk in tuple(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _serve(self, client: StreamReader, to_client: StreamWriter) -> None:
        talk = asyncio.ensure_future(self._talk(client, to_client))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        with suppress(asyncio.CancelledError, OSError):
            await talk

    async def _talk(self, client: StreamReader, to_client: StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(self._server_url.hostname, self._server_url.port)
            ways = asyncio.create_task(self._up(client, to_server)), asyncio.create_task(self._down(server, to_client))
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                to_server.close()  # the server does what it was sent before
                await asyncio.gather(to_server.wait_closed(), return_exceptions=True)
        finally:
            to_client.transport.abort()
            await asyncio.gather(to_client.wait_closed(), return_exceptions=True)

    async def _up(self, client: StreamReader, to_server: StreamWriter) -> None:
        while data := await client.read(1 << 16):
            if not self._silent:
                to_server.write(data)

    async def _down(self, server: StreamReader, to_client: StreamWriter) -> None:
        """Pass on whole messages; return when the connection is to end."""
        kind = await server.readexactly(1)
        if kind == b"N":  # the answer to the wish for TLS is this one byte
            self._pass_on(to_client, kind)
            kind = await server.readexactly(1)
        while True:
            length = await server.readexactly(4)
            body = await server.readexactly(int.from_bytes(length) - 4)
            if kind == COMMAND_COMPLETE and self._is_lost(body.rstrip(b"\0").decode()):
                return
            if kind == PORTAL_SUSPENDED and self._is_lost(ONE_ROW):
                return
            self._pass_on(to_client, kind + length + body)
            kind = await server.readexactly(1)

    def _pass_on(self, to_client: StreamWriter, data: bytes) -> None:
        if not self._silent:
            to_client.write(data)

    def _is_lost(self, answer: str) -> bool:
        self.answered.append(answer)
        if self._answer is None or not answer.startswith(self._answer) or not self._left:
            return False
        self._left -= 1
        return self._left == 0
