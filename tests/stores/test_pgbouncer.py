"""The PostgreSQL store behind PgBouncer in transaction mode: each transaction may meet another connection."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from topics import DifferentTopics, DifferentTurnTopics, DocumentTopics, SharedTopics, SharedTurnTopics

from chatkeep import NewConversation, Store, open_store
from chatkeep.documents import ChunkRange, Nearest, NewChunk, NewDocument, content_id
from chatkeep.projects import NewProject
from chatkeep.providers import EXTRACTIVE_ID, LlmProviderChange, NewLlmProvider
from chatkeep.testing import Opener, dense, seqs, user, whole_log
from servers import pgbouncer
from servers.postgres import databases, plain, raw

pytestmark = pytest.mark.skipif(pgbouncer.program() is None, reason=pgbouncer.version())

OWNER = "ada"
PGVECTOR = """
    CREATE EXTENSION vector;
    CREATE INDEX ON vectors USING hnsw ((vector::vector(2)) vector_cosine_ops) WHERE space = 'minilm/2'
"""


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


class TestDocumentTopics(OnPgBouncer, DocumentTopics):
    """Projects and documents, of which a test below is made for the pooler."""


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


async def test_providers_through_the_pooler(store: Store) -> None:
    """Eight change and name providers at once: their locks end with their transactions."""
    made = [
        await store.providers.create_provider(NewLlmProvider(provider_name="scripted", model_name=f"m{number}"))
        for number in range(8)
    ]
    default, removed = LlmProviderChange(is_default=True), made[0].id
    talks = [await store.create_conversation(OWNER, NewConversation(llm_provider_id=removed)) for _ in range(8)]
    await asyncio.gather(
        *(store.providers.update_provider(each.id, default) for each in made[1:]),
        *(store.append(OWNER, talk.id, [user("hello")]) for talk in talks),
        store.providers.delete_provider(removed, replacement=EXTRACTIVE_ID),
    )
    assert sum(each.is_default for each in await store.providers.list_providers()) == 1
    assert {(await store.get_conversation(OWNER, talk.id)).llm_provider_id for talk in talks} == {EXTRACTIVE_ID}


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


@pytest.mark.long
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


async def test_documents_through_the_pooler(bouncer: pgbouncer.Bouncer) -> None:
    """Documents are stored at once, read and searched by pgvector's index, and removed, over ever other connections."""
    direct = databases().empty()
    url = urlsplit(bouncer.url)._replace(path=urlsplit(direct).path).geturl()
    chunks = [NewChunk(f"thyme {n}", None, "", n, bytes(4), struct.pack("<2f", 1, n)) for n in range(5)]
    try:
        async with raw(direct) as connection, open_store(url) as store:
            await connection.execute(PGVECTOR)
            project = await store.projects.create_project(OWNER, NewProject(name="k"))

            async def use(number: int) -> list[Nearest] | None:
                new = NewDocument(file_path=str(number), media_type="text/plain", bytes=1, sha256=f"{number:064x}")
                stored = await store.documents.store_document(OWNER, project.id, new, chunks, space="minilm/2")
                id_ = stored.document.id
                ranges = [ChunkRange(id_, content_id(id_, new.sha256), 0, 9)]
                (entries,) = await store.documents.index_entries(OWNER, project.id, ranges, space="minilm/2")
                assert [each.vector for each in entries] == [each.vector for each in chunks]
                return await store.documents.nearest_chunks(OWNER, project.id, "minilm/2", vector, limit=1)

            vector = struct.pack("<2f", 1, 3)
            found = await asyncio.gather(*map(use, range(16)))
            assert [each and each[0].n for each in found] == [3] * 16
            assert await store.projects.delete_project(OWNER, project.id)
            assert await connection.fetchval("SELECT count(*) FROM vectors") == 0
    finally:
        databases().drop(direct)
