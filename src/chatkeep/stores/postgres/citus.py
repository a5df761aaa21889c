"""Citus: the same tables, spread over many machines by owner.

The rows of one owner are on one machine. A statement that locks or changes rows names one owner, and so does a
batch: Citus refuses to lock the rows of several. Functions run on the coordinator, so `chatkeep_append` is not used.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from chatkeep.errors import InvalidInput
from chatkeep.stores.postgres.append import APPEND_AT, Item
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.rows import Row

DISTRIBUTED = {
    "users": "id",
    "conversations": "owner_id",
    "messages": "owner_id",
    "requests": "owner_id",
    "conversation_labels": "owner_id",
    "projects": "owner_id",
    "turns": "owner_id",
    "turn_events": "owner_id",
    "documents": "owner_id",
    "chunks": "owner_id",
    "vectors": "owner_id",
}
"""The tables with their distribution columns; all are colocated with the first."""

EVERYWHERE = ("api_keys", "word_index", "llm_providers", "erasures")
"""The reference tables, copied to every machine: a key is looked up before its owner is known, words and providers are
of no owner, and of who was erased only a hash is known."""

OF_OWNER = "FOREIGN KEY (owner_id) REFERENCES users (id) ON DELETE CASCADE"
OF_CONVERSATION = "FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE"
OF_PROJECT = "FOREIGN KEY (owner_id, project_id) REFERENCES projects (owner_id, id) ON DELETE CASCADE"
OF_DOCUMENT = (
    "FOREIGN KEY (owner_id, project_id, document_id) REFERENCES documents (owner_id, project_id, id) ON DELETE CASCADE"
)
OF_TURN = "FOREIGN KEY (owner_id, turn) REFERENCES turns (owner_id, number) ON DELETE CASCADE"
REFERENCES = (
    ("conversations", "conversations_owner_id_fkey", OF_OWNER),
    ("messages", "messages_owner_id_conversation_id_fkey", OF_CONVERSATION),
    ("conversation_labels", "conversation_labels_owner_id_conversation_id_fkey", OF_CONVERSATION),
    ("projects", "projects_owner_id_fkey", OF_OWNER),
    ("turns", "turns_owner_id_conversation_id_fkey", OF_CONVERSATION),
    ("turn_events", "turn_events_owner_id_turn_fkey", OF_TURN),
    ("documents", "documents_owner_id_project_id_fkey", OF_PROJECT),
    ("chunks", "chunks_owner_id_project_id_document_id_fkey", OF_DOCUMENT),
    ("vectors", "vectors_owner_id_project_id_fkey", OF_PROJECT),
)
"""The foreign keys between them, dropped while only some tables are distributed: Citus cannot hold them then.
Without ON UPDATE CASCADE, which it refuses: no row gets another owner there."""

VERSION = "SELECT extversion FROM pg_extension WHERE extname = 'citus'"

LOCK = """
    SELECT id, last_seq, head_id, now() FROM conversations
    WHERE owner_id = $1 AND id = ANY($2) AND deleted_at IS NULL AND runs IS NULL
        AND head_seq IS NOT DISTINCT FROM nullif(last_seq, 0)
    ORDER BY id FOR NO KEY UPDATE
"""
KNOWN = "SELECT conversation_id FROM messages WHERE owner_id = $1 AND conversation_id = ANY($2) AND id = ANY($3)"
MOVE = """
    UPDATE conversations c
    SET last_seq = t.seq, head_seq = t.seq, head_id = t.id, title = coalesce(c.title, t.title),
        updated_at = greatest(c.updated_at, $6)
    FROM unnest($2::uuid[], $3::bigint[], $4::uuid[], $5::text[]) AS t (conversation_id, seq, id, title)
    WHERE c.owner_id = $1 AND c.id = t.conversation_id
