"""Migrations of PostgreSQL: step by step, while others read and write, completed after a kill."""

import asyncio
import time
from collections.abc import Iterator
from uuid import UUID

import asyncpg
import pytest

from chatkeep import NewConversation, open_store
from chatkeep.documents import NewChunk, NewDocument
from chatkeep.events import EventKind, TurnEvent
from chatkeep.migrations import HEAD, steps
from chatkeep.projects import NewProject
from chatkeep.providers import EXTRACTIVE_ID
from chatkeep.testing import user
from chatkeep.turns import TurnKey, TurnWrite
from servers.postgres import databases, raw

OWNER = "ada"
NEW_DOCUMENT = NewDocument(file_path="guide.md", media_type="text/markdown", bytes=1, sha256="0" * 64)
INDEX = "conversations_by_project"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'conversations_by_project'::regclass"


@pytest.fixture
def url() -> Iterator[str]:
    """A database of its own, with the schema of the revision before 0005."""
    url = databases().empty()

    async def before() -> None:
        async with open_store(url, migrate=False) as store:
            await store.migrate("0004")

    asyncio.run(before())
    yield url
    databases().drop(url)


async def migrate(url: str, revision: str = "head") -> str | None:
    """Bring a database to a revision, the newest unless another is named, and return it."""
    async with open_store(url, migrate=False) as store:
        await store.migrate(revision)
        return await store.schema_revision()


@pytest.mark.long
async def test_nobody_waits_behind_a_step_that_waits(url: str) -> None:
    """While a step waits for a long transaction that has read a table, others read it with pauses of half a second."""
    async with raw(url) as reader, raw(url) as other:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetch("SELECT 1 FROM messages")
        migrating = asyncio.create_task(migrate(url))
        waits = []
        for _ in range(30):
            began = time.monotonic()
            await other.fetch("SELECT 1 FROM messages LIMIT 1")
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        assert not migrating.done()
        await transaction.rollback()
        assert await migrating == HEAD
        assert 0.1 < max(waits) < 2.0  # behind a step it would be for ever: the transaction ends after these reads


async def test_what_is_left_of_an_index_is_built_anew(url: str) -> None:
    """An index whose builder was killed is not taken for one."""
    async with raw(url) as connection, raw(url) as reader:
        await connection.execute("ALTER TABLE conversations ADD COLUMN project_id uuid")
        transaction = reader.transaction(isolation="repeatable_read")
        await transaction.start()
        await reader.fetch("SELECT 1 FROM conversations")
        await connection.execute("SET statement_timeout = 300")
        with pytest.raises(asyncpg.QueryCanceledError):  # it waits for the reader
            await connection.execute(f"CREATE INDEX CONCURRENTLY {INDEX} ON conversations (id)")
        await transaction.rollback()
        assert await connection.fetchval(VALID) is False
        assert await migrate(url) == HEAD
        assert await connection.fetchval(VALID) is True
        definition = await connection.fetchval(f"SELECT pg_get_indexdef('{INDEX}'::regclass)")
        assert "project_id" in definition


@pytest.mark.long
async def test_processes_that_migrate_at_once(url: str) -> None:
    """Of several one makes each step and each index; all end at the newest revision, and can write."""
    assert await asyncio.gather(*(migrate(url) for _ in range(4))) == [HEAD] * 4
    async with open_store(url) as store, raw(url) as connection:
        await store.create_conversation(OWNER, NewConversation(labels=("pinned",)))
        assert await connection.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
        assert await connection.fetchval("SELECT count(*) FROM pg_constraint WHERE NOT convalidated") == 0


@pytest.mark.long
@pytest.mark.parametrize("attempt", [0, *(pytest.param(number, marks=pytest.mark.apart) for number in (1, 2, 3))])
async def test_processes_that_find_what_is_left_of_an_index(url: str, attempt: int) -> None:
    """Of several one drops it and one builds it anew: nobody drops what another is building, or has built."""
    async with raw(url) as connection, raw(url) as reader:
        await connection.execute("ALTER TABLE conversations ADD COLUMN project_id uuid")
        transaction = reader.transaction(isolation="repeatable_read")
        await transaction.start()
        await reader.fetch("SELECT 1 FROM conversations")
        await connection.execute("SET statement_timeout = 100")
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.execute(f"CREATE INDEX CONCURRENTLY {INDEX} ON conversations (id)")
        await transaction.rollback()
        assert await asyncio.gather(*(migrate(url) for _ in range(8))) == [HEAD] * 8
        assert await connection.fetchval(VALID) is True
        assert await connection.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


