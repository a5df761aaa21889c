"""What PostgreSQL acknowledged is there after a crash, whatever it is set to; and sessions of no use are let go."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from benchmarks.postgres_server import Server

from chatkeep import NewConversation, Store, StoreUnavailable, UnsafeDatabase, open_store
from chatkeep.stores.postgres.database import Mark, _mark
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.store import PostgresStore
from chatkeep.testing import contents, dense, numbered, seqs, someone, user, whole_log
from servers import pgbouncer
from servers.pgbouncer import Bouncer
from servers.postgres import databases, durable_databases, plain, raw


@pytest.fixture
def durable_url() -> Iterator[str]:
    """An empty database on a server that waits for the disk."""
    url = durable_databases().empty()
    yield url
    durable_databases().drop(url)


async def setting(store: Store, name: str = "synchronous_commit") -> str:
    """What a setting is in a session of the store's."""
    assert isinstance(store, PostgresStore)
    value: str = await store._database.write(lambda session: session.fetchval(f"SHOW {name}"))
    return value


@pytest.mark.parametrize(
    ("server_says", "options", "expected"),
    [
        ("off", {}, "on"),
        ("local", {}, "on"),
        ("DEFAULT", {}, "on"),
        ("remote_apply", {}, "remote_apply"),
        ("off", {"durability": "relaxed"}, "off"),
    ],
)
async def test_commits_wait_for_the_disk(
    durable_url: str, server_says: str, options: dict[str, Any], expected: str
) -> None:
    """Whatever the database is set to, and is set to later; a stronger setting stays; relaxed leaves it."""
    name = urlsplit(durable_url).path.removeprefix("/")
    async with raw(durable_url) as connection:
        await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = {server_says}')
        async with open_store(durable_url, **options) as store:
            assert await setting(store) == expected
            assert await setting(store, "fsync") == "on"
            try:
                await connection.execute("ALTER SYSTEM SET synchronous_commit = off")
                await connection.execute("SELECT pg_reload_conf()")
                await asyncio.sleep(0.2)
                assert await setting(store) == expected
            finally:
                await connection.execute("ALTER SYSTEM RESET synchronous_commit")
                await connection.execute("SELECT pg_reload_conf()")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own that writes its log to the disk late, unless a commit waits for it."""
    server = Server(wal_writer_delay="10s", synchronous_commit="on")
    server.start()
    yield server
    server.remove()


@asynccontextmanager
async def reached(server: Server, way: str) -> AsyncIterator[str]:
    """The URL of the server, or of a pooler before it."""
    bouncer = Bouncer(server.url()) if way == "pgbouncer" else None
    try:
        yield bouncer.url if bouncer else server.url()
    finally:
        if bouncer:
            bouncer.remove()


@pytest.mark.long
@pytest.mark.parametrize("way", ["direct", "pgbouncer"])
async def test_a_reload_and_a_crash_lose_nothing(server: Server, way: str) -> None:
    """Messages that were acknowledged after synchronous_commit was set to off are there after a crash."""
    if way == "pgbouncer" and pgbouncer.program() is None:
        pytest.skip(pgbouncer.version())
    owner = someone()
    async with reached(server, way) as url, open_store(url, write_timeout=5) as store:
        talk = await store.create_conversation(owner, NewConversation())
        await store.append(owner, talk.id, [user("before")])
        async with raw(server.url()) as connection:
            await connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            await connection.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(0.2)
        for number in range(50):
            await store.append(owner, talk.id, [user(f"alone {number}")])
        await store.append(owner, talk.id, numbered(3))
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.to_thread(server.start)
    async with raw(server.url()) as connection:
        assert await connection.fetchval("SELECT count(*) FROM messages") == 54


@pytest.mark.long
async def test_a_crash_of_the_server_makes_its_numbers_void(server: Server) -> None:
    """After a crash another transaction may get the number of one that was lost: no commit is found by it then."""
    async with open_store(server.url()) as store:
        assert isinstance(store, PostgresStore)
        database = store._database
        mark = await database.write(a_commit)
        assert await database._was_committed(mark)
        victim = await database.write(lambda session: session.fetchval("SELECT pg_backend_pid()"))
        os.kill(victim, signal.SIGKILL)  # upon which the server ends all others, and recovers
        mark_after = await database.write(a_commit)
        assert not await database._was_committed(mark)
        assert await database._was_committed(mark_after)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        assert not await database._was_committed(mark_after)


async def a_commit(session: Connection) -> Mark:
    """The mark of a transaction that writes."""
    await session.execute("INSERT INTO users VALUES ($1)", someone())
    mark = await _mark(session)
    assert mark
    return mark


async def test_a_server_that_forgets_is_refused() -> None:
    """Without waiting for the disk a crash of the machine loses what was acknowledged: it must be asked for."""
    url = databases().clean()
    with pytest.raises(UnsafeDatabase, match=r"fsync = off, full_page_writes = off.*durability=relaxed"):
        await open_store(plain(url))
    async with open_store(plain(url), durability="relaxed") as store:
        await store.ping()


@pytest.mark.parametrize("options", [{}, {"durability": "relaxed"}])
async def test_an_encoding_that_cannot_hold_every_text_is_refused(options: dict[str, Any]) -> None:
    """A database in LATIN1 would refuse emoji for ever."""
    name = f"latin_{uuid4().hex}"
    url = urlsplit(databases().clean())._replace(path=f"/{name}").geturl()
    async with raw(databases().used()) as admin:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
        with pytest.raises(UnsafeDatabase, match=r"LATIN1.*ENCODING 'UTF8'"):
            await open_store(url, **options)
        await admin.execute(f"DROP DATABASE {name}")


@pytest.fixture
async def limited_url() -> AsyncIterator[str]:
    """An empty database of a role that may open five connections."""
    role, url = f"limited_{uuid4().hex}", databases().empty()
    parts = urlsplit(url)
    name = parts.path.removeprefix("/")
    async with raw(databases().clean()) as admin:
        await admin.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 5 PASSWORD 'zq7limited'")
        await admin.execute(f'ALTER DATABASE "{name}" OWNER TO {role}')
        yield parts._replace(netloc=f"{role}:zq7limited@{parts.hostname}:{parts.port}").geturl()
        databases().drop(url)
        await admin.execute(f"DROP ROLE {role}")


async def test_fewer_connections_than_the_pool(limited_url: str) -> None:
    """Calls wait for one of the connections that there are: 320 at once all succeed, while others are cancelled."""
    async with open_store(limited_url, pool_size=10) as store:
        owner = someone()
        talks = [await store.create_conversation(owner, NewConversation()) for _ in range(8)]

        async def use(number: int) -> None:
            talk = talks[number % 8].id
            await store.append(owner, talk, numbered(1 + number % 2))
            await store.history(owner, talk)

        cancelled = []
        for number in range(40):
            cancelled.append(asyncio.create_task(store.get_conversation(owner, talks[number % 8].id)))
            asyncio.get_running_loop().call_later(number / 400, cancelled[-1].cancel)
        await asyncio.gather(*map(use, range(320)))
        await asyncio.gather(*cancelled, return_exceptions=True)
        logs = [await whole_log(store, owner, talk.id) for talk in talks]
        assert sum(map(len, logs)) == 480
        assert [seqs(log) for log in logs] == [dense(len(log)) for log in logs]
        assert store.state()["connections_used"] == 0


@pytest.mark.long
async def test_no_connection_is_left(limited_url: str) -> None:
    """While others have them all, a call waits, and says what is missing if that takes too long."""
    async with open_store(limited_url) as store:
        owner = someone()
        talk = await store.create_conversation(owner, NewConversation())
    others = [await open_store(limited_url, migrate=False) for _ in range(5)]
    for other in others:
        await other.ping()
    async with open_store(limited_url, migrate=False, pool_timeout=0.5) as store:
        with pytest.raises(StoreUnavailable, match="no connection left"):
            await store.history(owner, talk.id)
        waiting = asyncio.create_task(store.append(owner, talk.id, [user("hello")]))
        await asyncio.sleep(0.3)
        for other in others:
            await other.aclose()
        await waiting
        assert contents(await whole_log(store, owner, talk.id)) == ["hello"]


async def test_a_session_that_only_reads_is_let_go() -> None:
    """After a failover the sessions of the old primary take no writes: the next try has another session."""
    async with open_store(databases().clean(), pool_size=4, write_timeout=3) as store:
        assert isinstance(store, PostgresStore)
        owner = someone()
        talk = await store.create_conversation(owner, NewConversation())
        await asyncio.gather(*(store.get_conversation(owner, talk.id) for _ in range(4)))
        for session in store._database._pool._idle:
            await session.execute("SET default_transaction_read_only = on")
        await store.append(owner, talk.id, [user("alone")])
        await store.append(owner, talk.id, numbered(2))
        assert seqs(await whole_log(store, owner, talk.id)) == dense(3)
