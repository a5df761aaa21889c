"""Removing conversations from PostgreSQL in slices, and giving them to another owner. Owners come encoded."""

from typing import NamedTuple, cast
from uuid import UUID

from chatkeep.access import IDS_CLASH
from chatkeep.errors import Conflict
from chatkeep.stores.postgres.pool import Connection

SLICE = 5_000
"""Messages that one transaction removes at most, so that nobody waits long for it."""


# --- removing --------------------------------------------------------------------------------------------


async def owners_with_remains(connection: Connection) -> list[str]:
    """Owners of conversations that were being removed when the process ended."""
    found = await connection.fetch("SELECT DISTINCT owner_id FROM conversations WHERE deleted_at IS NOT NULL")
    return [owner for (owner,) in found]


async def hide(connection: Connection, owner: str, id_: UUID) -> bool:
    """Make a conversation invisible; its rows are removed next. Say whether there was one."""
    status = await connection.execute(
        "UPDATE conversations SET deleted_at = now(), slot = false"
        " WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL",
        owner,
        id_,
    )
    return status != "UPDATE 0"


async def hide_all(connection: Connection, owner: str) -> None:
    """Make all conversations of an owner invisible."""
    await connection.execute(
        "UPDATE conversations SET deleted_at = now(), slot = false WHERE owner_id = $1 AND deleted_at IS NULL", owner
    )


class Removed(NamedTuple):
    """What a slice of removing took away."""

    conversations: int = 0
    messages: int = 0
    indexed: int = 0


async def purge_slice(connection: Connection, owner: str) -> Removed | None:
    """Remove some of an owner's hidden rows; None when there are none. Two that do this take turns."""
    hidden = await connection.fetch(
        "SELECT id FROM conversations WHERE owner_id = $1 AND deleted_at IS NOT NULL ORDER BY id LIMIT $2 FOR UPDATE",
        owner,
        SLICE // 50,
    )
    if not hidden:
        return None
    removed = Removed()
    for (id_,) in hidden:
        gone = await _remove_messages(connection, owner, id_, SLICE - removed.messages)
        removed = removed._replace(messages=removed.messages + gone[0], indexed=removed.indexed + gone[1])
        if removed.messages >= SLICE:
            break
        await connection.execute("DELETE FROM conversations WHERE owner_id = $1 AND id = $2", owner, id_)
        removed = removed._replace(conversations=removed.conversations + 1)
    return removed


async def _remove_messages(connection: Connection, owner: str, id_: UUID, limit: int) -> tuple[int, int]:
    row = await connection.fetchrow(
        "WITH gone AS ("
        " DELETE FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND seq IN ("
        "  SELECT seq FROM messages WHERE owner_id = $1 AND conversation_id = $2 ORDER BY seq LIMIT $3)"
        " RETURNING terms IS NOT NULL AND content <> '' AS indexed)"
        " SELECT count(*), count(*) FILTER (WHERE indexed) FROM gone",
        owner,
        id_,
        limit,
    )
    return cast("tuple[int, int]", row)


async def remove_remains(connection: Connection, owner: str, id_: UUID) -> None:
    """Finish removing one hidden conversation at once."""
    await connection.execute(
        "DELETE FROM conversations WHERE owner_id = $1 AND id = $2 AND deleted_at IS NOT NULL", owner, id_
    )


async def remove_owner(connection: Connection, owner: str) -> int | None:
    """Remove the owner and count what is left; None where a conversation was created in the meantime."""
    # The lock keeps others from creating a conversation between the question and the removal.
    await connection.execute("SELECT 1 FROM users WHERE id = $1 FOR UPDATE", owner)
    if await connection.fetchval("SELECT 1 FROM conversations WHERE owner_id = $1 LIMIT 1", owner):
        return None
    await connection.execute("DELETE FROM users WHERE id = $1", owner)
    users = await connection.fetchval("SELECT count(*) FROM users WHERE id = $1", owner)
    messages_left = await connection.fetchval("SELECT count(*) FROM messages WHERE owner_id = $1", owner)
    return cast("int", users + messages_left)


async def rename_owner(connection: Connection, old: str, new: str) -> int:
    """Give the conversations of one owner to another one; their messages are indexed anew next."""
    clash = (
        "SELECT 1 FROM conversations a JOIN conversations b ON b.owner_id = $2 AND b.id = a.id WHERE a.owner_id = $1"
    )
    if await connection.fetchval(f"{clash} LIMIT 1", old, new):
        raise Conflict(IDS_CLASH)
    await connection.execute("INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING", new)
    # One statement: the foreign key between the tables is checked at its end.
    moved = await connection.fetchval(
        "WITH c AS (UPDATE conversations SET owner_id = $2 WHERE owner_id = $1 RETURNING 1),"
        " m AS (UPDATE messages SET owner_id = $2, terms = NULL WHERE owner_id = $1)"
        " SELECT count(*) FROM c",
        old,
        new,
    )
    await connection.execute("DELETE FROM users WHERE id = $1", old)
    return cast("int", moved)
