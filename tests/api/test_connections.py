"""What a connection may cost: heads, bodies, time, pipelines, streams; and that honest clients do not notice."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import jwt
import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse

from chatkeep import NewMessage, Role, open_store
from chatkeep.api import protocol
from chatkeep.api.body_budget import MAX_WAITING_PER_OWNER, BodyBudget
from chatkeep.api.protocol import MAX_HEAD_BYTES, MAX_HEADER_FIELDS, MAX_PIPELINED
from servers.api import Api, serving

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SECRET = "zq7" * 20


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Api]:
    """A server without anything in it."""
    async with open_store("memory://") as store, serving(store, **settings) as api:
        yield api


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """A server with the default limits."""
    async with served() as api:
        yield api


class Wire:
    """A client that sends bytes when the test says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Send, and wait until the kernel has it all."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next response, which has a Content-Length: its status, headers and body."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 20)
        return int(head[0].split()[1]), headers, body

    async def problem(self, status: int) -> dict[str, str]:
        """Expect a problem document of this status, and return the headers."""
        found, headers, body = await self.answer()
        assert (found, headers["content-type"]) == (status, "application/problem+json"), body
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["detail"]
        assert len(headers["x-request-id"]) == 16
        assert headers["x-content-type-options"] == "nosniff"
        return headers

    async def refusal(self, status: int) -> None:
        """Expect a problem document of this status, after which the server says that it sends nothing more."""
        assert (await self.problem(status))["connection"] == "close"
        await self.end()

    async def end(self) -> None:
        """Expect the end of what the server sends, and no byte before."""
        assert await asyncio.wait_for(self.reader.read(), 20) == b""


