"""A load generator that costs little, so that the server is what is measured: one request at a time, no parsing."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """A keep-alive connection."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end >= 0 and len(self._received) >= end + 4 + _length(self._received[:end]):
            answer, self._received = self._received, b""
            if self._answer and not self._answer.done():  # whoever asked may have given up
                self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    async def send(self, request: bytes) -> bytes:
        """Send a request and return the whole answer. Raises RuntimeError for one that is not 2xx."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        answer = await self._answer
        if not answer.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(f"the server answered {answer[:500]!r}")
        return answer

    @property
    def closed(self) -> bool:
        """Whether the server, or `close`, has closed it."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close it."""
        self._answer = None
        self._transport.close()


def _length(head: bytes) -> int:
    found = LENGTH.search(head)
    if found is None:
        raise RuntimeError(f"an answer without a length: {head!r}")
    return int(found[1])


def bearer(token: str) -> str:
    """The header line that authenticates a request."""
    return f"Authorization: Bearer {token}\r\n"


def post(port: int, path: str, value: Mapping[str, Any], *, headers: str = "") -> bytes:
    """A request, ready to be sent. `headers` are lines, each with its end."""
    body = json.dumps(value).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{headers}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(port: int, path: str, *, headers: str = "") -> bytes:
    """A request that reads, ready to be sent. `headers` are lines, each with its end."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{headers}\r\n".encode()


def body(answer: bytes) -> Any:
    """The JSON of an answer."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@asynccontextmanager
async def connected(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """Open connections."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Connection, "127.0.0.1", port) for _ in range(count)]
    try:
        yield [connection for _, connection in made]
    finally:
        for _, connection in made:
            connection.close()