async def test_turns_are_added_beside_a_process_that_does_not_know_them() -> None:
    """Killed after any step of 0006 and run again; meanwhile the schema serves both, and what has turns can go."""
    url = databases().empty()
    try:
        async with open_store(url, migrate=False) as store, raw(url) as connection:
            await store.migrate("0005")
            await connection.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
            *begun, _ = steps("postgresql", "0005", "0006")
            for _, step in begun:
                await connection.execute(step)
            assert await migrate(url, "0006") == await migrate(url, "0006") == "0006"
            assert await connection.fetchval("SELECT served_from FROM chatkeep_schema") == "0005"
            assert await migrate(url) == HEAD
            talk = await store.create_conversation(OWNER, NewConversation())
            turn = await store.turns.start_turn(OWNER, talk.id, user("why?"), worker=UUID(int=1))
            key = TurnKey(OWNER, talk.id, turn.answer.id)
            event = TurnEvent(1, EventKind.TEXT, {"text": "tea"})
            await store.turns.append_turn_events(UUID(int=1), [TurnWrite(key, [event])])
            # What a process of 0005 does to delete a conversation.
            for statement in ("DELETE FROM messages", "DELETE FROM conversations"):
                await connection.execute(statement)
            assert await connection.fetchval("SELECT count(*) FROM turn_events") == 0
    finally:
        databases().drop(url)


async def test_documents_are_added_beside_a_process_that_does_not_know_them() -> None:
    """Killed after any step of 0007 and run again; meanwhile the schema serves both, and it can go back."""
    url = databases().empty()
    try:
        assert await migrate(url, "0006") == "0006"
        async with open_store(url, migrate=False) as store, raw(url) as connection:
            *begun, _ = steps("postgresql", "0006", "0007")
            for _, step in begun:
                await connection.execute(step)
            # What a process of 0006 does for an import.
            await connection.execute("INSERT INTO users VALUES ('ada')")
            await connection.execute("INSERT INTO projects (owner_id, id, name) VALUES ('ada', $1, 'k')", UUID(int=7))
            assert await migrate(url, "0007") == await migrate(url, "0007") == "0007"
            assert await connection.fetchval("SELECT served_from FROM chatkeep_schema") == "0006"
            assert await migrate(url) == HEAD
            chunks = [NewChunk("thyme", None, "", 0, b"", bytes(8))]
            await store.documents.store_document(OWNER, UUID(int=7), NEW_DOCUMENT, chunks, space="m/2")
            gone = await store.projects.create_project(OWNER, NewProject(name="gone"))
            await connection.execute("UPDATE projects SET deleted_at = now() WHERE id = $1", gone.id)
            assert await migrate(url, "0006") == "0006"
            assert [tuple(row) for row in await connection.fetch("SELECT id FROM projects")] == [(UUID(int=7),)]
            assert await migrate(url) == HEAD
            assert (await store.projects.get_project(OWNER, UUID(int=7))).documents == 0
    finally:
        databases().drop(url)


OTHER_DEFAULT = """
    INSERT INTO llm_providers (id, provider_name, model_name, is_default)
    VALUES ('00000000-0000-0000-0000-000000000007', 'scripted', 'tea', true)
"""


@pytest.mark.parametrize("there", ["SELECT 1", OTHER_DEFAULT], ids=["no provider", "another default"])
async def test_providers_are_added_beside_a_process_that_does_not_know_them(there: str) -> None:
    """Killed after any step of 0008 and run again; there is one default, that which was there if there was one."""
    url, default = databases().empty(), UUID(int=7) if there == OTHER_DEFAULT else EXTRACTIVE_ID
    try:
        assert await migrate(url, "0007") == "0007"
        async with open_store(url, migrate=False) as store, raw(url) as connection:
            await connection.execute(there)
            *begun, _ = steps("postgresql", "0007", "0008")
            for _, step in begun:
                await connection.execute(step)
            assert await migrate(url, "0008") == await migrate(url, "0008") == "0008"
            assert await connection.fetchval("SELECT served_from FROM chatkeep_schema") == "0007"
            assert await connection.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
            assert await migrate(url) == HEAD
            assert [each.id for each in await store.providers.list_providers()] == [default]
            talk = await store.create_conversation(OWNER, NewConversation(llm_provider_id=default))
            assert await migrate(url, "0007") == "0007"
            assert await connection.fetchval("SELECT count(*) FROM llm_providers") == 0
            assert await connection.fetchval("SELECT llm_provider_id FROM conversations") is None
            assert await migrate(url) == HEAD
            assert [each.id for each in await store.providers.list_providers()] == [EXTRACTIVE_ID]
            assert (await store.get_conversation(OWNER, talk.id)).llm_provider_id is None
    finally:
        databases().drop(url)
