"""HTTP/1.1 connections of which every cost has a bound: uvicorn's protocol trusts its clients, this one does not.

uvicorn collects a head of any size, waits for ever for the rest of a request and for a client that does not read, and
queues every request that a client sends before it has the answers to those before.
"""

import asyncio
import heapq
import logging
import secrets
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from chatkeep.api.errors import BODY_FAILURE, BUSY, RETRY_AFTER, problem
from chatkeep.api.logs import FIELDS
from chatkeep.settings import Settings

logger = logging.getLogger(__name__)
requests_logger = logging.getLogger("chatkeep.requests")

MAX_HEAD_BYTES = 64 << 10
"""Most bytes of a request line with its headers, and of what is neither head nor body: a chunk's extensions, trailers.
Proxies send a few kB; those with a limit have 8 to 32 kB."""

MAX_HEADER_FIELDS = 100
"""Most header fields of a request. Browsers behind proxies send about 40."""

MAX_BODY_PARTS, BYTES_PER_PART = 20_000, 64
"""Most parts of a body, chunks or what arrives at once, and for how many bytes there may be one more: a chunk of a byte
costs as much as one of 64 kB."""

MAX_PIPELINED = 64
"""Most requests that wait for the answer to an earlier one on their connection."""

BODY_IDLE_SECONDS = 15.0
"""Longest time without a byte in the middle of a body."""

LINGER_SECONDS, LINGER_IDLE_SECONDS, LINGER_BYTES = 30.0, 5.0, 64 << 20
"""How long, and how much of a body that nobody wants, is read and thrown away after the answer: many clients send all
before they read, and closing the connection while they send would take the answer from them."""

MAX_UNSENT_BYTES = 256 << 20
"""Most bytes of responses, of all connections together, that clients have not read yet."""

CHECK_SECONDS = 1.0
"""Time between two looks at all connections. One task for all: a timer for each request would cost every request."""


class Config(uvicorn.Config):
    """The configuration of uvicorn, with the limits of a connection."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__("", http=Protocol, ws="none", **options)
        self.max_connections = settings.max_connections
        self.head_seconds = settings.head_seconds
        self.body_seconds = settings.body_seconds
        self.keep_alive_seconds = settings.keep_alive_seconds
        self.write_seconds = settings.write_seconds
        self.drain_seconds = settings.drain_seconds


class Reading(Enum):
    """What of a request comes next on a connection."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()


class _Refused(Exception):  # the parser knows that it has to stop by an exception
    """What arrives is refused."""


