"""64 clients that read histories of one owner's, while another owner attacks: `python -m benchmarks.attacks --load`.

As a process, `python -m benchmarks.attack_load PORT TOKEN`, it is these clients: it prints a line when it begins, and
each asks again when it has its answer, until a line comes on standard input. A client that waits does not ask
meanwhile, so that a server which stands still would show in few waits: the ones that were left out are counted, as if
each client had asked again whenever its median wait had passed.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.attack_prepare import LOAD_READ, VICTIM, load_conversation
from benchmarks.attack_run import QUIET_SECONDS, Place, attacked, child, run_attacker, stopped
from benchmarks.attack_victim import measure, quantile
from benchmarks.attacker import Attack
from benchmarks.http_client import Connection, bearer, get

CLIENTS = 64
SECONDS = 12.0
LIMIT_SECONDS = 1.0
"""Within it 95 % of the requests must be answered."""

SHARE = 0.95
LOAD_ATTACKS = (
    "nothing", "text-user", "text-query-64k", "text-stored", "text-phrase-8", "json-sources-8", "json-fields-8",
    "json-lists-8", "json-patch-small", "headers-endless", "sockets-silent", "sockets-bodies", "erase-large",
    "limits-forwarded", "auth-issuer", "lists-total",
)  # fmt: skip
UNLIMITED = {"rate_limit": "10000000/minute"}
"""The 64 clients are one owner, and ask more often than one may; so may the attacker."""


def measure_load(place: Place, attack: Attack) -> dict[str, Any]:
    """Run an attack beside the clients, and return what they saw."""
    with (
        attacked(place, attack, UNLIMITED, ("load",)) as (target, keys),
        child("attack_load", target.port, keys.token(VICTIM)) as clients,
    ):
        time.sleep(QUIET_SECONDS)
        spent = run_attacker(attack, target, keys, SECONDS)
        time.sleep(QUIET_SECONDS)
        seen = stopped(clients)
    return {
        "attack": attack.name, "says": attack.says, "database": place.database, "workers": place.workers,
        "spent": spent, "load": seen, "reached": seen["p95"] <= LIMIT_SECONDS,
    }  # fmt: skip


def console(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    load = row["load"]
    waits = ", ".join(f"{name} {load[name] * 1e3:,.0f} ms" for name in ("p50", "p95", "p99", "worst"))
    verdict = "reached" if row["reached"] else "MISSED"
    return f"{row['attack']:<18} {waits}, {load['rate']:,.0f}/s, errors {load['errors']}: {verdict}"


class Load:
    """The clients."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = bearer(token)
        self._waits: list[float] = []
        self._waiting: dict[int, float] = {}
        self._errors: Counter[str] = Counter()
        self._stop = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """Read until `stop`, and say how long that took."""
        began = time.perf_counter()
        clients = [asyncio.create_task(self._read(number)) for number in range(CLIENTS)]
        await self._stop.wait()
        now = time.perf_counter()
        for client in clients:
            client.cancel()
        return self._report(now - began, [now - since for since in self._waiting.values()])

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()

    async def _read(self, number: int) -> None:
        connection: Connection | None = None
        while True:
            id_ = load_conversation(random.randrange(LOAD_READ))
            request = get(self._port, f"/api/conversations/{id_}/messages?limit=50", headers=self._headers)
            self._waiting[number] = time.perf_counter()
            answered = False
            while not answered:
                try:
                    if connection is None or connection.closed:
                        connection = await self._connect()
                    await connection.send(request)
                    answered = True
                except (OSError, RuntimeError) as error:
                    self._errors[type(error).__name__] += 1
                    connection = None
                    await asyncio.sleep(0.1)
            self._waits.append(time.perf_counter() - self._waiting.pop(number))

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        return connection

    def _report(self, seconds: float, unanswered: list[float]) -> dict[str, Any]:
        expected = quantile(sorted(self._waits), 0.5) if self._waits else SECONDS
        waits = sorted(each for wait in self._waits + unanswered for each in with_left_out(wait, expected))
        found = {"p50": 0.5, "p95": SHARE, "p99": 0.99}
        return {
            **{name: quantile(waits, share) for name, share in found.items()},
            "worst": waits[-1],
            "rate": len(self._waits) / seconds,
            "errors": dict(self._errors),
        }


def with_left_out(wait: float, expected: float) -> list[float]:
    """A wait, and those of the requests that its client would have sent meanwhile."""
    return [wait - number * expected for number in range(max(1, int(wait / expected)))]


if __name__ == "__main__":
    measure(Load)
