"""Migrations of a database in use, and two versions that serve it at once."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx2

from benchmarks.attack_run import Keys
from benchmarks.attack_server import Checkout, served
from benchmarks.drill_copy import compare
from benchmarks.drill_ledger import Trail
from benchmarks.migration_clients import Browser, Caller, Seen, call, common
from benchmarks.migration_source import PREVIOUS, Filled, Source
from benchmarks.migration_upgrade import Cost, upgrade
from benchmarks.postgres_server import plain
from chatkeep import Message, Status, open_store
from chatkeep.testing import dense, seqs, whole_log

OLD, NEW = "old", "new"
REQUEST_SECONDS = 120.0
READY_SECONDS = 0.5
LOCK_SECONDS = 0.02
"""Pauses between looks at /readyz, and at the locks that sessions wait for."""


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    writers: int = 8
    browsers: int = 2
    calm: float = 5.0
    """Seconds before and after the migration."""
    seconds: float = 60.0
    """How long two versions serve."""


@dataclass
class Outcome:
    """What was seen of servers in use, and what was in the database afterwards."""

    seen: Seen = field(default_factory=Seen)
    ready: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Answers of /readyz, by server and status: those after the migration."""
    began: float = 0.0
    ended: float = 0.0
    """When the migration began and ended."""
    cost: Cost = field(default_factory=Cost)
    lock_seconds: float = 0.0
    """PostgreSQL: the longest that a session waited for a table."""
    written: int = 0
    stored: dict[str, int] = field(default_factory=dict)
    """What is wrong with what was acknowledged."""

    def faults(self) -> list[str]:
        """Whatever must not be."""
        failed = [
            f"{server} {route}: {count}x {status}" for (server, route, status), count in self.seen.failures.items()
        ]
        stored = [f"stored: {name} {count}" for name, count in self.stored.items()]
        code = [f"exit code {self.cost.code}: {self.cost.said[-500:]}"] if self.cost.code else []
        return [*failed, *stored, *code, *self.seen.wrong[:5]]


@dataclass(frozen=True)
class Rolling:
    """Servers of two versions, and copies of a database of the older one."""

    source: Source
    previous: Checkout
    head: Checkout
    filled: Filled
    plan: Plan

    def migrate_in_use(self) -> Outcome:
        """Migrate while the old version serves."""
        return self._with_servers({OLD: self.previous}, self._migrated)

    def serve_both(self) -> Outcome:
        """Let both versions serve; the new one has migrated when it starts."""
        return self._with_servers({OLD: self.previous, NEW: self.head}, self._served)

    def _with_servers(self, checkouts: Mapping[str, Checkout], work: Any) -> Outcome:
        url, keys = self.source.copy(PREVIOUS), Keys(secrets.token_hex(32), None)
        with ExitStack() as stack:
            settings = {"rate_limit": "0", **keys.settings}
            ports = {
                name: stack.enter_context(served(checkout, url, 1, settings)).port
                for name, checkout in checkouts.items()
            }
            outcome, ledger = asyncio.run(self._used(url, ports, keys, work))
        asyncio.run(_look(url, ledger, outcome))
        self.source.drop(url)
        return outcome

    async def _used(self, url: str, ports: Mapping[str, int], keys: Keys, work: Any) -> tuple[Outcome, list[Trail]]:
        """Call the servers while `work` goes on."""
        outcome, ledger = Outcome(), list[Trail]()
        async with _clients(ports, self.plan.writers + self.plan.browsers) as clients:
            ended = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(call(self._callers(clients, keys, ledger, outcome.seen), ended))
                group.create_task(watch_ready(clients, outcome, ended))
                if url.startswith("postgresql"):
                    group.create_task(watch_locks(url, outcome, ended))
                await work(url, outcome)
                ended.set()
        outcome.written = sum(len(trail.requests) for trail in ledger)
        return outcome, ledger

    async def _migrated(self, url: str, outcome: Outcome) -> None:
        await asyncio.sleep(self.plan.calm)
        began = time.monotonic()
        outcome.began = began
        outcome.cost = await asyncio.to_thread(upgrade, self.head, url, pid=self.source.pid)
        outcome.ended = time.monotonic()
        await asyncio.sleep(self.plan.calm)

    async def _served(self, _: str, outcome: Outcome) -> None:
        outcome.ended = time.monotonic()
        await asyncio.sleep(self.plan.seconds)

    def _callers(
        self, clients: Mapping[str, httpx2.AsyncClient], keys: Keys, ledger: list[Trail], seen: Seen
    ) -> Sequence[Caller]:
        owners = [f"writer-{number}" for number in range(self.plan.writers)]
        writers = [Caller(clients, owner, ledger, seen, token=keys.token(owner)) for owner in owners]
        read = self.filled.owners[: self.plan.browsers]
        return [*writers, *(Browser(clients, owner, ledger, seen, token=keys.token(owner)) for owner in read)]


@asynccontextmanager
async def _clients(ports: Mapping[str, int], callers: int) -> AsyncIterator[Mapping[str, httpx2.AsyncClient]]:
    """A client for each server, which keeps no connection that the server might close meanwhile."""
    limits = httpx2.Limits(max_connections=2 * callers, max_keepalive_connections=callers, keepalive_expiry=2)
    clients = {
        name: httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=REQUEST_SECONDS, limits=limits)
        for name, port in ports.items()
    }
    try:
        yield clients
    finally:
        for client in clients.values():
            await client.aclose()


async def watch_ready(clients: Mapping[str, httpx2.AsyncClient], outcome: Outcome, ended: asyncio.Event) -> None:
    """Count the answers of /readyz after the migration."""
    while not ended.is_set():
        for name, client in clients.items():
            reply = await client.get("/readyz")
            if outcome.ended:
                outcome.ready[name, reply.status_code] += 1
        await asyncio.sleep(READY_SECONDS)


async def watch_locks(url: str, outcome: Outcome, ended: asyncio.Event) -> None:
    """Note the longest wait for a lock on a table or index."""
    connection = await asyncpg.connect(plain(url))
    waits = """
        SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float FROM pg_locks
        WHERE NOT granted AND locktype = 'relation'
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
    while not ended.is_set():
        outcome.lock_seconds = max(outcome.lock_seconds, await connection.fetchval(waits))
        await asyncio.sleep(LOCK_SECONDS)
    await connection.close()


async def _look(url: str, ledger: Sequence[Trail], outcome: Outcome) -> None:
    """Compare what is stored with what was acknowledged."""
    now = time.monotonic()
    counts = await compare(url, ledger, now, now)
    outcome.stored, found = counts.wrong(torn=True), Counter[str]()
    async with open_store(url) as store:
        for trail in ledger:
            if trail.state.exists:
                log = await whole_log(store, trail.owner, trail.id)
                found["conversations without dense seqs"] += seqs(log) != dense(len(log))
                found["differing messages"] += sum(_differs(message, outcome.seen) for message in log)
    outcome.stored |= +found


def _differs(message: Message, seen: Seen) -> bool:
    """Whether a message that was not deleted is other than it was acknowledged."""
    return message.status is not Status.DELETED and common(message.model_dump(mode="json")) != seen.messages[message.id]
