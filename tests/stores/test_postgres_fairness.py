"""Calls of one owner that take long on PostgreSQL: others have connections, and the server ends what was given up."""

import asyncio
import time
from typing import Any

import pytest

from chatkeep import NewConversation, Store, StoreUnavailable, open_store
from chatkeep.stores.postgres.database import Database
from chatkeep.stores.time_limit import GRACE_SECONDS
from chatkeep.testing import someone, user
from servers.postgres import databases, raw

RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"


def database_of(store: Store) -> Database:
    """The database of a store."""
    database: Database = store._database  # type: ignore[attr-defined]
    return database


async def test_searches_of_one_owner_leave_connections_to_others() -> None:
    """While searches, totals and late pages of one owner hang, others write and read, and the store answers."""
    eve, url = someone(), databases().clean()
    async with open_store(url, pool_size=4) as store, raw(url) as other:
        talk = await store.create_conversation(eve, NewConversation())
        await store.append(eve, talk.id, [user("sage")])
        async with other.transaction():
            await other.execute("LOCK TABLE messages")  # what searches read, and others here do not
            waiting = list[asyncio.Task[Any]]()
            waiting += [asyncio.create_task(store.search_messages(eve, "sage")) for _ in range(16)]
            waiting += [asyncio.create_task(store.history(eve, talk.id, total=True)) for _ in range(16)]
            waiting += [asyncio.create_task(store.history(eve, talk.id, offset=10_000)) for _ in range(16)]
            await asyncio.sleep(0.3)
            began = time.monotonic()
            for _ in range(5):
                await store.ping()
                made = await store.create_conversation(someone(), NewConversation())
                assert await store.get_conversation(made.owner_id, made.id) == made
            assert time.monotonic() - began < 2
            assert not any(task.done() for task in waiting[:16])
        await asyncio.gather(*waiting)


async def test_server_ends_what_was_given_up() -> None:
    """A statement whose caller has left does not go on."""
    url = databases().clean()
    async with open_store(url, read_timeout=0.5, write_timeout=0.5) as store, raw(url) as other:
        calls = [database_of(store).read(lambda session: session.execute("SELECT pg_sleep(60)")) for _ in range(4)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, StoreUnavailable)
        await asyncio.sleep(2 * GRACE_SECONDS)
        assert await other.fetchval(RUNNING) == 0


async def test_pooled_statement_ends_too() -> None:
    """Behind a pooler the limit is set in every transaction."""
    url = databases().clean()
    async with open_store(url, read_timeout=0.5, write_timeout=0.5, pgbouncer=True) as store, raw(url) as other:
        with pytest.raises(StoreUnavailable):
            await database_of(store).read(lambda session: session.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(2 * GRACE_SECONDS)
        assert await other.fetchval(RUNNING) == 0


async def test_slow_work_has_no_such_limit() -> None:
    """Migrations and renames may take longer than other statements."""
    url = databases().clean()
    async with open_store(url, read_timeout=0.5, write_timeout=0.5) as store:
        await database_of(store).write(lambda session: session.execute("SELECT pg_sleep(1.5)"), slow=True)