@asynccontextmanager
async def connected(api: Api) -> AsyncIterator[Wire]:
    """A connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def authorized(owner: str) -> bytes:
    """A header for a request of this owner."""
    token = jwt.encode({"sub": owner, "exp": int(time.time()) + 600}, SECRET, "HS256")
    return f"Authorization: Bearer {token}\r\n".encode()


def big(size: int) -> bytes:
    """A body that is valid but for its title, which is too long."""
    return b'{"title":"' + b"a" * (size - 12) + b'"}'


def posted(body: bytes, *headers: bytes) -> bytes:
    """A whole request with this body."""
    return POST + b"".join(headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


# --- heads --------------------------------------------------------------------------------------------------


def head_of(size: int) -> bytes:
    """A head with as many bytes as are given."""
    return GET + b"X-Long: " + b"a" * (size - len(GET) - 12) + b"\r\n\r\n"


async def test_a_head_has_a_largest_size(api: Api) -> None:
    """A head of 64 KiB is read; the first byte beyond is refused, whatever comes later."""
    async with connected(api) as wire:
        await wire.send(head_of(MAX_HEAD_BYTES))
        assert (await wire.answer())[0] == 200
        await wire.send(head_of(MAX_HEAD_BYTES + 1))
        await wire.refusal(431)


@pytest.mark.parametrize("start", [GET + b"X: ", b"GET /", b"\r\n" * 100, GET + b"X:" + b" " * 100, b"GET"])
async def test_a_head_that_never_ends(api: Api, start: bytes) -> None:
    """It is refused on the first byte beyond 64 KiB, wherever in the head that is, and nobody sees the request."""
    fill = {b"\r": b"\r\n", b"G": b"a"}[start[:1]] * MAX_HEAD_BYTES
    async with connected(api) as wire:
        await wire.send((start + fill)[:MAX_HEAD_BYTES])
        await asyncio.sleep(0.1)
        await wire.send(b"\r")
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"]) in {(431, "close"), (400, "close")}
        assert status == 431 or start == b"GET"
        await wire.end()


async def test_fields_are_counted(api: Api) -> None:
    """100 fields are read, 101 are refused; so are those of the second request of two at once."""
    fields = [b"X-%d: 1\r\n" % number for number in range(MAX_HEADER_FIELDS)]
    async with connected(api) as wire:
        request = GET + b"".join(fields[1:]) + b"\r\n"
        await wire.send(request)
        assert (await wire.answer())[0] == 200
        await wire.send(request + GET + b"".join(fields) + b"\r\n")
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        await wire.end()
    async with connected(api) as wire:
        await wire.send(GET + b"".join(fields) + b"\r\n")
        await wire.refusal(431)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Transfer-Encoding: gzip, chunked", 501),
        (b"Transfer-Encoding: gzip", 501),
        (b"Transfer-Encoding: identity", 501),
        (b"Transfer-Encoding: chunked, gzip", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        (b"Content-Length: 5\r\nContent-Length: 6", 400),
        (b"Content-Length: 5\r\nConnection: upgrade\r\nUpgrade: h2c", 501),
    ],
)
async def test_what_two_servers_may_read_in_two_ways(api: Api, headers: bytes, status: int) -> None:
    """A body whose end proxies may see elsewhere is refused, and what follows is not read as a request."""
    async with connected(api) as wire:
        await wire.send(POST + headers + b"\r\n\r\n0\r\n\r\n" + GET + b"\r\n")
        await wire.refusal(status)


async def test_chunks_and_upgrades(api: Api) -> None:
    """A chunked body is read, whatever the case of the word; a request that only offers an upgrade is answered."""
    async with connected(api) as wire:
        await wire.send(POST + b"Transfer-Encoding: Chunked \r\n\r\n2;a=b\r\n{}\r\n0\r\nAuthorization: x\r\n\r\n")
        assert (await wire.answer())[0] == 201
        await wire.send(GET + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert (await wire.answer())[0] == 200
        await wire.end()


async def test_trailers_are_no_headers(api: Api) -> None:
    """What follows a chunked body is not added to the headers that were checked."""

    @api.app.post("/names")
    async def names(request: Request) -> list[str]:
        await request.body()
        return list(request.headers)

    async with connected(api) as wire:
        head = b"POST /names HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        await wire.send(head + b"2\r\n{}\r\n0\r\nX-Late: 1\r\n\r\n")
        assert json.loads((await wire.answer())[2]) == ["host", "transfer-encoding"]


@pytest.mark.parametrize("start", [b"1;a=", b"0\r\nX: ", b"0\r\nX"])
async def test_extensions_and_trailers_that_never_end(api: Api, start: bytes) -> None:
    """What is neither head nor body may have 64 KiB too."""
    async with connected(api) as wire:
        await wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + start + b"a" * 2 * MAX_HEAD_BYTES)
        await wire.refusal(431)


# --- time ---------------------------------------------------------------------------------------------------


async def test_a_head_has_to_arrive() -> None:
    """One that comes byte by byte is 408 after its time; without any byte the connection is just closed."""
    async with served(head_seconds=1.5) as api, connected(api) as slow, connected(api) as silent, asyncio.timeout(15):
        waiting = asyncio.create_task(silent.end())
        answer = asyncio.create_task(slow.refusal(408))
        began = time.monotonic()
        await slow.send(GET)
        while time.monotonic() - began < 1:
            await slow.send(b"a")
            await asyncio.sleep(0.1)
        await answer
        await waiting
        assert 1 < time.monotonic() - began < 6


async def test_a_kept_connection_is_closed() -> None:
    """It is so after its time; the head of a second request has its own time."""
    async with served(keep_alive_seconds=0.5, head_seconds=30) as api, connected(api) as wire:
        await wire.send(GET + b"\r\n")
        assert (await wire.answer())[0] == 200
        await wire.send(GET)
        await asyncio.sleep(2)
        await wire.send(b"\r\n")
        assert (await wire.answer())[0] == 200
        await wire.end()


@pytest.mark.parametrize(("chunks", "size", "status"), [(5_000, 10, 422), (30_000, 1, 413), (30_000, 40, 422)])
async def test_chunks_of_a_byte_have_a_limit(api: Api, chunks: int, size: int, status: int) -> None:
    """Each chunk costs the server as much as a large one: 20,000 are taken, and one for each 64 bytes."""
    async with connected(api) as wire:
        await wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        await wire.send(b"%x\r\n%b\r\n" % (size, b" " * size) * chunks + b"0\r\n\r\n")
        found, _, body = await wire.answer()
        assert found == status, body
        assert status != 413 or b"too many chunks" in body


@pytest.mark.parametrize("framing", [b"Content-Length: 5000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1388\r\n"])
async def test_a_body_has_to_arrive(framing: bytes) -> None:
    """One that comes byte by byte is 408 after its time, and the application is not left waiting."""
    async with served(body_seconds=1.5, metrics=True) as api, connected(api) as wire, asyncio.timeout(15):
        await wire.send(POST + framing)
        answer = asyncio.create_task(wire.refusal(408))
        began = time.monotonic()
        while time.monotonic() - began < 1:
            await wire.send(b"a")
            await asyncio.sleep(0.1)
        await answer
        assert 1 < time.monotonic() - began < 6
        text = (await api.client.get("/metrics")).text
        assert 'chatkeep_requests_total{method="POST",route="/api/conversations",status="408"}' in text


def stream(api: Api, *, size: int, pause: float) -> None:
    """Add a route that sends events of this size for ever, or as fast as they are taken."""

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"a" * size + b"\n\n"
            await asyncio.sleep(pause)

    @api.app.get("/api/events")
    async def respond() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")


@pytest.mark.long
async def test_a_client_that_does_not_read() -> None:
    """Its connection is closed after its time; one that reads slowly keeps its own."""
    async with served(write_seconds=2) as api, connected(api) as deaf, connected(api) as slow:
        stream(api, size=16 << 10, pause=0)
        for wire in (deaf, slow):
            await wire.send(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        streams = api.app.state.shutdown.streams
        began = time.monotonic()
        while time.monotonic() - began < 5:
            await slow.reader.read(256 << 10)
            await asyncio.sleep(0.05)
        assert len(streams) == 1
        await slow.reader.readexactly(1 << 20)


async def test_a_client_that_does_not_read_the_largest_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is closed after its time, before it has had the page; others are served meanwhile."""
    monkeypatch.setattr(protocol, "CHECK_SECONDS", 0.2)
    async with served(write_seconds=0.5) as api:
        path = await api.conversation()
        large = [NewMessage(role=Role.ASSISTANT, content="x" * (4 << 20)) for _ in range(4)]
        await api.store.append("local", path.rpartition("/")[2], large)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            deaf.connect(("127.0.0.1", api.port))
            deaf.sendall(f"GET {path}/messages?limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            for _ in range(15):
                assert (await api.client.get("/healthz")).status_code == 200
                await asyncio.sleep(0.1)
            received = await asyncio.to_thread(_read_to_end, deaf)
        assert received.startswith(b"HTTP/1.1 200 ")
        assert len(received) < 8 << 20


def _read_to_end(connection: socket.socket) -> bytes:
    """What still comes before the other side closes the connection, or has reset it."""
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(1 << 20):
            received += data
    return received


@pytest.mark.long
async def test_clients_that_leave_too_much_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has not read for longest is closed before its own time is over."""
    monkeypatch.setattr(protocol, "MAX_UNSENT_BYTES", 100_000)
    async with served() as api, connected(api) as one, connected(api) as two:
        stream(api, size=16 << 10, pause=0)
        streams = api.app.state.shutdown.streams
        for wire in (one, two):
            await wire.send(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(1.5)
        await asyncio.sleep(2)
        assert len(streams) == 1
        while await asyncio.wait_for(one.reader.read(1 << 20), 5):
            pass  # what the kernel has; then the end, which the other one would not reach


async def test_a_connection_that_cannot_be_checked(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is closed, the log says why, and the others are checked all the same."""

    def fail(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    async with connected(api) as wire:
        monkeypatch.setattr(protocol.Protocol, "_check_reading", fail)
        await wire.end()
    monkeypatch.undo()
    assert "a connection could not be checked" in caplog.text
    assert (await api.client.get("/healthz")).status_code == 200


# --- pipelines ----------------------------------------------------------------------------------------------


async def test_requests_in_advance(api: Api) -> None:
    """As many as may wait are answered, in order; of more the first are, and the last answer says that it is that."""
    async with connected(api) as wire:
        await wire.send(b"".join(GET + b"X: %d\r\n\r\n" % number for number in range(MAX_PIPELINED + 1)))
        for _ in range(MAX_PIPELINED + 1):
            assert (await wire.answer())[0] == 200
    async with connected(api) as wire:
        await wire.send((GET + b"\r\n") * 20_000)
        answers = [await wire.answer() for _ in range(MAX_PIPELINED + 1)]
        assert [headers.get("connection") for _, headers, _ in answers] == [None] * MAX_PIPELINED + ["close"]
        await wire.end()


# --- bodies that nobody wants -------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize(
    ("settings", "start", "size", "status"),
    [
        ({}, POST, 50_000_000, 413),
        ({"auth": "jwt", "jwt_secret": SECRET}, POST, 50_000_000, 401),
        ({}, POST.replace(b"localhost", b"zq7.example"), 50_000_000, 421),
        ({}, POST + b"Origin: https://zq7.example\r\n", 50_000_000, 403),
        ({}, POST + b"Transfer-Encoding: gzip, chunked\r\n", 50_000_000, 501),
        ({}, POST.replace(b"application/json", b"text/plain"), 8_000_000, 415),
        ({}, POST + b"X: 1\r\n" * MAX_HEADER_FIELDS, 50_000_000, 431),
    ],
)
async def test_an_early_answer_arrives(
    settings: dict[str, Any], start: bytes, size: int, status: int, connection: bytes
) -> None:
    """A client that sends 50 MB before it reads sees why they are refused, and not a connection that is reset."""
    async with served(**settings) as api, connected(api) as wire:
        length = b"" if status == 501 else b"Content-Length: %d\r\n" % size
        await wire.send(start + connection + length + b"\r\n")
        for _ in range(size // 1_000_000):
            await wire.send(b"a" * 1_000_000)
        headers = await wire.problem(status)
        if not connection and status not in {431, 501}:
            assert "connection" not in headers
            await wire.send(GET + b"\r\n")
            assert (await wire.answer())[0] == 200
        else:
            await wire.end()


async def test_an_early_answer_to_a_chunked_body(api: Api) -> None:
    """It comes in the middle of the body, with the same words."""
    async with connected(api) as wire:
        await wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(50):
            await wire.send(b"f4240\r\n" + b"a" * 1_000_000 + b"\r\n")
        await wire.problem(413)


async def test_unwanted_bodies_end() -> None:
    """After 64 MiB the connection is closed, whatever the client still sends."""
    async with served() as api, connected(api) as wire:
        await wire.send(POST + b"Content-Length: 1000000000\r\n\r\n")

        async def send() -> None:
            for _ in range(200):
                await wire.send(b"a" * 1_000_000)

        with pytest.raises(ConnectionError):
            await send()


async def test_a_client_that_waits_for_100(api: Api) -> None:
    """It gets 100 if its body is wanted; if it is not, only the refusal, after which the connection ends."""
    expect = b"Expect: 100-continue\r\n"
    async with connected(api) as wire:
        await wire.send(POST + expect + b"Content-Length: 2\r\n\r\n")
        assert await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(b"{}")
        assert (await wire.answer())[0] == 201
        await wire.send(POST + expect + b"Content-Length: 50000000\r\n\r\n")
        await wire.refusal(413)
    async with connected(api) as wire:
        await wire.send(POST.replace(b"conversations", b"nothing") + expect + b"Content-Length: 2\r\n\r\n")
        await wire.problem(404)
        await wire.end()


# --- how many -----------------------------------------------------------------------------------------------


async def test_bodies_of_one_owner() -> None:
    """An owner's unfinished bodies keep its next large one waiting, but none of another, and no small one."""
    limits = {"max_body_bytes": 1 << 20, "body_memory_bytes": 4 << 20, "rate_limit": "0"}
    async with served(auth="jwt", jwt_secret=SECRET, **limits) as api, connected(api) as hostile:
        one, two = authorized("one"), authorized("two")
        body = big(1_000_000)
        await hostile.send(posted(body, one)[: -len(body) // 2])
        await asyncio.sleep(0.3)
        async with connected(api) as same, connected(api) as other, connected(api) as small:
            await same.send(posted(body, one))
            waiting = asyncio.create_task(same.answer())
            await other.send(posted(body, two))
            assert (await other.answer())[0] == 422
            await small.send(posted(b"{}" + b" " * 60_000, one))
            assert (await small.answer())[0] == 201
            assert not waiting.done()
            await hostile.send(body[-len(body) // 2 :])
            assert (await hostile.answer())[0] == 422
            assert (await waiting)[0] == 422


async def test_memory_that_is_taken() -> None:
    """What is given back goes to those who wait; too many of one owner do not wait, and others still may."""
    budget = BodyBudget(400, 100)
    assert await budget.take("one", 100)
    waiting = [asyncio.create_task(budget.take("one", 100)) for _ in range(MAX_WAITING_PER_OWNER)]
    await asyncio.sleep(0)
    assert not await budget.take("one", 1)
    assert [await budget.take(other, 100) for other in ("two", "three", "four")] == [True] * 3
    fifth = asyncio.create_task(budget.take("five", 100))
    await asyncio.sleep(0.01)
    assert not fifth.done()
    budget.give_back("two", 100)
    assert await fifth
    for _ in waiting:
        budget.give_back("one", 100)
        (done, _) = await asyncio.wait(
            [each for each in waiting if not each.done()], timeout=1, return_when="FIRST_COMPLETED"
        )
        assert len(done) == 1
    assert all(each.result() for each in waiting)


async def test_requests_that_are_too_many() -> None:
    """They are 503 with Retry-After, but the probes are answered."""
    async with served(max_requests=2) as api, connected(api) as one, connected(api) as two, connected(api) as third:
        for wire in (one, two):
            await wire.send(POST + b"Content-Length: 2\r\n\r\n{")
        await asyncio.sleep(0.3)
        await third.send(b"GET /api/conversations HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await third.problem(503))["retry-after"] == "1"
        for path in ("/healthz", "/readyz"):
            assert (await api.client.get(path)).status_code == 200
        await one.send(b"}")
        assert (await one.answer())[0] == 201
        assert (await api.client.get("/api/conversations")).status_code == 200


async def test_streams_of_one_owner() -> None:
    """One more than an owner may have is 429, a problem; they are no requests under way; an ended one makes room."""
    limits = {"max_streams": 3, "max_requests": 2, "rate_limit": "0"}
    async with served(auth="jwt", jwt_secret=SECRET, **limits) as api:
        stream(api, size=1, pause=0.1)
        request = b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n"
        async with connected(api) as one, connected(api) as two, connected(api) as three, connected(api) as four:
            for wire in (one, two, three):
                await wire.send(request + authorized("one") + b"\r\n")
                assert b" 200 " in await wire.reader.readline()
            await four.send(request + authorized("one") + b"\r\n")
            assert (await four.problem(429))["retry-after"] == "1"
            await four.send(request + authorized("two") + b"\r\n")
            assert b" 200 " in await four.reader.readline()
            one.writer.transport.abort()
            await asyncio.sleep(0.5)
            async with connected(api) as again:
                await again.send(request + authorized("one") + b"\r\n")
                assert b" 200 " in await again.reader.readline()


async def test_connections_that_are_too_many() -> None:
    """The oldest of those that never sent anything makes room, and not one that is at work or was."""
    async with served(max_connections=16) as api, connected(api) as busy, connected(api) as used:
        await busy.send(POST + b"Content-Length: 2\r\n\r\n{")
        await used.send(GET + b"\r\n")
        await used.answer()
        silent = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(100)]
        async with connected(api) as newest:
            await newest.send(GET + b"\r\n")
            assert (await newest.answer())[0] == 200
        assert await asyncio.wait_for(silent[0][0].read(), 5) == b""
        await busy.send(b"}")
        assert (await busy.answer())[0] == 201
        await used.send(GET + b"\r\n")
        assert (await used.answer())[0] == 200
        for _, writer in silent:
            writer.transport.abort()


async def test_connections_that_are_all_at_work() -> None:
    """If none is idle, a new one is told so."""
    async with served(max_connections=16) as api:
        wires = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(16)]
        for _, writer in wires:
            writer.write(POST + b"Content-Length: 2\r\n\r\n{")
        await asyncio.sleep(0.3)
        async with connected(api) as newest:
            await newest.send(GET + b"\r\n")
            assert (await newest.problem(503))["retry-after"] == "1"
        for _, writer in wires:
            writer.transport.abort()
