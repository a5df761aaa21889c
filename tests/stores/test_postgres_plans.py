"""How many rows the statements of the PostgreSQL store read, whatever its statistics say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from chatkeep import NewConversation, Status, open_store
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.rows import PostgresRows
from chatkeep.stores.rows import Key
from chatkeep.stores.slices import PageSize
from chatkeep.tree import Position, Segment
from chatkeep.turns import Ending, TurnKey
from servers.postgres import databases, raw

OWNER = "ada"
COUNT = 4_000
"""Messages of the conversation that is read: the last quarter on a branch, every 40th deleted."""

KEY: Key = (OWNER, UUID("01a20d6a-2a65-7f21-8218-53b385d1a75c"))
SMALL_ONES = """
    INSERT INTO users VALUES ('bob'), ('ada');
    INSERT INTO conversations (owner_id, id, metadata, last_seq, head_seq, fingerprint)
    SELECT CASE n % 2 WHEN 0 THEN 'bob' ELSE 'ada' END, md5(n::text)::uuid, '{}', 1, 1, ''
    FROM generate_series(1, 2000) n;
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, role, content, status, fingerprint, terms)
    SELECT owner_id, id, 1, id, 0, 1, 'user', 'hello', 'complete', '', '{x}' FROM conversations;
    VACUUM ANALYZE
"""
"""Conversations of one message. A long one is one of many, and autovacuum needs a while to notice it at all."""

FILL = """
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, role, content, status, fingerprint, terms)
    SELECT owner_id, id, n, md5('message ' || n)::uuid, (n > 3000)::integer, CASE WHEN n > 3000 THEN n - 1 ELSE n END,
        'user', 'hello', CASE n % 40 WHEN 0 THEN 'deleted' ELSE 'complete' END, '', '{x}'
    FROM conversations, generate_series(1, 4000) n WHERE owner_id = $1 AND id = $2
"""
ROWS_READ = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = 'messages'"
"""Rows of messages that the open transaction has read."""

SEQS = list(range(1_001, 1_101))
IDS_OF = "SELECT array_agg(id) FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND seq = ANY($3)"
SIZE = PageSize(100, 1 << 20)
TRUNK, BRANCH = Segment(0, 1_001, 3_000, trunk=True), Segment(1, 3_001, COUNT, trunk=False)

type Read = Callable[[PostgresRows, list[UUID]], Awaitable[object]]

READS: dict[str, Read] = {
    "position": lambda rows, _: rows.position(KEY, 2_000),
    "messages_by_seq": lambda rows, _: rows.messages_by_seq(KEY, SEQS, SIZE),
    "messages_by_seq backwards": lambda rows, _: rows.messages_by_seq(KEY, SEQS[::-1], SIZE),
    "messages_by_id": lambda rows, ids: rows.messages_by_id(KEY, ids),
    "one by id": lambda rows, ids: rows.messages_by_id(KEY, ids[:1]),
    "known": lambda rows, ids: rows.known(KEY, ids),
    "one known": lambda rows, ids: rows.known(KEY, ids[:1]),
    "repeated": lambda rows, ids: rows.repeated(KEY, ids[0], b""),
    "log": lambda rows, _: rows.log(KEY, 1_000, SIZE),
    "fingerprints": lambda rows, _: rows.fingerprints(KEY, SEQS[0], SEQS[-1]),
    "next_in_run": lambda rows, _: rows.next_in_run(KEY, Position(3_500, 1, 3_499)),
    "segment of the trunk": lambda rows, _: rows.segment(KEY, TRUNK, "asc", SIZE),
    "segment of a branch": lambda rows, _: rows.segment(KEY, BRANCH, "desc", SIZE),
    "places of the trunk": lambda rows, _: rows.places(KEY, [TRUNK], "desc", 100),
    "places of a branch": lambda rows, _: rows.places(KEY, [BRANCH], "asc", 100),
    "count of deleted": lambda rows, _: rows.count_segment(KEY, TRUNK, deleted=True),
    "deleted_places": lambda rows, _: rows.deleted_places(KEY, (-1, 0), 100),
    "set_answer": lambda rows, ids: rows.set_answer(TurnKey(*KEY, ids[0]), Ending(Status.COMPLETE)),
    "erase_message": lambda rows, ids: rows.erase_message(KEY, ids[0]),
}


@pytest.fixture(scope="module", params=["", SMALL_ONES], ids=["no statistics", "statistics of small conversations"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with a long conversation, of which the planner knows nothing."""
    url = databases().empty()
    asyncio.run(fill(url, request.param))
    yield url
    databases().drop(url)


async def fill(url: str, known: str) -> None:
    """Have the planner know what is there after the statements `known`, and then add the long conversation."""
    async with open_store(url) as store, raw(url) as connection:
        await connection.execute("ALTER TABLE messages SET (autovacuum_enabled = off)")
        for statement in filter(str.strip, known.split(";")):
            await connection.execute(statement)
        await store.create_conversation(OWNER, NewConversation(id=KEY[1]))
        await connection.execute(FILL, *KEY)


@pytest.mark.parametrize("name", READS)
async def test_rows_read(url: str, name: str) -> None:
    """A statement reads the rows that it returns, looked at twice at most, and not the conversation."""
    async with raw(url) as connection, rolled_back(connection):
        ids = await connection.fetchval(IDS_OF, *KEY, SEQS)
        before = await connection.fetchval(ROWS_READ)
        await READS[name](PostgresRows(connection, LongTexts()), ids)
        assert await connection.fetchval(ROWS_READ) - before <= 2 * len(SEQS)


@asynccontextmanager
async def rolled_back(connection: Connection) -> AsyncIterator[None]:
    """A transaction that leaves nothing."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()
