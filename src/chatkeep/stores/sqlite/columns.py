"""The columns of the SQLite store, and how they become records. No I/O but `fetch`."""

from collections.abc import Iterable
from functools import lru_cache
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
    stored,
    stored_sources,
)
from chatkeep.stores.append import Placed, State
from chatkeep.stores.rows import Found, Hit, Row, WordIndex, stored_bytes
from chatkeep.stores.slices import PageSize, Part, within
from chatkeep.stores.sqlite.database import Values
from chatkeep.stores.window import ListFilter
from chatkeep.tree import Segment
from chatkeep.turns import Ending
from chatkeep.values import from_micros, json_text, labels_of, labels_text, load_json, to_micros


def fetch(connection: apsw.Connection, statement: str, values: Values = ()) -> list[Row]:
    """All rows of a statement: a cursor that is left half-read would keep an old snapshot and the log."""
    return connection.execute(statement, values).fetchall()


def messages_within(found: Iterable[Row], conversation_id: UUID, max_bytes: int) -> Part[Message]:
    """The first messages of one conversation that have room in a page. Rows after the next one are not fetched."""
    messages: list[Message] = []
    for row in found:
        content, parts, sources, metadata = row[5], row[7], row[8], row[9]
        max_bytes -= len(content) if content.isascii() else len(content.encode())
        if parts or sources or metadata:
            max_bytes -= stored_bytes(parts, sources, metadata)
        if max_bytes < 0 and messages:
            return Part(messages, cut=True)
        messages.append(to_message(row, conversation_id))
    return Part(messages)


def conversations_within(found: Iterable[Row], max_bytes: int) -> Part[Conversation]:
    """The first conversations that have room in a page."""
    conversations: list[Conversation] = []
    for row in found:
        metadata = row[8]
        max_bytes -= len(metadata) if metadata.isascii() else len(metadata.encode())
        if max_bytes < 0 and conversations:
            return Part(conversations, cut=True)
        conversations.append(to_conversation(row))
    return Part(conversations)


def found_within(found: Iterable[Row], size: PageSize) -> Found:
    """The first hits that have room in a page; a row begins with the hit's place and its conversation's title."""
    rows, cut = within(((row, stored_bytes(row[7], *row[9:12])) for row in found), size.max_bytes)
    hits = [to_hit(row) for row in rows]
    return Found(hits, rest=hits[-1].place if cut or len(hits) == size.limit else None, cut=cut)


@lru_cache(maxsize=4_096)
def uuid(value: bytes) -> UUID:
    """The id that was stored as `value`. Kept, because it is also the parent of the next message, and read again with
    the next turn: that takes a fifth of the time."""
    return uuid_of(int.from_bytes(value))


def owner_word(owner: str) -> str:
    """The owner as one word of the index, whatever characters it has: hex(owner_id) in SQL."""
    return owner.encode().hex()


def of_word_index(state: WordIndex) -> Values:
    """How far a rule of words has come, as it is stored."""
    return state.rule, state.target, None if state.place is None else state.place.bytes


def listed(owner: str, which: ListFilter) -> tuple[str, list[Any]]:
    """The condition of a list."""
    where: list[tuple[str, Any]] = []
    if which.context_id is not None:
        where.append(("c.context_id = ?", which.context_id))
    if which.project_id is not None:
        where.append(("c.project_id = ?", which.project_id.bytes))
    if which.external_id is not None:
        where.append(("c.external_id = ?", which.external_id))
    if which.updated_after is not None:
        where.append(("c.updated_at > ?", to_micros(which.updated_after)))
    if which.updated_before is not None:
        where.append(("c.updated_at < ?", to_micros(which.updated_before)))
    where += [("instr(c.labels, ?) > 0", labels_text([label])) for label in which.labels]
    where += [("coalesce(instr(c.labels, ?), 0) = 0", labels_text([label])) for label in which.without]
    condition = "".join(f" AND {each}" for each, _ in where)
    values = [owner, *(value for _, value in where)]
    if which.ids is None:
        return condition, values
    return f"{condition} AND c.id IN ({', '.join('?' * len(which.ids))})", values + [id_.bytes for id_ in which.ids]


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
    id_, owner, title, context, project, provider, external, labels, metadata, last_seq, head, created, updated = row
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": uuid(id_),
            "owner_id": owner,
            "title": title,
            "context_id": context,
            "project_id": None if project is None else uuid(project),
            "llm_provider_id": None if provider is None else uuid(provider),
            "external_id": external,
            "labels": labels_of(labels),
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
        json_text(message.parts) if message.parts else None,
        json_text(message.sources) if message.sources else None,
        json_text(message.metadata) if message.metadata else None,
        message.model,
        message.input_tokens,
        message.output_tokens,
        message.duration_ms,
        message.external_id,
        to_micros(message.sent_at) if message.sent_at else None,
        to_micros(message.created_at),
        fingerprint,
    )


def answer_values(ending: Ending) -> Values:
    """The whole answer, as SET_ANSWER takes it."""
    return (
        ending.status,
        ending.content,
        json_text(ending.parts) if ending.parts else None,
        json_text(ending.sources) if ending.sources else None,
        ending.model,
        ending.input_tokens,
        ending.output_tokens,
        ending.duration_ms,
    )


def to_message(row: Row, conversation_id: UUID) -> Message:
    """The record of a message of a conversation."""
    # Without a star, which makes a list: a third of what it takes.
    id_, _, seq, parent, role, text, status, parts, sources, meta, external, sent, at, model, read, out, ms = row
    return stored(
        Message,
        MESSAGE_FIELDS,
        {
            "id": uuid(id_),
            "conversation_id": conversation_id,
            "seq": seq,
            "parent_id": None if parent is None else uuid(parent),
            "role": ROLES[role],
            "content": text,
            "status": STATUSES[status],
            "parts": tuple(load_json(parts)) if parts else None,
            "sources": stored_sources(sources),
            "metadata": load_json(meta) if meta else {},
            "model": model,
            "input_tokens": read,
            "output_tokens": out,
            "duration_ms": ms,
            "external_id": external,
            "sent_at": None if sent is None else from_micros(sent),
            "created_at": from_micros(at),
        },
    )


def to_hit(row: Row) -> Hit:
    """A message that a search found."""
    rid, title, *columns = row
    message = to_message(columns, uuid(columns[1]))
    place = (rid, to_micros(message.created_at), message.conversation_id.hex, message.seq)
    return Hit(place, message, title, stored_bytes(columns[5], *columns[7:10]))
