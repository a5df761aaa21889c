"""The SQL of the PostgreSQL store, and how its rows become records. Every statement names the owner first.

Owners are encoded (`encode_nul`) by whoever calls this, all other text here.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

import asyncpg

from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import Conflict, InvalidInput
from chatkeep.ids import new_id, valid_id
from chatkeep.model import (
    CONVERSATION_FIELDS,
    MESSAGE_FIELDS,
    ROLES,
    STATUSES,
    Conversation,
    ImportedConversation,
    Message,
    NewConversation,
    NewMessage,
    Page,
    Role,
    SearchHit,
    Source,
    stored,
)
from chatkeep.store import ListOrder
from chatkeep.stores.append import Known, Placed, State, as_stored
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.window import Window
from chatkeep.tree import Position, Segment, Tree
from chatkeep.values import decode_nul, encode_nul, from_micros, json_text, title_from, to_micros
from chatkeep.words import holds, index_terms, query_terms, snippet

INDEX_SLICE = 500
"""Messages that one transaction indexes at most."""

CONVERSATION_COLUMNS = """
    c.id, c.owner_id, c.title, c.context_id, c.external_id, c.metadata, c.last_seq, c.head_id, c.created_at,
    c.updated_at
"""
CONVERSATION = f"SELECT {CONVERSATION_COLUMNS} FROM conversations c WHERE c.owner_id = $1 AND c.deleted_at IS NULL"  # noqa: S608
MESSAGE_COLUMNS = """
    m.id, m.seq, m.parent_id, m.role, m.content, m.status, m.sources, m.metadata, m.external_id, m.sent_at,
    m.created_at::text AS created_at
"""
# In one statement, so with one snapshot: whoever sees the conversation sees it whole, as removing its messages begins
# when nobody does any more.
MESSAGE = f"""
    SELECT {MESSAGE_COLUMNS} FROM messages m
    WHERE m.owner_id = $1 AND m.conversation_id = $2 AND EXISTS (
        SELECT 1 FROM conversations c WHERE c.owner_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
    )
"""  # noqa: S608
THREAD = """
    SELECT last_seq, head_seq, head_id, runs, title, updated_at, now() FROM conversations
    WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL
"""
INSERT_CONVERSATION = """
    WITH owner AS (INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING)
    INSERT INTO conversations AS c (owner_id, id, title, context_id, external_id, metadata, fingerprint, slot,
                                    updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, now()))
    ON CONFLICT DO NOTHING
"""
# A lone append: the conversation's row says whether it is there, never branched, and what comes next.
APPEND = """
    WITH c AS (
        UPDATE conversations
        SET last_seq = last_seq + 1, head_seq = last_seq + 1, head_id = $3, previous_head_id = head_id,
            title = coalesce(title, $13), updated_at = greatest(updated_at, now())
        WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL AND runs IS NULL
            AND head_seq IS NOT DISTINCT FROM nullif(last_seq, 0)
        RETURNING last_seq, previous_head_id
    )
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, parent_id, fingerprint, role, content, status,
                          sources, metadata, external_id, sent_at, terms)
    SELECT $1, $2, c.last_seq, $3, 0, c.last_seq, c.previous_head_id, $4, $5, $6, $7, $8, $9, $10, $11,
           string_to_array($12, ' ')
    FROM c
    RETURNING 1, seq, parent_id, created_at
"""
APPEND_MANY = """
    SELECT * FROM chatkeep_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
"""
# Only where the conversation is still as it was when the places were given: nothing is stored otherwise.
SAVE = """
    WITH c AS (
        UPDATE conversations
        SET last_seq = $3, head_seq = $4, head_id = $5, runs = $6, title = coalesce(title, $7),
            updated_at = greatest(updated_at, $8)
        WHERE owner_id = $1 AND id = $2 AND last_seq = $9 AND deleted_at IS NULL
        RETURNING 1
    )
    INSERT INTO messages (owner_id, conversation_id, created_at, seq, id, run, depth, parent_id, role, content, status,
                          sources, metadata, external_id, sent_at, fingerprint, terms)
    SELECT $1, $2, $10, t.seq, t.id, t.run, t.depth, t.parent_id, t.role, t.content, t.status, t.sources::json,
           t.metadata::json, t.external_id, t.sent_at, t.fingerprint, string_to_array(t.terms, ' ')
    FROM c, unnest($11::bigint[], $12::uuid[], $13::integer[], $14::bigint[], $15::uuid[], $16::text[], $17::text[],
                   $18::text[], $19::text[], $20::text[], $21::text[], $22::timestamptz[], $23::bytea[], $24::text[])
        AS t (seq, id, run, depth, parent_id, role, content, status, sources, metadata, external_id, sent_at,
              fingerprint, terms)
