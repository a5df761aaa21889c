"""Clients that want to stop a server, in a process of their own: `python attacks.py KIND PORT`, until it is killed."""

import asyncio
import resource
import sys
from collections.abc import Awaitable, Callable

HEAD = b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def _open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)


async def _drip(port: int, start: bytes, drop: bytes, seconds: float) -> None:
    while True:
        _, writer = await _open(port)
        writer.write(start)
        while not writer.transport.is_closing():
            writer.write(drop)
            await asyncio.sleep(seconds)


async def silent(port: int) -> None:
    """Send nothing, and come again when closed."""
    while True:
        reader, writer = await _open(port)
        while not reader.at_eof():
            await reader.read(1 << 16)
        writer.transport.abort()


async def slow_heads(port: int) -> None:
    """Send a head of almost 64 KiB, the end of it byte by byte."""
    await _drip(port, HEAD + b"X: " + b"a" * 64_000, b"a", 0.5)


async def slow_bodies(port: int) -> None:
    """Send a body of 8 MiB, the end of it byte by byte."""
    await _drip(port, HEAD + b"Content-Length: 8388608\r\n\r\n" + b'{"title":"' + b"a" * 8_000_000, b"a", 0.5)


async def small_slow_bodies(port: int) -> None:
    """Send a body of almost 64 KiB, the end of it byte by byte."""
    await _drip(port, HEAD + b"Content-Length: 65536\r\n\r\n" + b'{"title":"' + b"a" * 64_000, b"a", 0.5)


async def _flood(port: int, start: bytes) -> None:
    """Send something that never ends after `start`, as fast as the server takes it, again and again."""
    while True:
        _, writer = await _open(port)
        try:
            writer.write(start)
            while True:
                writer.write(b"a" * 1_000_000)
                await writer.drain()
        except ConnectionError:
            await asyncio.sleep(0.01)


async def header_flood(port: int) -> None:
    """Send one header that never ends."""
    await _flood(port, HEAD + b"X: ")


async def trailer_flood(port: int) -> None:
    """Send one trailer that never ends."""
    await _flood(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ")


async def pipelining(port: int) -> None:
    """Send 100,000 requests at once, and never read an answer."""
    while True:
        reader, writer = await _open(port)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        try:
            writer.write(b"GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100_000)
            await asyncio.wait_for(writer.drain(), 5)
        except (ConnectionError, TimeoutError):
            writer.transport.abort()
            await asyncio.sleep(0.01)


async def deaf(port: int) -> None:
    """Ask for large answers, and never read one."""
    while True:
        reader, writer = await _open(port)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        while not writer.transport.is_closing():
            writer.write(b"GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(1)


ATTACKS: dict[str, tuple[Callable[[int], Awaitable[None]], int]] = {
    "silent": (silent, 2_000),
    "slow_heads": (slow_heads, 1_000),
    "slow_bodies": (slow_bodies, 60),
    "small_slow_bodies": (small_slow_bodies, 900),
    "header_flood": (header_flood, 4),
    "trailer_flood": (trailer_flood, 4),
    "pipelining": (pipelining, 4),
    "deaf": (deaf, 100),
}
"""What each attack is, and how many connections it has."""


async def attack(kind: str, port: int) -> None:
    """Attack until cancelled."""
    what, connections = ATTACKS[kind]
    await asyncio.gather(*(what(port) for _ in range(connections)))


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(attack(sys.argv[1], int(sys.argv[2])))
