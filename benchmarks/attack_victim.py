"""What others see: `python -m benchmarks.attack_victim PORT TOKEN`, until a line comes on standard input.

It prints a line when it begins, and in the end what it saw.
A client that is not the attacker sends a request every 20 ms, whether or not the ones before were answered: in turn a
history of 50 messages and a message. Each wait counts from the moment at which the request was due, so that a server
that stands still for a second shows in 50 waits, not in one. Beside it a probe asks /readyz five times a second, each
time on a new connection, and waits a second at most, as Kubernetes does.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol
from uuid import uuid4

import uvloop

from benchmarks.attack_prepare import CONVERSATION
from benchmarks.http_client import Connection, bearer, get, post

EVERY_SECONDS = 0.02
CONNECTIONS = 8
"""How many connections the client has at most; requests that are due wait for one of them in line."""

REQUESTS_PER_CONNECTION = 10
"""A new connection now and then: a server that takes no new ones shows."""

RETRY_SECONDS = 0.1
PROBE_EVERY_SECONDS = 0.2
PROBE_TIMEOUT_SECONDS = 1.0
RECOVERY_SECONDS = 5.0
"""How long after the end requests may still be answered; those that are not count with their wait so far."""


class Victim:
    """The client and the probe."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = bearer(token)
        self._due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._open: set[float] = set()
        self._sent = 0
        self._waits: list[float] = []
        self._errors: Counter[str] = Counter()
        self._probes: Counter[str] = Counter()
        self._stop = asyncio.Event()

    async def run(self) -> dict[str, object]:
        """Send until `stop`, and say what was seen."""
        workers = [asyncio.create_task(self._work()) for _ in range(CONNECTIONS)]
        probe = asyncio.create_task(self._probe())
        await self._send()
        probe.cancel()
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                await self._due.join()
        except TimeoutError:
            pass  # the server does not answer: what is still open is counted below
        for worker in workers:
            worker.cancel()
        return self._report()

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    async def _send(self) -> None:
        due = time.perf_counter()
        while not self._stop.is_set():
            self._open.add(due)
            self._due.put_nowait((due, self._request()))
            due += EVERY_SECONDS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    def _request(self) -> bytes:
        path = f"/api/conversations/{CONVERSATION}/messages"
        self._sent += 1
        if self._sent % 2:
            return get(self._port, f"{path}?limit=50", headers=self._headers)
        return post(
            self._port, path, {"id": str(uuid4()), "role": "user", "content": "hello " * 20}, headers=self._headers
        )

    async def _work(self) -> None:
        """Send one request after another, each until it is answered."""
        connection, used = None, 0
        while True:
            due, request = await self._due.get()
            while due in self._open:
                try:
                    if connection is None or connection.closed or used >= REQUESTS_PER_CONNECTION:
                        if connection:
                            connection.close()
                        connection, used = await self._connect(), 0
                    await connection.send(request)
                    used += 1
                    self._open.discard(due)
                    self._waits.append(time.perf_counter() - due)
                except (OSError, RuntimeError) as error:
                    self._errors[_kind(error)] += 1
                    connection = None
                    await asyncio.sleep(RETRY_SECONDS)
            self._due.task_done()

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        return connection

    async def _probe(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._ask())
                await asyncio.sleep(PROBE_EVERY_SECONDS)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                connection = await self._connect()
                try:
                    await connection.send(get(self._port, "/readyz"))
                finally:
                    connection.close()
            self._probes["200"] += 1
        except (OSError, RuntimeError) as error:
            self._probes[_kind(error)] += 1

    def _report(self) -> dict[str, object]:
        now = time.perf_counter()
        waits = sorted(self._waits + [now - due for due in self._open])
        return {
            "requests": len(waits),
            "p50": quantile(waits, 0.5),
            "p99": quantile(waits, 0.99),
            "worst": waits[-1],
            "errors": dict(self._errors),
            "unanswered": len(self._open),
            "probes": self._probes.total(),
            "not_ready": self._probes.total() - self._probes["200"],
            "probe_answers": dict(self._probes),
        }


def quantile(waits: list[float], share: float) -> float:
    """The wait, in seconds, below which a share of all sorted waits lies."""
    return waits[min(len(waits) - 1, int(len(waits) * share))]


def _kind(error: Exception) -> str:
    """The status of an answer that is not 2xx, or the kind of the error."""
    text = str(error)
    return text.partition("HTTP/1.1 ")[2][:3] or type(error).__name__


class Client(Protocol):
    """What measures in a process of its own."""

    def stop(self) -> None:
        """Begin to end."""

    async def run(self) -> dict[str, Any]:
        """Measure until stopped, and return what was measured."""


def measure(client: Callable[[int, str], Client]) -> None:
    """Let a client measure the server at the port, with the token, of the command line, until anything is sent here."""

    async def run() -> None:
        measuring = client(int(sys.argv[1]), sys.argv[2])
        asyncio.get_running_loop().add_reader(sys.stdin, measuring.stop)
        print("started", flush=True)
        print(json.dumps(await measuring.run()), flush=True)

    uvloop.run(run())


if __name__ == "__main__":
    measure(Victim)