"""
# The newest or oldest messages of a conversation that never branched, with its row, in one round trip.
STRAIGHT_HISTORY = f"""
    SELECT m.*, c.last_seq, c.head_seq, c.runs
    FROM conversations c LEFT JOIN LATERAL (
        SELECT {MESSAGE_COLUMNS} FROM messages m
        WHERE m.owner_id = $1 AND m.conversation_id = $2 AND c.runs IS NULL AND m.status <> 'deleted'
            AND m.seq > $3 AND m.seq < $4 AND m.seq <= c.head_seq
        ORDER BY m.seq {{direction}} LIMIT $5 OFFSET $6
    ) m ON true
    WHERE c.owner_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
"""  # noqa: S608
STRAIGHT = {
    "desc": STRAIGHT_HISTORY.format(direction="DESC"),
    "asc": STRAIGHT_HISTORY.format(direction="ASC"),
}
# What a segment's rows are: on the trunk seq alone says it, after the first fork the index of runs does.
ON_TRUNK = " AND m.seq BETWEEN $3 AND $4"
IN_RUN = " AND m.seq BETWEEN $3 AND $4 AND m.run = $5 AND m.depth < m.seq"

MAX_BIGINT = 2**63 - 1

type Row = asyncpg.Record | tuple[Any, ...]


class Thread(NamedTuple):
    """What an append or a history reads of a conversation, and the transaction's time."""

    last_seq: int
    head_seq: int | None
    head_id: UUID | None
    runs: str | None
    title: str | None
    updated_at: datetime
    moment: datetime


class Item(NamedTuple):
    """One message for the end of a conversation that never branched, as APPEND and APPEND_MANY take it."""

    owner: str
    conversation_id: UUID
    id: UUID
    fingerprint: bytes
    role: str
    content: str
    status: str
    sources: str | None
    metadata: str | None
    external_id: str | None
    sent_at: datetime | None
    terms: str | None
    title: str | None


# --- text ------------------------------------------------------------------------------------------------


def _encode(text: str | None) -> str | None:
    return None if text is None else encode_nul(text)


def _decode(text: str | None) -> str | None:
    return None if text is None else decode_nul(text)


def _in_utc(moment: datetime) -> datetime:
    """The driver takes the first and the last moment for infinities, and returns those without a time zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


# --- conversations ---------------------------------------------------------------------------------------


async def thread(connection: Connection, owner: str, id_: UUID, *, lock: bool = False) -> Thread | None:
    """The threading of one conversation; locked against other writers until the transaction's end."""
    row = await connection.fetchrow(f"{THREAD} FOR NO KEY UPDATE" if lock else THREAD, owner, id_)
    return None if row is None else Thread(*row)._replace(title=_decode(row[4]), updated_at=_in_utc(row[5]))


async def exists_elsewhere(connection: Connection, id_: UUID) -> bool:
    """Whether anybody has this id: the one question that does not name an owner."""
    statement = "SELECT 1 FROM conversations WHERE id = $1 AND deleted_at IS NULL LIMIT 1"
    return await connection.fetchval(statement, id_) is not None


async def conversation(connection: Connection, owner: str, id_: UUID, *, lock: bool = False) -> Conversation | None:
    """One conversation, None where the owner has none with this id."""
    statement = f"{CONVERSATION} AND c.id = $2{' FOR NO KEY UPDATE' if lock else ''}"
    row = await connection.fetchrow(statement, owner, id_)
    return None if row is None else _to_conversation(row)


async def create(
    connection: Connection, owner: str, id_: UUID, new: NewConversation, *, slot: bool = False
) -> Conversation | None:
    """Store a conversation; None where its id, or the slot of its context, is taken."""
    updated_at = new.updated_at if isinstance(new, ImportedConversation) else None
    row = await connection.fetchrow(
        f"{INSERT_CONVERSATION} RETURNING {CONVERSATION_COLUMNS}",
        owner,
        id_,
        _encode(new.title),
        _encode(new.context_id),
        _encode(new.external_id),
        json_text(new.metadata),
        new.fingerprint(),
        slot,
        updated_at,
    )
    return None if row is None else _to_conversation(row)


