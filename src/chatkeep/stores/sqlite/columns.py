"""The columns of the SQLite store, and how they become records. No I/O but `fetch`."""

import json
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import apsw

from chatkeep.ids import uuid_of
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
from chatkeep.stores.append import Placed, State
from chatkeep.stores.rows import Found, Hit, PageSize, Part, Row, WordIndex, stored_bytes, within
from chatkeep.stores.sqlite.database import Values
from chatkeep.tree import Segment
from chatkeep.values import from_micros, json_text, load_json, to_micros


def fetch(connection: apsw.Connection, statement: str, values: Values = ()) -> list[Row]:
    """All rows of a statement: a cursor that is left half-read would keep an old snapshot and the log."""
    return connection.execute(statement, values).fetchall()


def messages_within(found: Iterable[Row], conversation_id: UUID, max_bytes: int) -> Part[Message]:
    """The first messages of one conversation that have room in a page. Rows after the next one are not fetched."""
    messages: list[Message] = []
    for row in found:
        content, sources, metadata = row[5], row[7], row[8]
        max_bytes -= len(content) if content.isascii() else len(content.encode())
        if sources or metadata:
            max_bytes -= stored_bytes(sources, metadata)
        if max_bytes < 0 and messages:
            return Part(messages, cut=True)
        messages.append(to_message(row, conversation_id))
    return Part(messages)


def conversations_within(found: Iterable[Row], max_bytes: int) -> Part[Conversation]:
    """The first conversations that have room in a page."""
    conversations: list[Conversation] = []
    for row in found:
        metadata = row[5]
        max_bytes -= len(metadata) if metadata.isascii() else len(metadata.encode())
        if max_bytes < 0 and conversations:
            return Part(conversations, cut=True)
        conversations.append(to_conversation(row))
    return Part(conversations)


def found_within(found: Iterable[Row], size: PageSize) -> Found:
    """The first hits that have room in a page; a row begins with the hit's place and its conversation's title."""
    rows, cut = within(((row, stored_bytes(row[7], row[9], row[10])) for row in found), size.max_bytes)
    hits = [to_hit(row) for row in rows]
    return Found(hits, rest=hits[-1].place if cut or len(hits) == size.limit else None, cut=cut)


def uuid(value: bytes) -> UUID:
    """The id that was stored as `value`."""
    return uuid_of(int.from_bytes(value))


def owner_word(owner: str) -> str:
    """The owner as one word of the index, whatever characters it has: hex(owner_id) in SQL."""
    return owner.encode().hex()


def of_word_index(state: WordIndex) -> Values:
    """How far a rule of words has come, as it is stored."""
    return state.rule, state.target, None if state.place is None else state.place.bytes


def in_context(owner: str, context_id: str | None) -> tuple[str, list[Any]]:
    """The condition of a list, of one context if it is named."""
    return ("", [owner]) if context_id is None else (" AND c.context_id = ?", [owner, context_id])


def in_segment(segment: Segment) -> tuple[str, Values]:
    """The condition of a segment: on the trunk its seqs, after the first fork its run, too, by the index of runs."""
    if segment.trunk:
        return " AND m.seq BETWEEN ? AND ?", (segment.low, segment.high)
    return " AND m.seq BETWEEN ? AND ? AND m.run = ? AND m.depth < m.seq", (segment.low, segment.high, segment.run)


def state_values(state: State) -> Values:
    """What an append changed of its conversation, as SAVE_STATE takes it."""
    return (
        state.tree.last_seq,
        state.head.seq if state.head else None,
        state.head_id.bytes if state.head_id else None,
        state.tree.dump(),
        state.title,
        to_micros(state.updated_at),
    )


def to_conversation(row: Row) -> Conversation:
    """The record of a conversation."""
    id_, owner, title, context, external, metadata, last_seq, head, created, updated = row
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": uuid(id_),
            "owner_id": owner,
            "title": title,
            "context_id": context,
            "external_id": external,
            "metadata": load_json(metadata),
            "last_seq": last_seq,
            "head_id": None if head is None else uuid(head),
            "created_at": from_micros(created),
            "updated_at": from_micros(updated),
        },
    )


def message_values(owner: str, rid: int, placed: Placed) -> Values:
    """A new message, as INSERT_MESSAGE takes it."""
    message, position, fingerprint = placed
    return (
        rid,
        owner,
        message.conversation_id.bytes,
        position.seq,
        message.id.bytes,
        position.run,
        position.depth,
        message.parent_id.bytes if message.parent_id else None,
        message.role,
        message.content,
        message.status,
        json_text(message.sources) if message.sources else None,
        json_text(message.metadata) if message.metadata else None,
        message.external_id,
        to_micros(message.sent_at) if message.sent_at else None,
        to_micros(message.created_at),
        fingerprint,
    )


def to_message(row: Row, conversation_id: UUID) -> Message:
    """The record of a message of a conversation."""
    id_, _, seq, parent, role, content, status, sources, metadata, external, sent, created = row
    return stored(
        Message,
        MESSAGE_FIELDS,
        {
            "id": uuid(id_),
            "conversation_id": conversation_id,
            "seq": seq,
            "parent_id": None if parent is None else uuid(parent),
            "role": ROLES[role],
            "content": content,
            "status": STATUSES[status],
            "sources": tuple(map(Source.model_validate, json.loads(sources))) if sources else (),
            "metadata": load_json(metadata) if metadata else {},
            "external_id": external,
            "sent_at": None if sent is None else from_micros(sent),
            "created_at": from_micros(created),
        },
    )


def to_hit(row: Row) -> Hit:
    """A message that a search found."""
    rid, title, *columns = row
    message = to_message(columns, uuid(columns[1]))
    place = (rid, to_micros(message.created_at), message.conversation_id.hex, message.seq)
    return Hit(place, message, title, stored_bytes(columns[5], columns[7], columns[8]))
