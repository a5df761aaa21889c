"""Attacks below the requests: heads and bodies that do not end, and connections that nobody reads from."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import cycle

from benchmarks.attack_texts import MESSAGES
from benchmarks.attacker import Attack, Attacker

HOLD_SECONDS = 8.0
ENDLESS = 300_000_000
"""Where what does not end is given up, in bytes."""


def endless(attacker: Attacker, start: bytes, more: bytes, size: int = ENDLESS, end: bytes = b"") -> None:
    """Send a start, and the same again and again until the size is reached or the server has closed."""
    attacker.requests += 1
    piece = more * max(1, (1 << 18) // len(more))
    with attacker.connect() as connection:
        going = attacker.send(connection, start)
        while going and attacker.bytes_sent < size:
            going = attacker.send(connection, piece)
        if going and end:
            attacker.send(connection, end)
        _read_answer(attacker, connection)


def _read_answer(attacker: Attacker, connection: socket.socket) -> None:
    connection.settimeout(3.0)
    try:
        status, _, _ = attacker.read(connection)
        attacker.answers[str(status or "closed")] += 1
    except OSError as error:
        attacker.answers[type(error).__name__] += 1


def chunked(attacker: Attacker, after: bytes, more: bytes) -> None:
    """A body in chunks that is never complete."""
    head = (
        f"POST {MESSAGES} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {attacker.token}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    endless(attacker, head.encode() + after, more)


def silent(attacker: Attacker, count: int) -> None:
    """Connections on which nothing is sent."""
    _hold([attacker.connect() for _ in range(_counted(attacker, count))], lambda _: None)


def unfinished(attacker: Attacker, count: int) -> None:
    """Bodies that lack their last byte."""
    size = (8 << 20) - 1
    head = (
        f"POST {MESSAGES} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {attacker.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size + 1}\r\n\r\n"
    )
    connections = [attacker.connect() for _ in range(_counted(attacker, count))]
    for connection in connections:
        connection.settimeout(5.0)
        with suppress(OSError):
            attacker.send(connection, head.encode() + b'"' + b"x" * (size - 1))
    _hold(connections, lambda _: None)


def slow_heads(attacker: Attacker, count: int) -> None:
    """Heads of which a byte comes every second."""
    connections = [attacker.connect() for _ in range(_counted(attacker, count))]
    _hold(connections, lambda connection: attacker.send(connection, b"G"))


def unread(attacker: Attacker, count: int) -> None:
    """Requests one after another on connections from which nothing is read."""
    request = (
        f"GET {MESSAGES}?limit=50 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {attacker.token}\r\n\r\n"
    ).encode()
    connections = []
    for _ in range(_counted(attacker, count)):
        connection = attacker.connect()
        connection.settimeout(0)
        connections.append(connection)

    def push(connection: socket.socket) -> None:
        with suppress(OSError):  # its buffer is full
            for _ in range(20):
                attacker.bytes_sent += connection.send(request * 10)
                attacker.requests += 10

    _hold(connections, push, every=0.2)


def churn(attacker: Attacker) -> None:
    """Connections that are opened and reset as fast as it goes."""

    def connect(_: int) -> None:
        attacker.requests += 1
        with attacker.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    attacker.for_seconds(5.0, 8, connect)


def _counted(attacker: Attacker, count: int) -> int:
    attacker.requests += count
    return count


def _hold(connections: list[socket.socket], work: Callable[[socket.socket], object], every: float = 1.0) -> None:
    """Keep connections for a while, doing something with each now and then."""
    end = time.monotonic() + HOLD_SECONDS
    while time.monotonic() < end:
        for connection in connections:
            with suppress(OSError):  # the server has closed it
                work(connection)
        time.sleep(every)


def many_headers(attacker: Attacker) -> None:
    """100,000 short headers, and then the end of the head."""
    lines = b"".join(b"a%d:b\r\n" % number for number in range(100_000))
    attacker.requests += 1
    with attacker.connect() as connection:
        attacker.send(connection, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + lines + b"\r\n")
        _read_answer(attacker, connection)


def uploads(attacker: Attacker) -> None:
    """Large bodies without a token, and of a kind that is refused: for every byte that comes there is an answer."""
    body = b"x" * (8 << 20)
    kinds = cycle(("Authorization: Bearer no\r\nContent-Type: application/json", "Content-Type: text/plain"))

    def upload(_: int) -> None:
        head = f"POST {MESSAGES} HTTP/1.1\r\nHost: 127.0.0.1\r\n{next(kinds)}\r\nContent-Length: {1 << 40}\r\n\r\n"
        attacker.exchange(head.encode() + body)

    attacker.for_seconds(5.0, 8, upload)


START = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ATTACKS = (
    Attack("headers-endless", partial(endless, start=START, more=b"x-header: bbbbbbbb\r\n"),
           "headers of 20 bytes without an end and without a token, 300 MB at most"),
    Attack("headers-one", partial(endless, start=START + b"a: ", more=b"b"),
           "one header without an end, 300 MB at most"),
    Attack("headers-many", many_headers, "100,000 short headers"),
    Attack("headers-line", partial(endless, start=b"GET /", more=b"a", size=10_000_000, end=b" HTTP/1.1\r\n\r\n"),
           "a request line of 10 MB"),
    Attack("headers-extension", partial(chunked, after=b"1;", more=b"a"), "a chunk extension without an end"),
    Attack("headers-trailers", partial(chunked, after=b"0\r\n", more=b"a: " + b"b" * 8_000 + b"\r\n"),
           "trailers without an end"),
    Attack("headers-chunks", partial(chunked, after=b"", more=b"1\r\nx\r\n"), "chunks of one byte without an end"),
    Attack("sockets-silent", partial(silent, count=1_100), "1,100 connections that send nothing, for 8 s"),
    Attack("sockets-bodies", partial(unfinished, count=60), "60 bodies of 8 MB that lack a byte, for 8 s"),
    Attack("sockets-slow", partial(slow_heads, count=500), "500 heads of a byte a second, for 8 s"),
    Attack("sockets-unread", partial(unread, count=50), "50 connections that ask and do not read, for 8 s"),
    Attack("sockets-churn", churn, "connections opened and reset, for 5 s"),
    Attack("sockets-uploads", uploads, "bodies that are refused early and go on, for 5 s"),
)  # fmt: skip