async def created_before(connection: Connection, owner: str, id_: UUID, new: NewConversation) -> Conversation | None:
    """The conversation with this id, None where it is being removed or gone. Raises Conflict for other values."""
    row = await connection.fetchrow(
        f"SELECT c.fingerprint, c.deleted_at, {CONVERSATION_COLUMNS} FROM conversations c"  # noqa: S608
        " WHERE c.owner_id = $1 AND c.id = $2",
        owner,
        id_,
    )
    if row is None or row[1] is not None:
        return None
    if row[0] != new.fingerprint():
        raise Conflict("this conversation id is already used for other values", got=id_)
    return _to_conversation(row[2:])


async def newest(connection: Connection, owner: str, context_id: str | None) -> Conversation | None:
    """The owner's most recently updated conversation of a context."""
    where, values = ("IS NULL", ()) if context_id is None else ("= $2", (encode_nul(context_id),))
    row = await connection.fetchrow(
        f"{CONVERSATION} AND c.context_id {where} ORDER BY c.updated_at DESC, c.id DESC LIMIT 1", owner, *values
    )
    return None if row is None else _to_conversation(row)


async def list_conversations(
    connection: Connection,
    owner: str,
    context_id: str | None,
    order: ListOrder,
    scope: tuple[object, ...],
    limit: int,
    cursor: str | None,
    offset: int,
    *,
    total: bool,
) -> Page[Conversation]:
    """A page of the owner's conversations."""
    values: list[object] = [owner]
    where = ""
    if context_id is not None:
        values.append(encode_nul(context_id))
        where = " AND c.context_id = $2"
    counted = await connection.fetchval(f"SELECT count(*) FROM ({CONVERSATION}{where}) c", *values) if total else None  # noqa: S608
    start, position = _list_start(order, scope, cursor, len(values))
    values += [*position, limit + 1, offset]
    by = "c.id" if order == "id" else "c.updated_at DESC, c.id DESC"
    page = f"ORDER BY {by} LIMIT ${len(values) - 1} OFFSET ${len(values)}"
    found = await connection.fetch(f"{CONVERSATION}{where}{start} {page}", *values)
    items = [_to_conversation(row) for row in found[:limit]]
    following = _list_cursor(order, scope, items[-1]) if len(found) > limit else None
    return Page(items=items, total=counted, next=following)


def _list_start(
    order: ListOrder, scope: tuple[object, ...], cursor: str | None, count: int
) -> tuple[str, tuple[object, ...]]:
    if cursor is None:
        return "", ()
    if order == "id":
        (id_,) = decode_cursor(cursor, "conversations", scope, str)
        return f" AND c.id > ${count + 1}", (valid_id(id_),)
    updated_at, id_ = decode_cursor(cursor, "conversations", scope, int, str)
    return f" AND (c.updated_at, c.id) < (${count + 1}, ${count + 2})", (_time(updated_at), valid_id(id_))


def _time(micros: int) -> datetime:
    """A time of a cursor, which a forged one may have out of bounds."""
    try:
        return from_micros(micros)
    except OverflowError:
        raise InvalidInput("the cursor is not one that chatkeep gave for this list") from None


def _list_cursor(order: ListOrder, scope: tuple[object, ...], last: Conversation) -> str:
    position = (last.id.hex,) if order == "id" else (to_micros(last.updated_at), last.id.hex)
    return encode_cursor("conversations", scope, *position)


async def set_values(connection: Connection, owner: str, id_: UUID, values: Mapping[str, Any]) -> None:
    """Set columns of one conversation, text encoded; their names come from this package, never from a caller."""
    names = ", ".join(f"{name} = ${number}" for number, name in enumerate(values, 3))
    statement = f"UPDATE conversations SET {names} WHERE owner_id = $1 AND id = $2"  # noqa: S608
    await connection.execute(statement, owner, id_, *values.values())


def _to_conversation(row: Row) -> Conversation:
    id_, owner, title, context, external, metadata, last_seq, head, created, updated = row
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": id_,
            "owner_id": decode_nul(owner),
            "title": _decode(title),
            "context_id": _decode(context),
            "external_id": _decode(external),
            "metadata": json.loads(metadata),
            "last_seq": last_seq,
            "head_id": head,
            "created_at": created,
            "updated_at": _in_utc(updated),
        },
    )


# --- appending -------------------------------------------------------------------------------------------


