"""The fast path of appends on PostgreSQL: one message for the end of a conversation that never branched."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from chatkeep.model import Message, NewMessage, Role
from chatkeep.stores.append import as_stored
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.text import encode, terms_of
from chatkeep.stores.rows import Row
from chatkeep.values import encode_nul, json_text, title_from

# An append alone: the conversation's row says whether it exists, never branched, and the next seq.
_APPEND = """
    WITH c AS (
        UPDATE conversations
        SET last_seq = last_seq + 1, head_seq = last_seq + 1, head_id = $3, previous_head_id = head_id,
            title = coalesce(title, $18), updated_at = greatest(updated_at, {moment})
        WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL AND runs IS NULL
            AND head_seq IS NOT DISTINCT FROM nullif(last_seq, 0)
        RETURNING last_seq, previous_head_id
    )
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, parent_id, fingerprint, role, content, status,
                          parts, sources, metadata, model, input_tokens, output_tokens, duration_ms, external_id,
                          sent_at, terms, created_at)
    SELECT $1, $2, c.last_seq, $3, 0, c.last_seq, c.previous_head_id, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
           $15, $16, string_to_array($17, ' '), {moment}
    FROM c
    RETURNING 1, seq, parent_id, created_at
"""
APPEND = _APPEND.format(moment="now()")
APPEND_AT = _APPEND.format(moment="$19::timestamptz")
APPEND_MANY = """
    SELECT * FROM chatkeep_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                                  $20, $21)
"""


class Item(NamedTuple):
    """One message for the end of a conversation that never branched, as APPEND and APPEND_MANY take it."""

    owner: str
    conversation_id: UUID
    id: UUID
    fingerprint: bytes
    role: str
    content: str
    status: str
    parts: str | None
    sources: str | None
    metadata: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    duration_ms: int | None
    external_id: str | None
    sent_at: datetime | None
    terms: str | None
    title: str | None


def to_item(
    owner: str, conversation_id: UUID, id_: UUID, message: NewMessage, fingerprint: bytes, *, search: bool
) -> Item:
    """A message as APPEND and APPEND_MANY take it."""
    return Item(
        owner,
        conversation_id,
        id_,
        fingerprint,
        message.role,
        encode_nul(message.content),
        message.status,
        json_text(message.parts) if message.parts else None,
        json_text(message.sources) if message.sources else None,
        json_text(message.metadata) if message.metadata else None,
        encode(message.model),
        message.input_tokens,
        message.output_tokens,
        message.duration_ms,
        encode(message.external_id),
        message.sent_at,
        terms_of(message.content, owner) if search else None,
        encode(title_from(message.content)) if message.role is Role.USER else None,
    )


async def append(connection: Connection, items: Sequence[Item]) -> dict[UUID, Row]:
    """Append the items whose conversation never branched; return (number, seq, parent_id, created_at) by id."""
    if len(items) == 1:
        found = await connection.fetch(APPEND, *items[0])
    else:
        columns = zip(*(item[:-1] for item in items), strict=True)
        found = await connection.fetch(APPEND_MANY, *map(_column, columns), *_chained(items))
    return {items[row[0] - 1].id: row for row in found}


def _chained(items: Sequence[Item]) -> tuple[list[int], list[UUID | None], list[bool], list[str | None]]:
    """For each item: its place among those of its conversation, the id before it, whether it is the last, and the
    first title of them, which the last one carries."""
    lasts: dict[tuple[str, UUID], int] = {}
    places, titles = [1] * len(items), list[str | None]()
    previous: list[UUID | None] = [None] * len(items)
    for number, item in enumerate(items):
        title, before = item.title, lasts.get(item[:2])
        if before is not None:
            places[number], previous[number] = places[before] + 1, items[before].id
            title = titles[before] or title
        titles.append(title)
        lasts[item[:2]] = number
    ends = set(lasts.values())
    return places, previous, [number in ends for number in range(len(items))], titles


def _column(values: tuple[object, ...]) -> list[object]:
    """The values of a column; empty if none is set, as unnest fills up with null."""
    return [] if all(value is None for value in values) else list(values)


def appended(item: Item, message: NewMessage, row: Row) -> Message:
    """The record of a stored message."""
    _, seq, parent_id, created_at = row
    return as_stored(message, item.id, item.conversation_id, seq, parent_id, created_at)
