"""The PostgreSQL store behind PgBouncer in transaction mode: each transaction may meet another connection."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from topics import DifferentTopics, DifferentTurnTopics, SharedTopics, SharedTurnTopics

from chatkeep import NewConversation, Store, open_store
from chatkeep.testing import Opener, dense, seqs, user, whole_log
from servers import pgbouncer
from servers.postgres import databases, plain

pytestmark = pytest.mark.skipif(pgbouncer.program() is None, reason=pgbouncer.version())

OWNER = "ada"


@pytest.fixture(scope="module")
def bouncer() -> Iterator[pgbouncer.Bouncer]:
    """A PgBouncer before the server of the tests."""
    bouncer = pgbouncer.Bouncer(databases().clean())
    yield bouncer
    bouncer.remove()


@pytest.fixture
def url(bouncer: pgbouncer.Bouncer) -> str:
    """An empty database, through PgBouncer."""
    databases().clean()
    return bouncer.url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store that finds out by itself what it talks to."""
    async with open_store(url) as store:
        yield store


class OnPgBouncer:
    """The public suite, with the option that says so."""

    @pytest.fixture
    def open_store_with(self, bouncer: pgbouncer.Bouncer) -> Opener:
        """Open the store of this run; the suite bears what other tests left."""
        return partial(open_store, bouncer.url, pgbouncer="on")


class TestDifferentTopics(OnPgBouncer, DifferentTopics):
    """The topics of the public suite that differ here."""


class TestSharedTopics(OnPgBouncer, SharedTopics):
    """The others."""


class TestDifferentTurnTopics(OnPgBouncer, DifferentTurnTopics):
    """The topics of turns that differ here."""


class TestSharedTurnTopics(OnPgBouncer, SharedTurnTopics):
    """The others."""


async def test_pooler_does_what_the_store_is_kept_from(url: str) -> None:
    """The pooler of these tests does lose prepared statements: else they would show nothing."""
    clients = [await asyncpg.connect(plain(url)) for _ in range(6)]

    async def ask() -> None:
        for number in range(300):
            await asyncio.gather(*(client.fetchval(f"SELECT $1::int + {number}", 1) for client in clients))

    try:
        with pytest.raises((asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)):
            await ask()
    finally:
        for client in clients:
            client.terminate()


async def test_pooler_is_found_out(store: Store) -> None:
    """Without the option, the pooler's refusal of settings tells; 32 writers at once store what they should."""
    talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(8)]
    messages = [user(f"hello {number}", id=uuid4()) for number in range(320)]

    async def write(number: int) -> None:
        for message in messages[number::32]:
            await store.append(OWNER, talks[number % 8].id, [message])
            await store.append(OWNER, talks[number % 8].id, [message])

    await asyncio.gather(*map(write, range(32)))
    logs = [await whole_log(store, OWNER, talk.id) for talk in talks]
    assert [seqs(log) for log in logs] == [dense(40)] * 8
    assert {message.id for log in logs for message in log} == {message.id for message in messages}


async def test_schema_is_made_through_the_pooler(bouncer: pgbouncer.Bouncer) -> None:
    """Migrations run through it, too: their lock ends with their transaction."""
    direct = databases().empty()
    url = urlsplit(bouncer.url)._replace(path=urlsplit(direct).path).geturl()
    try:
        stores = await asyncio.gather(*(open_store(url) for _ in range(4)))
        await asyncio.gather(*(store.ping() for store in stores))
        await asyncio.gather(*(store.aclose() for store in stores))
    finally:
        databases().drop(direct)
