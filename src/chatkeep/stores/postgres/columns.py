"""The columns of the PostgreSQL store, and how they become records. No I/O."""

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
    stored,
    stored_sources,
)
from chatkeep.stores.postgres.text import decode, encode
from chatkeep.stores.rows import Hit, Row
from chatkeep.stores.window import ListFilter
from chatkeep.tree import Segment
from chatkeep.values import decode_nul, labels_of, labels_text, load_json, to_micros

CONTENT, METADATA = 4, 8
"""The columns of a message, and of a conversation, that have no value if it is too large."""


def in_utc(moment: datetime) -> datetime:
    """The driver takes the first and the last moment for infinities, and returns those without a time zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def equal_or_null(column: str, value: object, values: list[object]) -> str:
    """The condition that a column has a value, which is added to `values`, or none."""
    if value is None:
        return f" AND {column} IS NULL"
    values.append(value)
    return f" AND {column} = ${len(values)}"


def listed(owner: str, which: ListFilter) -> tuple[str, list[Any]]:
    """The condition of a list. If it is among some ids, these are the second parameter."""
    values: list[Any] = [owner] if which.ids is None else [owner, list(which.ids)]
    conditions = (
        ("c.context_id = {}", encode(which.context_id)),
        ("c.project_id = {}", which.project_id),
        ("c.external_id = {}", encode(which.external_id)),
        ("c.updated_at > {}", which.updated_after),
        ("c.updated_at < {}", which.updated_before),
        *(("strpos(c.labels, {}) > 0", labels_text([label])) for label in which.labels),
        *(("coalesce(strpos(c.labels, {}), 0) = 0", labels_text([label])) for label in which.without),
    )
    where = ""
    for condition, value in conditions:
        if value is not None:
            values.append(value)
            where += f" AND {condition.format(f'${len(values)}')}"
    return where, values


def in_segment(segment: Segment) -> tuple[str, tuple[int, ...]]:
    """The condition of a segment: on the trunk its seqs, after the first fork its run, too, by the index of runs."""
    if segment.trunk:
        return " AND m.seq BETWEEN $3 AND $4", (segment.low, segment.high)
    return " AND m.seq BETWEEN $3 AND $4 AND m.run = $5 AND m.depth < m.seq", (segment.low, segment.high, segment.run)


def sized_conversations(rows: str, order: str, max_bytes: str) -> str:
    """The statement of conversations with their sizes, as `sized_messages`."""
    columns = (
        "id, owner_id, title, context_id, project_id, llm_provider_id, external_id, labels, {metadata}, last_seq,"
        " head_id, created_at, updated_at, bytes"
    )
    return _sized(rows, order, max_bytes, columns, "octet_length(metadata::text)")


def sized_projects(rows: str, order: str, max_bytes: str) -> str:
    """The statement of projects with their sizes, as `sized_messages`."""
    columns = "id, owner_id, name, {metadata}, documents, chunks, space, version, created_at, updated_at, bytes"
    return _sized(rows, order, max_bytes, columns, "octet_length(metadata)")


def sized_messages(rows: str, order: str, max_bytes: str, more: str = ", bytes") -> str:
    """The statement of messages, of which those of more than `max_bytes` come without their values.

    `rows` is a statement with a LIMIT, `order` its order, `max_bytes` a parameter, and `more` are further columns.
    """
    columns = (
        "id, seq, parent_id, role, {content}, status, {parts}, {sources}, {metadata}, external_id, sent_at, created_at,"
        " model, input_tokens, output_tokens, duration_ms"
    )
    return _sized(rows, order, max_bytes, columns + more, MESSAGE_BYTES)


# The length of a text is known without reading it. JSON is read for it, but most messages have none.
MESSAGE_BYTES = (
    "octet_length(content) + coalesce(octet_length(parts), 0) + coalesce(octet_length(sources::text), 0)"
    " + coalesce(octet_length(metadata::text), 0)"
)


def _sized(rows: str, order: str, max_bytes: str, columns: str, size: str) -> str:
    fits = f"CASE WHEN bytes <= {max_bytes} THEN"
    shown = columns.format_map({name: f"{fits} {name} END" for name in ("content", "parts", "sources", "metadata")})
    # With OFFSET the size is computed once, and only of the rows that are left after sorting and LIMIT.
    sized = f"SELECT *, {size} AS bytes FROM ({rows}) some_rows OFFSET 0"  # noqa: S608
    return f"SELECT {shown} FROM ({sized}) sized ORDER BY {order}"  # noqa: S608


def to_conversation(row: Row) -> Conversation:
    """The record of a conversation."""
    id_, owner, title, context, project, provider, external, labels, metadata, last_seq, head, *times = row
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": id_,
            "owner_id": decode_nul(owner),
            "title": decode(title),
            "context_id": decode(context),
            "project_id": project,
            "llm_provider_id": provider,
            "external_id": decode(external),
            "labels": labels_of(labels),
            "metadata": load_json(metadata),
            "last_seq": last_seq,
            "head_id": head,
            "created_at": times[0],
            "updated_at": in_utc(times[1]),
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
                "content": decode_nul(text),
                "status": STATUSES[status],
                "parts": tuple(load_json(parts)) if parts else None,
                "sources": stored_sources(sources),
                "metadata": load_json(meta) if meta else {},
                "model": None if model is None else decode_nul(model),
                "input_tokens": read,
                "output_tokens": out,
                "duration_ms": ms,
                "external_id": None if ext is None else decode_nul(ext),
                "sent_at": None if sent is None else in_utc(sent),
                # As text, in the session's ISO style: the driver takes six times as long to make a time of eight bytes.
                "created_at": datetime.fromisoformat(at),
            },
        )
        for id_, seq, parent, role, text, status, parts, sources, meta, ext, sent, at, model, read, out, ms, *_ in found
    ]


def to_hit(row: Row) -> Hit:
    """A message that a search found."""
    *columns, id_, title, its_bytes = row
    (message,) = to_messages(id_, [columns])
    return Hit((to_micros(message.created_at), id_.hex, message.seq), message, decode(title), its_bytes)