class Protocol(HttpToolsProtocol):
    """A connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config
        self._reading = Reading.IDLE
        self._messages = 0
        self._received = 0
        self._parts = self._body_bytes = 0
        self._overhead = 0
        """Bytes since the last part of a body, or since the end of the last request."""
        self._read_until = float("inf")
        """The count of received bytes at which the connection is closed."""
        self._failure = 400
        self._discarding = False
        """Whether everything that still comes is thrown away."""
        self.lingering = False
        """Whether the client was told that no more responses come."""
        self._seen: tuple[object, ...] = ()
        self._unsent = 0

    # --- what arrives ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection. If there are too many, the oldest idle ones are closed, or this one is refused."""
        super().connection_made(transport)
        self._socket = transport
        # uvicorn has its own way to close; it only calls a few methods of the transport.
        self.transport = cast("asyncio.Transport", _Transport(transport, self))
        self._phase_at = self._heard_at = self._wrote_at = self.loop.time()
        if len(self.connections) > self._limits.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that the client is gone."""
        self.lingering = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, never more than MAX_HEAD_BYTES at once before it is known what they are."""
        self._received += len(data)
        if self._received > self._read_until:
            self._socket.close()
        elif not self._discarding:
            if len(data) <= MAX_HEAD_BYTES - self._overhead:
                self._feed(data)
            else:
                self._feed_in_parts(memoryview(data))

    def _feed_in_parts(self, rest: memoryview) -> None:
        while rest and not self._discarding:
            room = MAX_HEAD_BYTES - self._overhead
            if room:
                self._feed(rest[:room])
                rest = rest[room:]
            else:
                self._refuse(431)

    def _feed(self, data: bytes | memoryview) -> None:
        self._overhead += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The response says nothing of an upgrade. What followed the head in `data` is lost.
            self._end_after_response()
        except httptools.HttpParserError:
            self._refuse(self._failure)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._reading = Reading.HEAD
        self._messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field. Trailers are thrown away: the application has seen the headers."""
        if self._reading is Reading.BODY:
            return
        if len(self.headers) == MAX_HEADER_FIELDS:
            self._fail(431)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind an earlier one."""
        encodings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if encodings and encodings != [b"chunked"]:
            self._fail(501)
        if self.parser.should_upgrade() and self._has_body(encodings):
            # The parser takes what follows for another protocol, and so the body for the next request.
            self._fail(501)
        if len(self.pipeline) == MAX_PIPELINED:
            self._fail(503)
        super().on_headers_complete()
        self._reading, self._overhead = Reading.BODY, 0
        self._parts = self._body_bytes = 0

    def _has_body(self, encodings: list[bytes]) -> bool:
        return bool(encodings) or any(name == b"content-length" and value != b"0" for name, value in self.headers)

    def _fail(self, status: int) -> None:
        self._failure = status
        raise _Refused

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._overhead = 0
        self._parts += 1
        self._body_bytes += len(body)
        if self._parts > MAX_BODY_PARTS + self._body_bytes // BYTES_PER_PART:
            self._fail(413)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        super().on_message_complete()
        self._reading, self._overhead, self._read_until = Reading.IDLE, 0, float("inf")

    # --- how it ends ----------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Start the next request that waits, or read on. uvicorn would start a timer, and read in both cases."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self.flow.resume_reading()
        if self._reading is Reading.BODY:
            self.cycle.body = bytearray()
            self._read_until = self._received + LINGER_BYTES
            if self.expect_100_continue:
                self.close()  # the client may never send the body, and the next request in its place

    @property
    def is_idle(self) -> bool:
        """Whether no request waits for its response."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def unsent(self) -> int:
        """Bytes of responses that the client has not read."""
        return self._socket.get_write_buffer_size()

    def close(self) -> None:
        """Close the connection; if the client still sends, let it read the response first."""
        sends = self._discarding or self.pipeline or self._reading is not Reading.IDLE
        if self.lingering or self._socket.is_closing() or not sends:
            self._socket.close()
            return
        self._discarding = self.lingering = True
        self._read_until = self._received + LINGER_BYTES
        self.pipeline.clear()
        self.flow.resume_reading()
        self._socket.write_eof()

    def drop(self) -> None:
        """Close the connection at once."""
        self.lingering = True
        self.connections.discard(self)
        self._socket.abort()

    def shutdown(self) -> None:
        """Close the connection after the responses under way."""
        if self.is_idle:
            self._socket.close()
        else:
            super().shutdown()

    def _end_after_response(self) -> None:
        """Take nothing more; the last response under way says so."""
        self._discarding = True
        self.cycle.keep_alive = False

    def _refuse(self, status: int) -> None:
        """Take nothing more, and answer the request that is arriving with a problem document."""
        self._discarding = True
        if self.is_idle:
            self._answer(status)
            self.close()
            return
        self.cycle.keep_alive = False
        if self._reading is Reading.BODY:
            self.cycle.scope["state"][BODY_FAILURE] = status
            self.cycle.message_event.set()

    def _answer(self, status: int) -> None:
        """Write a problem document, unless the request that still arrives has had its response."""
        # Imported here: prometheus_client reads the environment when it is imported.
        from chatkeep.api.metrics import count_refusal
        from chatkeep.api.middleware import SECURITY_HEADERS

        if self._reading is Reading.BODY:
            return
        request_id = secrets.token_hex(8)
        headers = {**(RETRY_AFTER if status == 503 else {}), "Connection": "close", "X-Request-ID": request_id}
        response = problem(status, BUSY if status == 503 else None, headers=headers)
        lines = [*self.server_state.default_headers, *response.raw_headers, *SECURITY_HEADERS]
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, bytes(response.body)))
        count_refusal(status)
        requests_logger.info("refused", extra={FIELDS: {"request": request_id, "status": status}})

    # --- time and number ------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End what has taken too long. Called every CHECK_SECONDS with the loop's time."""
        phase = (self._reading, self._messages, self.is_idle, self.lingering)
        received, unsent = self._received, self.unsent
        seen_phase, seen_received = self._seen or (None, 0)
        if phase != seen_phase:
            self._phase_at = self._phase_at if not self._seen else now
        if received != seen_received or self.flow.read_paused:
            self._heard_at = now  # a client that is not read from cannot send
        if unsent != self._unsent or not unsent:
            self._wrote_at = now
        self._seen, self._unsent = (phase, received), unsent
        if now - self._wrote_at > self._limits.write_seconds:
            self.drop()
        else:
            self._check_reading(now - self._phase_at, now - self._heard_at)

    def _check_reading(self, seconds: float, silent: float) -> None:
        limits, in_body = self._limits, self._reading is Reading.BODY
        if self.lingering or (self.is_idle and in_body):
            if seconds > LINGER_SECONDS or silent > LINGER_IDLE_SECONDS:
                self._socket.close()
        elif self._discarding:
            return  # the connection ends with the response under way
        elif not self.is_idle:
            if in_body and (seconds > limits.body_seconds or silent > BODY_IDLE_SECONDS):
                self._refuse(408)
        elif self._overhead or self._reading is Reading.HEAD:
            if seconds > limits.head_seconds:
                self._refuse(408)
        elif seconds > (limits.head_seconds if self.cycle is None else limits.keep_alive_seconds):
            self._socket.close()

    def _make_room(self) -> None:
        """Close the idle connections that are so for longest, first those that never sent a request.

        One in sixteen, so that looking for them costs each new connection little.
        """
        others = cast("Iterable[Protocol]", self.connections - {self})
        idle = [each for each in others if each.is_idle]
        for each in heapq.nsmallest(max(1, len(idle) // 16), idle, key=Protocol._age):
            each.drop()
        if not idle:
            self._refuse(503)

    def _age(self) -> tuple[bool, float]:
        return self.cycle is not None, self._phase_at


class _Transport:
    """The transport as uvicorn sees it, which closes it as soon as a last response is written."""

    def __init__(self, transport: asyncio.Transport, protocol: Protocol) -> None:
        self.close = protocol.close
        self._transport = transport
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        if not self.is_closing():  # uvloop raises, in the moment before the protocol hears that the client is gone
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.lingering or self._transport.is_closing()


async def watch(state: ServerState) -> None:
    """Check the connections every CHECK_SECONDS, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        for connection in cast("list[Protocol]", list(state.connections)):
            try:
                connection.check(loop.time())
            except Exception:  # one connection must not take their limits from the others
                logger.exception("a connection could not be checked, and is closed")
                connection.drop()
        _drop_stalled(cast("Iterable[Protocol]", state.connections))


def _drop_stalled(connections: Iterable[Protocol]) -> None:
    """While the clients together leave too much unread, drop the one that has not read for longest."""
    unread = [each for each in connections if each.unsent]
    total = sum(each.unsent for each in unread)
    for each in sorted(unread, key=lambda each: each._wrote_at):
        if total <= MAX_UNSENT_BYTES:
            break
        total -= each.unsent
        each.drop()