def to_new_ids(messages_: Sequence[NewMessage]) -> list[NewMessage]:
    """The messages, each with an id: what is tried twice must be stored once."""
    return [m if m.id is not None else m.model_copy(update={"id": new_id()}) for m in messages_]


def to_item(
    owner: str, conversation_id: UUID, id_: UUID, message: NewMessage, fingerprint: bytes, *, search: bool
) -> Item:
    """A message as the statements that append take it."""
    return Item(
        owner,
        conversation_id,
        id_,
        fingerprint,
        message.role,
        encode_nul(message.content),
        message.status,
        json_text(message.sources) if message.sources else None,
        json_text(message.metadata) if message.metadata else None,
        _encode(message.external_id),
        message.sent_at,
        _terms(owner, message.content) if search else None,
        _encode(title_from(message.content)) if message.role is Role.USER else None,
    )


async def append(connection: Connection, items: Sequence[Item]) -> dict[UUID, Row]:
    """Append each item where that is simple: (number, seq, parent_id, created_at) of those, by id."""
    if len(items) == 1:
        found = await connection.fetch(APPEND, *items[0])
    else:
        columns = zip(*(item[:-1] for item in items), strict=True)
        found = await connection.fetch(APPEND_MANY, *map(_column, columns), *_chained(items))
    return {items[row[0] - 1].id: row for row in found}


def _chained(items: Sequence[Item]) -> tuple[list[int], list[UUID | None], list[bool], list[str | None]]:
    """How the items of each conversation follow each other: place, previous id, whether it is the last, and
    for the last one the first title of them."""
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
    """The values of a column; none where none of them is set, for unnest fills up with null."""
    return [] if all(value is None for value in values) else list(values)


def appended(item: Item, message: NewMessage, row: Row) -> Message:
    """The record of a message that was stored."""
    _, seq, parent_id, created_at = row
    return as_stored(message, item.id, item.conversation_id, seq, parent_id, created_at)


async def save(
    connection: Connection, owner: str, id_: UUID, state: State, new: Sequence[Placed], *, search: bool
) -> bool:
    """Write what an append changed of its conversation, and its messages; False where others were faster."""
    first = new[0].message
    columns = zip(*(_message_values(owner, placed, search=search) for placed in new), strict=True)
    status = await connection.execute(
        SAVE,
        owner,
        id_,
        state.tree.last_seq,
        state.head.seq if state.head else None,
        state.head_id,
        state.tree.dump(),
        _encode(state.title),
        state.updated_at,
        first.seq - 1,
        first.created_at,
        *map(list, columns),
    )
    return status != "INSERT 0 0"


def _message_values(owner: str, placed: Placed, *, search: bool) -> Row:
    message, position, fingerprint = placed
    return (
        position.seq,
        message.id,
        position.run,
        position.depth,
        message.parent_id,
        message.role,
        encode_nul(message.content),
        message.status,
        json_text(message.sources) if message.sources else None,
        json_text(message.metadata) if message.metadata else None,
        _encode(message.external_id),
        message.sent_at,
        fingerprint,
        _terms(owner, message.content) if search else None,
    )


def _terms(owner: str, content: str) -> str:
    """The terms of a message as one text, divided by spaces, which no term holds."""
    return " ".join(index_terms(owner, content))


async def repeated(
    connection: Connection, owner: str, id_: UUID, message_id: UUID, fingerprint: bytes
) -> Message | None:
    """The stored message that an append with this fingerprint repeats."""
    row = await connection.fetchrow(
        f"SELECT {MESSAGE_COLUMNS}, m.fingerprint FROM messages m"  # noqa: S608
        " JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id"
        " WHERE m.owner_id = $1 AND m.conversation_id = $2 AND m.id = $3 AND c.deleted_at IS NULL",
        owner,
        id_,
        message_id,
    )
    return _to_messages(id_, [row])[0] if row is not None and row[-1] == fingerprint else None


async def known(connection: Connection, owner: str, id_: UUID, ids: Collection[UUID]) -> dict[UUID, Known]:
    """Which of these messages the conversation has, and where they stand."""
    found = await connection.fetch(
        "SELECT id, seq, run, depth, fingerprint FROM messages"
        " WHERE owner_id = $1 AND conversation_id = $2 AND id = ANY($3)",
        owner,
        id_,
        list(ids),
    )
    return {row[0]: Known(Position(*row[1:4]), row[4]) for row in found}


