"""The columns of the PostgreSQL store, and how they become records. No I/O."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from chatkeep.model import (
    CONVERSATION_FIELDS,
    MESSAGE_FIELDS,
    ROLES,
    STATUSES,
    Conversation,
    Message,
    Source,
    stored,
)
from chatkeep.stores.postgres.text import decode
from chatkeep.stores.rows import Hit, Row
from chatkeep.tree import Segment
from chatkeep.values import decode_nul, encode_nul, load_json, to_micros

CONTENT, METADATA = 4, 5
"""The columns of a message, and of a conversation, that have no value if it is too large."""


def in_utc(moment: datetime) -> datetime:
    """The driver takes the first and the last moment for infinities, and returns those without a time zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def in_context(owner: str, context_id: str | None) -> tuple[str, list[Any]]:
    """The condition of a list, of one context if it is named."""
    return ("", [owner]) if context_id is None else (" AND c.context_id = $2", [owner, encode_nul(context_id)])


def in_segment(segment: Segment) -> tuple[str, tuple[int, ...]]:
    """The condition of a segment: on the trunk its seqs, after the first fork its run, too, by the index of runs."""
    if segment.trunk:
        return " AND m.seq BETWEEN $3 AND $4", (segment.low, segment.high)
    return " AND m.seq BETWEEN $3 AND $4 AND m.run = $5 AND m.depth < m.seq", (segment.low, segment.high, segment.run)


def sized_conversations(rows: str, order: str, max_bytes: str) -> str:
    """The statement of conversations with their sizes, as `sized_messages`."""
    columns = "id, owner_id, title, context_id, external_id, {metadata}, last_seq, head_id, created_at, updated_at"
    return _sized(rows, order, max_bytes, f"{columns}, bytes", "octet_length(metadata::text)")


def sized_messages(rows: str, order: str, max_bytes: str, more: str = ", bytes") -> str:
    """The statement of messages, of which those of more than `max_bytes` come without their values.

    `rows` is a statement with a LIMIT, `order` its order, `max_bytes` a parameter, and `more` are further columns.
    """
    columns = "id, seq, parent_id, role, {content}, status, {sources}, {metadata}, external_id, sent_at, created_at"
    return _sized(rows, order, max_bytes, columns + more, MESSAGE_BYTES)


# The length of a text is known without reading it. JSON is read for it, but most messages have none.
MESSAGE_BYTES = (
    "octet_length(content) + coalesce(octet_length(sources::text), 0) + coalesce(octet_length(metadata::text), 0)"
)


def _sized(rows: str, order: str, max_bytes: str, columns: str, size: str) -> str:
    fits = f"CASE WHEN bytes <= {max_bytes} THEN"
    shown = columns.format_map({name: f"{fits} {name} END" for name in ("content", "sources", "metadata")})
    # With OFFSET the size is computed once, and only of the rows that are left after sorting and LIMIT.
    sized = f"SELECT *, {size} AS bytes FROM ({rows}) some_rows OFFSET 0"  # noqa: S608
    return f"SELECT {shown} FROM ({sized}) sized ORDER BY {order}"  # noqa: S608


def to_conversation(row: Row) -> Conversation:
    """The record of a conversation."""
    id_, owner, title, context, external, metadata, last_seq, head, created, updated, *_ = row
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": id_,
            "owner_id": decode_nul(owner),
            "title": decode(title),
            "context_id": decode(context),
            "external_id": decode(external),
            "metadata": load_json(metadata),
            "last_seq": last_seq,
            "head_id": head,
            "created_at": created,
            "updated_at": in_utc(updated),
        },
    )


def to_messages(conversation_id: UUID, found: Iterable[Row]) -> list[Message]:
    """The messages of rows that begin with MESSAGE_COLUMNS."""
    return [
        stored(
            Message,
            MESSAGE_FIELDS,
            {
                "id": id_,
                "conversation_id": conversation_id,
                "seq": seq,
                "parent_id": parent,
                "role": ROLES[role],
                "content": decode_nul(content),
                "status": STATUSES[status],
                "sources": tuple(map(Source.model_validate, json.loads(sources))) if sources else (),
                "metadata": load_json(metadata) if metadata else {},
                "external_id": None if external is None else decode_nul(external),
                "sent_at": None if sent is None else in_utc(sent),
                # As text, in the session's ISO style: the driver takes six times as long to make a time of eight bytes.
                "created_at": datetime.fromisoformat(created),
            },
        )
        for id_, seq, parent, role, content, status, sources, metadata, external, sent, created, *_ in found
    ]


def to_hit(row: Row) -> Hit:
    """A message that a search found."""
    *columns, id_, title, its_bytes = row
    (message,) = to_messages(id_, [columns])
    return Hit((to_micros(message.created_at), id_.hex, message.seq), message, decode(title), its_bytes)