"""
COLUMNS = (
    "conversation_id", "seq", "id", "depth", "parent_id", "fingerprint", "role", "content", "status", "parts",
    "sources", "metadata", "model", "input_tokens", "output_tokens", "duration_ms", "external_id", "sent_at", "terms",
)  # fmt: skip


class End(NamedTuple):
    """The end of a conversation: what the next message follows."""

    seq: int
    head_id: UUID | None
    title: str | None = None


async def append_alone(connection: Connection, item: Item) -> dict[UUID, Row]:
    """Append one item if that is simple, as `append.append` does.

    The conversation and the message are changed by two statements of a machine, each with a now() of its own: both get
    the coordinator's.
    """
    moment = await connection.fetchval("SELECT now()")
    row = await connection.fetchrow(APPEND_AT, *item, moment)
    return {} if row is None else {item.id: row}


async def append_of_owner(connection: Connection, owner: str, items: Sequence[Item]) -> dict[UUID, Row]:
    """Append each item of one owner where that is simple, in the transaction that is open: what
    `append.append` does for many owners at once, and returns.
    """
    ids = list({item.conversation_id for item in items})
    locked = await connection.fetch(LOCK, owner, ids)
    known = {row[0] for row in await connection.fetch(KNOWN, owner, ids, [item.id for item in items])}
    ends = {id_: End(last_seq, head_id) for id_, last_seq, head_id, _ in locked if id_ not in known}
    if not ends:
        return {}
    moment = locked[0][3]
    stored: dict[UUID, Row] = {}
    values: list[object] = []
    for number, item in enumerate(items, 1):
        end = ends.get(item.conversation_id)
        if end is not None:
            seq = end.seq + 1
            values += _values(item, seq, end.head_id)
            stored[item.id] = (number, seq, end.head_id, moment)
            ends[item.conversation_id] = End(seq, item.id, end.title or item.title)
    await connection.execute(MOVE, owner, *_columns(ends), moment)
    await connection.execute(_insert(len(stored)), owner, moment, *values)
    return stored


def _columns(ends: dict[UUID, End]) -> tuple[list[Any], ...]:
    return (list(ends), *map(list, zip(*ends.values(), strict=True)))


def _values(item: Item, seq: int, parent_id: UUID | None) -> tuple[object, ...]:
    before, after = (item.conversation_id, seq, item.id, seq, parent_id), item[3:-2]
    return *before, *after, None if item.terms is None else item.terms.split(" ")


@cache
def _insert(count: int) -> str:
    """The statement that inserts so many messages: rows of VALUES go straight to their machine, a SELECT does not."""
    width = len(COLUMNS)
    rows = (", ".join(f"${3 + n * width + column}" for column in range(width)) for n in range(count))
    lines = ", ".join(f"($1, 0, $2, {row})" for row in rows)
    return f"INSERT INTO messages (owner_id, run, created_at, {', '.join(COLUMNS)}) VALUES {lines}"  # noqa: S608


async def distribute(connection: Connection) -> list[str]:
    """Spread the tables that are not spread yet, in the transaction that is open; return their names."""
    if not await has_citus(connection):
        raise InvalidInput(
            "this PostgreSQL has no Citus, so there is nothing to distribute to;"
            " install it and run CREATE EXTENSION citus, or stay on one machine"
        )
    missing = [table for table in (*DISTRIBUTED, *EVERYWHERE) if not await _is_distributed(connection, table)]
    if missing:
        await _spread(connection, missing)
    return missing


async def _is_distributed(connection: Connection, table: str) -> bool:
    asked = "SELECT 1 FROM pg_dist_partition WHERE logicalrelid = $1::text::regclass"
    return await connection.fetchval(asked, table) is not None


async def _spread(connection: Connection, tables: Sequence[str]) -> None:
    # Tables that refer to each other are changed over one connection to each machine.
    await connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    for table, name, _ in REFERENCES:
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
    for table in tables:
        await _spread_one(connection, table)
    for table, name, definition in REFERENCES:
        await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


async def _spread_one(connection: Connection, table: str) -> None:
    if table in EVERYWHERE:
        await connection.execute("SELECT create_reference_table($1::text::regclass)", table)
        return
    others = "default" if table == "users" else "users"
    statement = "SELECT create_distributed_table($1::text::regclass, $2, colocate_with => $3)"
    await connection.execute(statement, table, DISTRIBUTED[table], others)


async def has_citus(connection: Connection) -> bool:
    """Whether the database is one of Citus."""
    return await connection.fetchval(VERSION) is not None
