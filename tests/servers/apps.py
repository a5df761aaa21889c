"""ASGI applications that the tests serve over HTTP on 127.0.0.1, in the loop of the test."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """uvicorn's, which tells the application its transport: `request.scope["state"]["transport"]`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put it where the application finds it."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class AppServer(uvicorn.Server):
    """uvicorn, which leaves the signals to the process, and ends by closing every connection."""

    def __init__(self, app: Any, lifespan: bool) -> None:
        """Serve an application, without writing logs."""
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on" if lifespan else "off",
                log_config=None,
                access_log=False,
            )
        )

    def capture_signals(self) -> nullcontext[None]:  # type: ignore[override]
        """Capture none."""
        return nullcontext()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections, so that no stream is waited for."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.transport.abort()
        await super().shutdown(sockets)


@asynccontextmanager
async def app_served(app: Any, port: int = 0, *, lifespan: bool = False) -> AsyncIterator[int]:
    """Serve an application, and give the port; 0 is a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    server = AppServer(app, lifespan)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        # The socket listens already: requests sent before the server has started wait.
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running
        listener.close()


def end_connection(transport: Any, *, reset: bool) -> None:
    """Close a connection in the middle of a response, or reset it."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()
