"""The HTTP API on a real socket, and a client for it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from fastapi import FastAPI

from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.provider import Provider
from chatkeep.api.answering import ReplyTimes
from chatkeep.api.app import create_app
from chatkeep.api.server import HttpServer
from chatkeep.retrieval.embedding import Embedders
from chatkeep.settings import Settings
from chatkeep.store import Store


@dataclass
class Api:
    """A server, its store, and a client for it."""

    store: Store
    client: httpx2.AsyncClient
    port: int
    app: FastAPI

    async def raw(self, request: bytes) -> bytes:
        """Send the bytes of a request, which must have `Connection: close`, and return the bytes of the response."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            await writer.wait_closed()

    async def conversation(self, **values: Any) -> str:
        """Create a conversation and return its path."""
        reply = await self.client.post("/api/conversations", json=values)
        assert reply.status_code == 201, reply.text
        return f"/api/conversations/{reply.json()['id']}"

    async def say(self, conversation: str, content: str, **values: Any) -> dict[str, Any]:
        """Append a message to the conversation at this path and return it."""
        reply = await self.client.post(f"{conversation}/messages", json={"role": "user", "content": content, **values})
        assert reply.status_code == 201, reply.text
        message: dict[str, Any] = reply.json()
        return message


def assert_problem(reply: httpx2.Response, status: int, *absent: str) -> dict[str, Any]:
    """Check that the reply is a problem document without the texts of `absent`, and return it."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = reply.json()
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert problem["detail"]
    assert problem.get("errors", ["left out where there are none"])
    everything = f"{reply.text}\n{reply.headers}".lower()
    assert not [text for text in absent if text.lower() in everything]
    return problem


def serving(store: Store, **settings: Any) -> AbstractAsyncContextManager[Api]:
    """Serve `store` as the server does, on a free port of 127.0.0.1."""
    given = Settings(**settings)
    return _serving(store, given, create_app(store, given))


def embedding(store: Store, embedders: Embedders, **settings: Any) -> AbstractAsyncContextManager[Api]:
    """Serve `store`, and make vectors."""
    given = Settings(**settings)
    return _serving(store, given, create_app(store, given, embedders=embedders))


def answering(
    store: Store,
    provider: Provider,
    limits: TurnLimits | None = None,
    times: ReplyTimes | None = None,
    **settings: Any,
) -> AbstractAsyncContextManager[Api]:
    """Serve `store`, and answer questions; answers that are being made at the end are interrupted at once."""
    given = Settings(**{"drain": 0, **settings})
    return _serving(store, given, create_app(store, given, provider, limits=limits, times=times))


@asynccontextmanager
async def _serving(store: Store, settings: Settings, app: FastAPI) -> AsyncIterator[Api]:
    # asyncio disables Nagle's algorithm, a delay of 40 ms, only if the socket names the protocol.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    server = HttpServer(settings, app)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        # The socket listens already: requests sent before the server has started wait.
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield Api(store, client, port, app)
    finally:
        server.should_exit = True
        await running
        await app.state.admission.aclose()
        listener.close()