async def position(connection: Connection, owner: str, id_: UUID, tree: Tree, seq: int) -> Position:
    """Where message `seq` stands: mostly the tree knows it, which needs no query."""
    found = tree.find(seq)
    if found is not None:
        return found
    statement = "SELECT seq, run, depth FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND seq = $3"
    return Position(*cast("Row", await connection.fetchrow(statement, owner, id_, seq)))


# --- reading messages ------------------------------------------------------------------------------------


def _to_messages(conversation_id: UUID, found: Iterable[Row]) -> list[Message]:
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
                "metadata": json.loads(metadata) if metadata else {},
                "external_id": None if external is None else decode_nul(external),
                "sent_at": None if sent is None else _in_utc(sent),
                # As text, in the session's ISO style: the driver takes six times as long to make a time of eight bytes.
                "created_at": datetime.fromisoformat(created),
            },
        )
        for id_, seq, parent, role, content, status, sources, metadata, external, sent, created, *_ in found
    ]


async def messages(connection: Connection, owner: str, id_: UUID, rest: str, *values: object) -> list[Message]:
    """Messages of one conversation, `rest` being the end of the statement that selects them."""
    return _to_messages(id_, await connection.fetch(f"{MESSAGE}{rest}", owner, id_, *values))


async def straight_history(
    connection: Connection, owner: str, id_: UUID, window: Window
) -> tuple[int, int | None, str | None, list[Message]] | None:
    """The conversation's (last_seq, head_seq, runs), and where it never branched the messages of the page."""
    low, high = min(window.low, MAX_BIGINT), max(min(window.high, MAX_BIGINT), 0)
    found = await connection.fetch(STRAIGHT[window.order], owner, id_, low, high, window.limit + 1, window.offset)
    if not found:
        return None
    return *found[0][-3:], _to_messages(id_, found if found[0][0] is not None else ())


async def log(connection: Connection, owner: str, id_: UUID, after: int, limit: int) -> list[Message]:
    """What was appended after a seq, on all branches."""
    after = max(0, min(after, MAX_BIGINT))
    return await messages(connection, owner, id_, " AND m.seq > $3 ORDER BY m.seq LIMIT $4", after, limit)


async def messages_by_id(connection: Connection, owner: str, id_: UUID, ids: Iterable[UUID]) -> dict[UUID, Message]:
    """Those of the messages that are there, deleted or not, by id."""
    found = await messages(connection, owner, id_, " AND m.id = ANY($3)", list(ids))
    return {message.id: message for message in found}


async def messages_by_seq(connection: Connection, owner: str, id_: UUID, seqs: Iterable[int]) -> list[Message]:
    """The messages with these seqs that are not deleted, by seq."""
    rest = " AND m.seq = ANY($3) AND m.status <> 'deleted' ORDER BY m.seq"
    return await messages(connection, owner, id_, rest, list(seqs))


async def next_in_run(connection: Connection, owner: str, id_: UUID, parent: Position) -> list[int]:
    """The seq of the message that continues the run of `parent` after it; none at the tip."""
    found = await connection.fetchval(
        "SELECT seq FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND run = $3 AND seq > $4"
        " ORDER BY seq LIMIT 1",
        owner,
        id_,
        parent.run,
        parent.seq,
    )
    return [] if found is None else [found]


async def path_messages(
    connection: Connection, owner: str, id_: UUID, segments: Iterable[Segment], window: Window
) -> list[Message]:
    """The messages of a page in reading order, and one more where there is more."""
    found: list[Message] = []
    direction = "DESC" if window.order == "desc" else "ASC"
    skip = window.offset
    for segment in segments:
        where, values = _in_segment(segment)
        where += " AND m.status <> 'deleted'"
        count = len(values) + 2
        rest = f"{where} ORDER BY m.seq {direction} LIMIT ${count + 1} OFFSET ${count + 2}"
        more = await messages(connection, owner, id_, rest, *values, window.limit + 1 - len(found), skip)
        if skip:
            skip = 0 if more else skip - await _count(connection, owner, id_, where, *values)
        found += more
        if len(found) > window.limit:
            break
    return found


def _in_segment(segment: Segment) -> tuple[str, tuple[int, ...]]:
    if segment.trunk:
        return ON_TRUNK, (segment.low, segment.high)
    return IN_RUN, (segment.low, segment.high, segment.run)


