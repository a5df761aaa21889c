"""What honest clients pay: CPU seconds of the server, of two checkouts: `python -m benchmarks.http_cpu A B`.

A and B are Pythons, or checkouts with a .venv. In each round a server of each is started, and both get the same
requests in turn, slice by slice: what disturbs the machine disturbs both. A ratio is B's CPU time through A's. Compare
a checkout with itself to know how much of a ratio is noise.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import uvloop

from benchmarks.attack_report import table
from benchmarks.attack_server import Checkout, disk, end_at_sigterm, served
from benchmarks.cores import MEASURED, OTHERS, on
from benchmarks.http_client import Connection, body, connected, get, post
from benchmarks.measure import say
from benchmarks.postgres_server import Server, fresh_database, serving
from benchmarks.stores import url as sqlite_url
from benchmarks.texts import text

SLICES = 4
HISTORY = 50
WARM_UP = 200
"""Requests before a server is measured."""


@dataclass(frozen=True)
class Row:
    """What is compared."""

    work: str
    database: str
    search: str
    clients: int

    @property
    def name(self) -> str:
        """The row's name."""
        return f"HTTP {self.work}, {self.database}, search {self.search}, {self.clients} connections"


ROWS = tuple(
    Row(work, database, search, clients)
    for work, database, search in (
        ("append", "SQLite", "on"),
        ("append", "SQLite", "off"),
        ("append", "PostgreSQL", "off"),
        ("append", "PostgreSQL", "on"),
        ("history of 50", "SQLite", "on"),
        ("history of 50", "PostgreSQL", "on"),
    )
    for clients in (1, 16)
)


class Side:
    """A server of one checkout, and its clients."""

    def __init__(self, row: Row, pid: int, port: int) -> None:
        self._row = row
        self._pid = pid
        self._port = port
        self._paths: list[str] = []
        self.cpu = 0.0

    async def prepare(self) -> None:
        """Create what is appended to or read, and let the server become warm."""
        async with connected(self._port, self._row.clients) as connections:
            for connection in connections:
                made = body(await connection.send(post(self._port, "/api/conversations", {})))
                self._paths.append(f"/api/conversations/{made['id']}/messages")
            for number in range(HISTORY):
                each = zip(connections, self._paths, strict=True)
                await asyncio.gather(*(self._append(connection, path, number) for connection, path in each))
        await self._send(WARM_UP)

    async def work(self, requests: int) -> None:
        """Send requests, each connection one after another, and count the server's CPU time."""
        before = _cpu(self._pid)
        await self._send(requests)
        self.cpu += _cpu(self._pid) - before

    async def _send(self, requests: int) -> None:
        send = self._append if self._row.work == "append" else self._read

        async def repeat(connection: Connection, path: str) -> None:
            for number in range(requests // self._row.clients):
                await send(connection, path, number)

        # New ones each time: the server closes those that are idle while the other side works.
        async with connected(self._port, self._row.clients) as connections:
            await asyncio.gather(*map(repeat, connections, self._paths))

    async def _append(self, connection: Connection, path: str, number: int) -> None:
        value = {"id": str(uuid4()), "role": "user", "content": text(0, number)}
        await connection.send(post(self._port, path, value))

    async def _read(self, connection: Connection, path: str, _: int) -> None:
        await connection.send(get(self._port, f"{path}?limit={HISTORY}"))


def _cpu(pid: int) -> float:
    """CPU seconds of a process's threads, to the nanosecond; /proc/PID/stat counts in steps of 10 ms."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def main() -> int:
    """Compare two checkouts, and print the ratios."""
    arguments = _arguments()
    end_at_sigterm()
    sides = [Checkout.at(arguments.a), Checkout.at(arguments.b)]
    say(f"A: {sides[0].commit}, B: {sides[1].commit}, {arguments.rounds} rounds of {arguments.requests} requests each")
    chosen = [row for row in ROWS if not arguments.only or any(each in row.name for each in arguments.only)]
    with on(OTHERS), serving() as server:
        lines = [uvloop.run(_compare(row, sides, server, arguments.rounds, arguments.requests)) for row in chosen]
    columns = ("work", "A: µs a request", "B: µs a request", "B / A", "quartiles")
    say("\n" + table(columns, lines))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_cpu", description=__doc__)
    parser.add_argument("a", help="what it is compared with")
    parser.add_argument("b", help="what is compared")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3_000, help="of each side, in each round")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows whose name contains it")
    return parser.parse_args()


async def _compare(row: Row, sides: Sequence[Checkout], server: Server, rounds: int, requests: int) -> list[str]:
    found: list[list[float]] = []
    for number in range(rounds):
        found.append(await _round(row, sides, server, requests, turned=number % 2 == 1))
    ratios = [b / a for a, b in found]
    low, middle, high = statistics.quantiles(ratios, n=4)
    cells = [f"{statistics.median(cpu) / requests * 1e6:,.1f}" for cpu in zip(*found, strict=True)]
    say(f"{row.name}: {middle:.3f} ({low:.3f} - {high:.3f})")
    return [row.name, *cells, f"{middle:.3f}", f"{low:.3f} - {high:.3f}"]


async def _round(row: Row, sides: Sequence[Checkout], server: Server, requests: int, *, turned: bool) -> list[float]:
    """CPU seconds of both sides for the same requests."""
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(_side(row, checkout, server)) for checkout in sides]
        order = running[::-1] if turned else running
        for _ in range(SLICES // 2):
            for side in (*order, *order[::-1]):
                await side.work(requests // SLICES)
        return [side.cpu for side in running]


@asynccontextmanager
async def _side(row: Row, checkout: Checkout, server: Server) -> AsyncIterator[Side]:
    """A server that is ready and warm, with a database of its own."""
    async with AsyncExitStack() as stack:
        if row.database == "SQLite":
            url = sqlite_url(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=disk()))))
        else:
            url = await stack.enter_async_context(fresh_database(server))
        with on(MEASURED):
            target = stack.enter_context(served(checkout, f"{url}?search={row.search}", 1, {}))
        side = Side(row, target.process.pid, target.port)
        await side.prepare()
        yield side


if __name__ == "__main__":
    sys.exit(main())
