"""Databases on a PostgreSQL server: the one that CHATKEEP_TEST_POSTGRES_URL names, or one that is started here.

The one that is started here does not wait for the disk; its URLs say so to a store, and `plain` takes that away.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
from benchmarks.postgres_server import FAST, PASSWORD, USER, Server, plain

from chatkeep import open_store
from chatkeep.providers import EXTRACTIVE, EXTRACTIVE_ID

__all__ = ["Databases", "databases", "durable_databases", "empty", "plain", "raw", "stopped", "with_query"]

TABLES = (
    "turn_events",
    "turns",
    "conversation_labels",
    "messages",
    "conversations",
    "vectors",
    "chunks",
    "documents",
    "projects",
    "users",
    "api_keys",
    "erasures",
    "requests",
    "llm_providers",
)
"""What tests write to, each before what it refers to."""
FEW_BYTES = 1 << 20
"""Up to so many, rows are deleted: TRUNCATE makes the files of all tables and indexes anew, ten times the work."""
STORED_BYTES = "SELECT sum(pg_relation_size(name::regclass)) FROM unnest($1::text[]) AS name"
CHEAP_PASSWORD = f"SET scram_iterations = 1; ALTER ROLE {USER} PASSWORD '{PASSWORD}'"
"""Each connection derives a key from the password in so many steps, by default 4,096: 6 ms of a client's time."""
DEFAULT_PROVIDER = "INSERT INTO llm_providers (id, provider_name, model_name, is_default) VALUES ($1, $2, $2, true)"


class Databases:
    """Fresh databases on the server that the tests use."""

    def __init__(self, given: str | None, **settings: str) -> None:
        """Take the URL of a server, or the settings of one to start."""
        self._given = given
        self.server = None if given else Server(**settings)
        if self.server:
            self.server.start()
        # In a thread of its own: fixtures ask for databases while a loop runs in theirs.
        self._thread = ThreadPoolExecutor(1, "databases")
        self._runner = asyncio.Runner()
        self._admin: asyncpg.Connection[asyncpg.Record] | None = None
        self._shared: str | None = None
        if self.server and self._run(self._connected()).get_server_version().major >= 16:
            self._execute(CHEAP_PASSWORD)

    def empty(self) -> str:
        """The URL of a new database without a schema."""
        name = f"chatkeep_{uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}"')
        return self._url(name)

    def clean(self) -> str:
        """The URL of a database with the newest schema and nothing in it: always the same, emptied each time."""
        if self._shared is None:
            self._shared = self.empty()
            self._run(_migrate(self._shared))
        self._run(_empty(self._shared))
        return self._shared

    def used(self) -> str:
        """The URL of `clean`, with whatever is in it: for tests that bear what others left."""
        return self._shared or self.clean()

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._execute(f'DROP DATABASE IF EXISTS "{self._name(url)}" WITH (FORCE)')

    def version(self) -> str:
        """Which server this is."""
        version: str = self._run(self._connected()).get_settings().server_version
        return f"PostgreSQL {version}, {'CHATKEEP_TEST_POSTGRES_URL' if self._given else 'started by the tests'}"

    def close(self) -> None:
        """Stop the server, or remove what was made on the one that was given."""
        if self._shared:
            self.drop(self._shared)
        if self._admin:
            self._run(self._admin.close())
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()
        if self.server:
            self.server.remove()

    def _url(self, database: str) -> str:
        if self.server:
            return self.server.url(database)
        return urlsplit(str(self._given))._replace(path=f"/{database}").geturl()

    def _name(self, url: str) -> str:
        return urlsplit(url).path.removeprefix("/")

    def _execute(self, statement: str) -> None:
        async def execute() -> None:
            await (await self._connected()).execute(statement)

        self._run(execute())

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.submit(self._runner.run, work).result()

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._admin is None or self._admin.is_closed():
            self._admin = await asyncpg.connect(plain(self._given or self._url("postgres")))
        return self._admin


async def _migrate(url: str) -> None:
    async with open_store(url):
        pass


async def _empty(url: str) -> None:
    async with raw(url) as connection:
        await empty(connection)


async def empty(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Leave nothing in a database with the newest schema but what a new one has."""
    async with connection.transaction():
        # Waits for those who still write, as TRUNCATE does.
        await connection.execute(f"LOCK TABLE {', '.join(TABLES)} IN EXCLUSIVE MODE")
        if await connection.fetchval(STORED_BYTES, TABLES) > FEW_BYTES:
            await connection.execute(f"TRUNCATE {', '.join(TABLES)}")
        else:
            await connection.execute("; ".join(f"DELETE FROM {table}" for table in TABLES))
        await connection.execute(DEFAULT_PROVIDER, EXTRACTIVE_ID, EXTRACTIVE)


@cache
def databases() -> Databases:
    """The databases of this run; the server starts with the first one."""
    return Databases(os.environ.get("CHATKEEP_TEST_POSTGRES_URL"), **FAST)


@cache
def durable_databases() -> Databases:
    """Databases on a server that waits for the disk at every commit, and that tests may set otherwise for a while."""
    return Databases(None)


def with_query(url: str, query: str) -> str:
    """The URL with more options in its query."""
    return f"{url}{'&' if '?' in url else '?'}{query}"


@asynccontextmanager
async def raw(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection beside the store's."""
    connection = await asyncpg.connect(plain(url))
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def started(**settings: str) -> Iterator[Server]:
    """A server of its own, for tests that stop it."""
    server = Server(**settings)
    server.start()
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Let no process of the server run: connections are taken, and nothing is answered."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)  # first, so that it starts no others
    processes = [*_children(postmaster), postmaster]
    _send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(processes, signal.SIGCONT)


def _send(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(process, number)


def _children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
    return found
