"""A host that answers every request with the bytes that it was given, and remembers the requests."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """A request."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Endpoint:
    """What answers. The last of its answers is repeated; an empty one is silence."""

    answers: Sequence[bytes]
    port: int = 0
    seen: list[Seen] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close the connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # the client has seen enough
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.seen.append(Seen(head[0], headers, body))
            answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
            writer.write(answer)
            await writer.drain()
            if not answer:
                await reader.read()
        writer.close()


@asynccontextmanager
async def endpoint(*answers: bytes, context: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    """Serve answers on a port of its own, with TLS if there is a context."""
    served = Endpoint(answers)
    async with await asyncio.start_server(served.serve, "127.0.0.1", 0, ssl=context) as server:
        served.port = server.sockets[0].getsockname()[1]
        yield served


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A response, after which the connection is closed. Names of headers have _ for -."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status} As-It-Is", f"Content-Length: {len(body)}", "Connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def json_response(value: Any, status: int = 200, **headers: str) -> bytes:
    """A response in JSON."""
    return response(status, json.dumps(value).encode(), Content_Type="application/json", **headers)