async def count_deleted(connection: Connection, owner: str, id_: UUID, path: Iterable[Segment]) -> int:
    """How many messages of a path are deleted."""
    where = " AND m.status = 'deleted' AND m.run = $3 AND m.seq BETWEEN $4 AND $5"
    return sum([await _count(connection, owner, id_, where, s.run, s.low, s.high) for s in path])


async def _count(connection: Connection, owner: str, id_: UUID, rest: str, *values: object) -> int:
    statement = f"SELECT count(*) FROM messages m WHERE m.owner_id = $1 AND m.conversation_id = $2{rest}"  # noqa: S608
    return cast("int", await connection.fetchval(statement, owner, id_, *values))


async def erase_message(connection: Connection, owner: str, id_: UUID, message_id: UUID) -> bool:
    """Leave of a message its place, its id and its fingerprint: what a late retry needs. Say whether it was there."""
    status = await connection.execute(
        "UPDATE messages SET content = '', sources = NULL, metadata = NULL, external_id = NULL, terms = '{}',"
        " status = 'deleted' WHERE owner_id = $1 AND conversation_id = $2 AND id = $3 AND status <> 'deleted'",
        owner,
        id_,
        message_id,
    )
    return status != "UPDATE 0"


# --- search ----------------------------------------------------------------------------------------------

FIRST_PLACE = (datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1), MAX_BIGINT)


async def search(
    connection: Connection, owner: str, phrases: list[list[str]], below: Row, limit: int
) -> list[tuple[Row, SearchHit]]:
    """Messages of the owner that hold every phrase, stored last first, each with its place in that order."""
    terms, exact = query_terms(owner, phrases)
    hits: list[tuple[Row, SearchHit]] = []
    while len(hits) < limit:
        found = await _candidates(connection, owner, terms, below, limit)
        for row in found:
            message = _found_message(row)
            if exact or holds(message.content, phrases):
                hits.append((_place(message), _to_hit(row[-1], message, phrases)))
        if len(found) < limit:
            break
        below = _place(_found_message(found[-1]))
    return hits[:limit]


async def _candidates(connection: Connection, owner: str, terms: list[str], below: Row, limit: int) -> list[Row]:
    found = await connection.fetch(
        f"SELECT {MESSAGE_COLUMNS}, c.id, c.title FROM messages m"  # noqa: S608
        " JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id"
        " WHERE m.owner_id = $1 AND m.terms @> $2 AND c.deleted_at IS NULL"
        " AND (m.created_at, m.conversation_id, m.seq) < ($3, $4, $5)"
        " ORDER BY m.created_at DESC, m.conversation_id DESC, m.seq DESC LIMIT $6",
        owner,
        terms,
        *below,
        limit,
    )
    return cast("list[Row]", found)


def _found_message(row: Row) -> Message:
    return _to_messages(row[-2], [row])[0]


def _place(message: Message) -> Row:
    return message.created_at, message.conversation_id, message.seq


def _to_hit(title: str | None, message: Message, phrases: list[list[str]]) -> SearchHit:
    return SearchHit(message=message, title=_decode(title), snippet=snippet(message.content, phrases))


def place_after(cursor: str, scope: tuple[object, ...]) -> Row:
    """Where a search goes on."""
    micros, id_, seq = decode_cursor(cursor, "search", scope, int, str, int)
    return _time(micros), valid_id(id_), seq


def search_cursor(scope: tuple[object, ...], place: Row) -> str:
    """The inverse of `place_after`."""
    return encode_cursor("search", scope, to_micros(place[0]), place[1].hex, place[2])


async def index_slice(connection: Connection) -> bool:
    """Index some messages that are not; False when all are."""
    found = await connection.fetch(
        "SELECT owner_id, conversation_id, seq, content FROM messages WHERE terms IS NULL"
        " ORDER BY owner_id, conversation_id, seq LIMIT $1",
        INDEX_SLICE,
    )
    if not found:
        return False
    terms = [_terms(owner, decode_nul(content)) for owner, _, _, content in found]
    await connection.execute(
        "UPDATE messages m SET terms = string_to_array(t.terms, ' ')"
        " FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[]) AS t (owner_id, conversation_id, seq, terms)"
        " WHERE m.owner_id = t.owner_id AND m.conversation_id = t.conversation_id AND m.seq = t.seq"
        " AND m.terms IS NULL",
        *map(list, zip(*(row[:3] for row in found), strict=True)),
        terms,
    )
    return True
