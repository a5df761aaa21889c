"""The SQL of the SQLite store, and how its rows become records. Every statement names the owner first."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

import apsw

from chatkeep.access import IDS_CLASH
from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import Conflict
from chatkeep.ids import new_id, uuid_of, valid_id
from chatkeep.model import (
    CONVERSATION_FIELDS,
    MESSAGE_FIELDS,
    ROLES,
    STATUSES,
    Conversation,
    ImportedConversation,
    Message,
    NewConversation,
    Page,
    SearchHit,
    Source,
    stored,
)
from chatkeep.store import ListOrder
from chatkeep.stores.append import Known, Placed, State
from chatkeep.stores.sqlite.database import Row, Transaction
from chatkeep.stores.window import Window
from chatkeep.tree import Position, Segment, Tree
from chatkeep.values import from_micros, json_text, to_micros
from chatkeep.words import MAX_INDEXED_CHARS, index_text, snippet

SLICE = 1_000
"""Messages that one transaction removes, about, so that other writers need not wait long."""

INDEX_SLICE = 2_000
"""Messages that one transaction indexes at most."""

MERGE_PAGES = 500
"""Pages that one step of merging the full-text index writes, about."""

CONVERSATION = """
    SELECT c.id, c.owner_id, c.title, c.context_id, c.external_id, c.metadata, c.last_seq, c.head_id,
           c.created_at, c.updated_at
    FROM conversations c WHERE c.owner_id = ? AND c.deleted_at IS NULL
"""
MESSAGE_COLUMNS = """
    m.id, m.conversation_id, m.seq, m.parent_id, m.role, m.content, m.status, m.sources, m.metadata,
    m.external_id, m.sent_at, m.created_at
"""
MESSAGE = f"SELECT {MESSAGE_COLUMNS} FROM messages m WHERE m.owner_id = ? AND m.conversation_id = ?"  # noqa: S608
INSERT_MESSAGE = """
    INSERT INTO messages (rid, owner_id, conversation_id, seq, id, run, depth, parent_id, role, content, status,
                          sources, metadata, external_id, sent_at, created_at, fingerprint)
"""
INSERT_WORDS = "INSERT INTO message_words (rowid, owner, words)"
# What a segment's rows are: on the trunk seq alone says it, after the first fork the index of runs does.
ON_TRUNK = " AND m.seq BETWEEN ? AND ?"
IN_RUN = " AND m.seq BETWEEN ? AND ? AND m.run = ? AND m.depth < m.seq"


def fetch(connection: apsw.Connection, statement: str, values: Row = ()) -> list[Row]:
    """All rows of a statement: a cursor that is left half-read would keep an old snapshot and the log."""
    return cast("list[Row]", connection.execute(statement, values).fetchall())


class Thread(NamedTuple):
    """What an append or a history reads of a conversation."""

    last_seq: int
    head_seq: int | None
    head_id: bytes | None
    runs: str | None
    title: str | None
    updated_at: int


def uuid(value: bytes) -> UUID:
    """The id that was stored as `value`."""
    return uuid_of(int.from_bytes(value))


# --- conversations ---------------------------------------------------------------------------------------


def thread(connection: apsw.Connection, owner: str, id_: UUID) -> Thread | None:
    """The threading of one conversation."""
    row = connection.execute(
        "SELECT last_seq, head_seq, head_id, runs, title, updated_at FROM conversations"
        " WHERE owner_id = ? AND id = ? AND deleted_at IS NULL",
        (owner, id_.bytes),
    ).fetchone()
    return None if row is None else Thread(*row)


def exists_elsewhere(connection: apsw.Connection, id_: UUID) -> bool:
    """Whether anybody has this id: the one question that does not name an owner."""
    statement = "SELECT 1 FROM conversations WHERE id = ? AND deleted_at IS NULL LIMIT 1"
    return connection.execute(statement, (id_.bytes,)).get is not None


def conversation(connection: apsw.Connection, owner: str, id_: UUID) -> Conversation | None:
    """One conversation, None where the owner has none with this id."""
    row = connection.execute(f"{CONVERSATION} AND c.id = ?", (owner, id_.bytes)).fetchone()
    return None if row is None else _to_conversation(row)


def create(owner: str, new: NewConversation, transaction: Transaction) -> Conversation:
    """Store a conversation, or find that it is there. Raises Conflict."""
    connection, id_ = transaction.connection, new.id or new_id()
    fingerprint = new.fingerprint()
    known = connection.execute(
        "SELECT fingerprint, deleted_at FROM conversations WHERE owner_id = ? AND id = ?", (owner, id_.bytes)
    ).fetchone()
    if known is None:
        return _insert_conversation(transaction, owner, id_, new, fingerprint)
    if known[1] is not None:  # still being removed: finish that first, the old must not show in the new
        transaction.write_held()
        _remove_messages(connection, owner, id_.bytes, -1)
        _remove_conversation(connection, owner, id_.bytes)
        return _insert_conversation(transaction, owner, id_, new, fingerprint)
    found = conversation(connection, owner, id_)
    if found is None or known[0] != fingerprint:
        raise Conflict("this conversation id is already used for other values", got=id_)
    return found


def _insert_conversation(
    transaction: Transaction, owner: str, id_: UUID, new: NewConversation, fingerprint: bytes
) -> Conversation:
    created = updated = transaction.moment
    if isinstance(new, ImportedConversation) and new.updated_at is not None:
        updated = new.updated_at
    if owner not in transaction.owners:
        transaction.connection.execute("INSERT INTO users VALUES (?) ON CONFLICT DO NOTHING", (owner,))
        transaction.owners.add(owner)
    transaction.connection.execute(
        "INSERT INTO conversations (owner_id, id, title, context_id, external_id, metadata, fingerprint,"
        " created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            owner,
            id_.bytes,
            new.title,
            new.context_id,
            new.external_id,
            json_text(new.metadata),
            fingerprint,
            to_micros(created),
            to_micros(updated),
        ),
    )
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": id_,
            "owner_id": owner,
            "title": new.title,
            "context_id": new.context_id,
            "external_id": new.external_id,
            "metadata": new.metadata,
            "last_seq": 0,
            "head_id": None,
            "created_at": created,
            "updated_at": updated,
        },
    )


def get_or_create(owner: str, new: NewConversation, transaction: Transaction) -> Conversation:
    """The owner's newest conversation of the context, or a new one: one writer at a time is what makes it one."""
    row = transaction.connection.execute(
        f"{CONVERSATION} AND c.context_id IS ? ORDER BY c.updated_at DESC, c.id DESC LIMIT 1",
        (owner, new.context_id),
    ).fetchone()
    return create(owner, new, transaction) if row is None else _to_conversation(row)


def list_conversations(
    owner: str,
    context_id: str | None,
    order: ListOrder,
    scope: tuple[object, ...],
    limit: int,
    cursor: str | None,
    offset: int,
    connection: apsw.Connection,
    *,
    total: bool,
) -> Page[Conversation]:
    """A page of the owner's conversations."""
    where, values = ("", [owner]) if context_id is None else (" AND c.context_id = ?", [owner, context_id])
    start, position = _list_start(order, scope, cursor)
    by = "c.id" if order == "id" else "c.updated_at DESC, c.id DESC"
    found = fetch(
        connection,
        f"{CONVERSATION}{where}{start} ORDER BY {by} LIMIT ? OFFSET ?",
        (*values, *position, limit + 1, offset),
    )
    counted = connection.execute(f"SELECT count(*) FROM ({CONVERSATION}{where})", values).get if total else None  # noqa: S608
    items = [_to_conversation(row) for row in found[:limit]]
    following = _list_cursor(order, scope, items[-1]) if len(found) > limit else None
    return Page(items=items, total=counted, next=following)


def _list_start(order: ListOrder, scope: tuple[object, ...], cursor: str | None) -> tuple[str, Row]:
    if cursor is None:
        return "", ()
    if order == "id":
        (id_,) = decode_cursor(cursor, "conversations", scope, str)
        return " AND c.id > ?", (valid_id(id_).bytes,)
    updated_at, id_ = decode_cursor(cursor, "conversations", scope, int, str)
    return " AND (c.updated_at, c.id) < (?, ?)", (updated_at, valid_id(id_).bytes)


def _list_cursor(order: ListOrder, scope: tuple[object, ...], last: Conversation) -> str:
    position = (last.id.hex,) if order == "id" else (to_micros(last.updated_at), last.id.hex)
    return encode_cursor("conversations", scope, *position)


def set_values(connection: apsw.Connection, owner: str, id_: UUID, values: Mapping[str, Any]) -> None:
    """Set columns of one conversation; their names come from this package, never from a caller."""
    names = ", ".join(f"{name} = ?" for name in values)
    statement = f"UPDATE conversations SET {names} WHERE owner_id = ? AND id = ?"  # noqa: S608
    connection.execute(statement, (*values.values(), owner, id_.bytes))


def save_state(connection: apsw.Connection, owner: str, id_: UUID, state: State) -> None:
    """Write what an append changed of its conversation."""
    connection.execute(
        "UPDATE conversations SET last_seq = ?, head_seq = ?, head_id = ?, runs = ?, title = ?, updated_at = ?"
        " WHERE owner_id = ? AND id = ?",
        (
            state.tree.last_seq,
            state.head.seq if state.head else None,
            state.head_id.bytes if state.head_id else None,
            state.tree.dump(),
            state.title,
            to_micros(state.updated_at),
            owner,
            id_.bytes,
        ),
    )


def _to_conversation(row: Row) -> Conversation:
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
            "metadata": json.loads(metadata),
            "last_seq": last_seq,
            "head_id": None if head is None else uuid(head),
            "created_at": from_micros(created),
            "updated_at": from_micros(updated),
        },
    )


# --- messages --------------------------------------------------------------------------------------------


def insert_messages(transaction: Transaction, owner: str, rids: Iterable[int], new: Sequence[Placed]) -> None:
    """Let new messages of one conversation be written, each under its rid."""
    created_at = to_micros(transaction.moment)
    values = [_message_values(owner, created_at, rid, placed) for rid, placed in zip(rids, new, strict=True)]
    transaction.hold(INSERT_MESSAGE, values)
    transaction.held_of.add((owner, new[0].message.conversation_id))


def _message_values(owner: str, created_at: int, rid: int, placed: Placed) -> Row:
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
        created_at,
        fingerprint,
    )


def _to_message(row: Row) -> Message:
    id_, conversation_id, seq, parent, role, content, status, sources, metadata, external, sent, created = row
    return stored(
        Message,
        MESSAGE_FIELDS,
        {
            "id": uuid(id_),
            "conversation_id": uuid(conversation_id),
            "seq": seq,
            "parent_id": None if parent is None else uuid(parent),
            "role": ROLES[role],
            "content": content,
            "status": STATUSES[status],
            "sources": tuple(map(Source.model_validate, json.loads(sources))) if sources else (),
            "metadata": json.loads(metadata) if metadata else {},
            "external_id": external,
            "sent_at": None if sent is None else from_micros(sent),
            "created_at": from_micros(created),
        },
    )


def messages(connection: apsw.Connection, owner: str, id_: UUID, rest: str, values: Row) -> list[Message]:
    """Messages of one conversation, `rest` being the end of the statement that selects them."""
    found = fetch(connection, f"{MESSAGE}{rest}", (owner, id_.bytes, *values))
    return [_to_message(row) for row in found]


def log(connection: apsw.Connection, owner: str, id_: UUID, after: int, limit: int) -> list[Message]:
    """What was appended after a seq, on all branches."""
    after = max(0, min(after, 2**63 - 1))  # SQLite knows no larger integers
    return messages(connection, owner, id_, " AND m.seq > ? ORDER BY m.seq LIMIT ?", (after, limit))


def message_by_id(connection: apsw.Connection, owner: str, id_: UUID, message_id: UUID) -> Message | None:
    """One message, deleted or not."""
    return next(iter(messages(connection, owner, id_, " AND m.id = ?", (message_id.bytes,))), None)


def messages_by_id(connection: apsw.Connection, owner: str, id_: UUID, ids: Iterable[UUID]) -> dict[UUID, Message]:
    """Messages that are known to be there, by id."""
    found = {message_id: message_by_id(connection, owner, id_, message_id) for message_id in ids}
    return cast("dict[UUID, Message]", found)


def messages_by_seq(connection: apsw.Connection, owner: str, id_: UUID, seqs: Iterable[int]) -> list[Message]:
    """The messages with these seqs that are not deleted, in the order given."""
    rest = " AND m.seq = ? AND m.status <> 'deleted'"
    return [message for seq in seqs for message in messages(connection, owner, id_, rest, (seq,))]


def known(connection: apsw.Connection, owner: str, id_: UUID, ids: Collection[UUID]) -> dict[UUID, Known]:
    """Which of these messages the conversation has, and where they stand."""
    statement = (
        "SELECT seq, run, depth, fingerprint FROM messages WHERE owner_id = ? AND conversation_id = ? AND id = ?"
    )
    found = {}
    for message_id in ids:
        row = connection.execute(statement, (owner, id_.bytes, message_id.bytes)).fetchone()
        if row is not None:
            found[message_id] = Known(Position(*row[:3]), row[3])
    return found


def position(connection: apsw.Connection, owner: str, id_: UUID, tree: Tree, seq: int) -> Position:
    """Where message `seq` stands: mostly the tree knows it, which needs no query."""
    found = tree.find(seq)
    if found is not None:
        return found
    statement = "SELECT seq, run, depth FROM messages WHERE owner_id = ? AND conversation_id = ? AND seq = ?"
    return Position(*cast("Row", connection.execute(statement, (owner, id_.bytes, seq)).fetchone()))


def next_in_run(connection: apsw.Connection, owner: str, id_: UUID, parent: Position) -> list[int]:
    """The seq of the message that continues the run of `parent` after it; none at the tip."""
    row = connection.execute(
        "SELECT seq FROM messages WHERE owner_id = ? AND conversation_id = ? AND run = ? AND seq > ?"
        " ORDER BY seq LIMIT 1",
        (owner, id_.bytes, parent.run, parent.seq),
    ).fetchone()
    return [] if row is None else [row[0]]


def path_messages(
    connection: apsw.Connection, owner: str, id_: UUID, segments: Iterable[Segment], window: Window
) -> list[Message]:
    """The messages of a page in reading order, and one more where there is more."""
    found: list[Message] = []
    direction = "DESC" if window.order == "desc" else "ASC"
    skip = window.offset
    for segment in segments:
        where, values = _in_segment(segment)
        rest = f"{where} AND m.status <> 'deleted' ORDER BY m.seq {direction} LIMIT ? OFFSET ?"
        more = messages(connection, owner, id_, rest, (*values, window.limit + 1 - len(found), skip))
        if skip:
            skip = 0 if more else skip - _count(connection, owner, id_, f"{where} AND m.status <> 'deleted'", values)
        found += more
        if len(found) > window.limit:
            break
    return found


def _in_segment(segment: Segment) -> tuple[str, Row]:
    if segment.trunk:
        return ON_TRUNK, (segment.low, segment.high)
    return IN_RUN, (segment.low, segment.high, segment.run)


def count_deleted(connection: apsw.Connection, owner: str, id_: UUID, path: Iterable[Segment]) -> int:
    """How many messages of a path are deleted."""
    return sum(
        _count(
            connection,
            owner,
            id_,
            " AND m.status = 'deleted' AND m.run = ? AND m.seq BETWEEN ? AND ?",
            (s.run, s.low, s.high),
        )
        for s in path
    )


def _count(connection: apsw.Connection, owner: str, id_: UUID, rest: str, values: Row) -> int:
    statement = f"SELECT count(*) FROM messages m WHERE m.owner_id = ? AND m.conversation_id = ?{rest}"  # noqa: S608
    return cast("int", connection.execute(statement, (owner, id_.bytes, *values)).get)


def erase_message(connection: apsw.Connection, owner: str, id_: UUID, message_id: UUID) -> None:
    """Leave of a message its place, its id and its fingerprint: what a late retry needs."""
    rid = connection.execute(
        "UPDATE messages SET content = '', sources = NULL, metadata = NULL, external_id = NULL, status = 'deleted'"
        " WHERE owner_id = ? AND conversation_id = ? AND id = ? RETURNING rid",
        (owner, id_.bytes, message_id.bytes),
    ).get
    connection.execute("DELETE FROM message_words WHERE rowid = ?", (rid,))


# --- search ----------------------------------------------------------------------------------------------


def _owner_word(owner: str) -> str:
    """The owner as one word of the index, whatever characters it has: hex(owner_id) in SQL."""
    return owner.encode().hex()


def index(transaction: Transaction, owner: str, contents: Iterable[tuple[int, str]]) -> None:
    """Put messages, given as (rid, content), into the full-text index."""
    word = _owner_word(owner)
    transaction.hold(INSERT_WORDS, [(rid, word, index_text(content)) for rid, content in contents if content])


def mark_unindexed(transaction: Transaction, rid: int) -> None:
    """Note that messages from `rid` on are stored without being indexed."""
    if not transaction.says_unindexed:
        transaction.connection.execute(
            "UPDATE store_state SET value = ? WHERE name = 'unindexed_from' AND (value IS NULL OR value > ?)",
            (rid, rid),
        )
        transaction.says_unindexed = True


def index_slice(transaction: Transaction) -> bool:
    """Index some messages that are not; False when all are.

    One statement, which SQLite runs without Python but for text that is not ASCII.
    """
    connection = transaction.connection
    first = cast("int | None", connection.execute("SELECT value FROM store_state WHERE name = 'unindexed_from'").get)
    if first is None:
        return False
    transaction.says_unindexed = False
    last = first + INDEX_SLICE
    connection.execute(
        "INSERT INTO message_words (rowid, owner, words) SELECT rid, hex(owner_id), CASE"
        "   WHEN octet_length(content) = length(content) THEN substr(content, 1, ?) ELSE index_text(content) END"
        " FROM messages WHERE rid BETWEEN ? AND ? AND content <> ''"
        " AND rid NOT IN (SELECT id FROM message_words_docsize WHERE id BETWEEN ? AND ?)",
        (MAX_INDEXED_CHARS, first, last, first, last),
    )
    connection.execute(
        "UPDATE store_state SET value = (SELECT min(rid) FROM messages WHERE rid > ?) WHERE name = 'unindexed_from'",
        (last,),
    )
    return True


def search(
    owner: str, phrases: list[list[str]], below: int, limit: int, connection: apsw.Connection
) -> list[tuple[int, SearchHit]]:
    """Messages of the owner that hold every phrase, stored last first, each with its rid."""
    match = " AND ".join(f'words : "{" ".join(phrase)}"' for phrase in phrases)
    found = fetch(
        connection,
        f"SELECT m.rid, c.title, {MESSAGE_COLUMNS} FROM message_words w"  # noqa: S608
        " JOIN messages m ON m.rid = w.rowid"
        " JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id"
        " WHERE message_words MATCH ? AND w.rowid < ? AND m.owner_id = ? AND c.deleted_at IS NULL"
        " ORDER BY w.rowid DESC LIMIT ?",
        (f'owner : "{_owner_word(owner)}" AND {match}', below, owner, limit),
    )
    return [(rid, _to_hit(title, _to_message(tuple(row)), phrases)) for rid, title, *row in found]


def _to_hit(title: str | None, message: Message, phrases: list[list[str]]) -> SearchHit:
    return SearchHit(message=message, title=title, snippet=snippet(message.content, phrases))


# --- removing --------------------------------------------------------------------------------------------


def owners_with_remains(connection: apsw.Connection) -> list[str]:
    """Owners of conversations that were being removed when the process ended."""
    statement = "SELECT DISTINCT owner_id FROM conversations WHERE deleted_at IS NOT NULL"
    return [owner for (owner,) in connection.execute(statement)]


def purge_slice(owner: str, transaction: Transaction) -> tuple[int, int] | None:
    """Remove some of an owner's hidden rows: how many (conversations, messages), None when there are none."""
    connection = transaction.connection
    hidden = fetch(
        connection,
        "SELECT id FROM conversations WHERE owner_id = ? AND deleted_at IS NOT NULL LIMIT ?",
        (owner, SLICE // 10),
    )
    conversations = messages_removed = 0
    for (id_,) in hidden:
        messages_removed += _remove_messages(connection, owner, id_, SLICE - messages_removed)
        if messages_removed >= SLICE:
            break
        conversations += _remove_conversation(connection, owner, id_)
    return (conversations, messages_removed) if hidden else None


def _remove_messages(connection: apsw.Connection, owner: str, id_: bytes, limit: int) -> int:
    rids = fetch(
        connection, "SELECT rid FROM messages WHERE owner_id = ? AND conversation_id = ? LIMIT ?", (owner, id_, limit)
    )
    connection.executemany("DELETE FROM message_words WHERE rowid = ?", rids)
    connection.executemany("DELETE FROM messages WHERE rid = ?", rids)
    return len(rids)


def _remove_conversation(connection: apsw.Connection, owner: str, id_: bytes) -> int:
    connection.execute("DELETE FROM conversations WHERE owner_id = ? AND id = ?", (owner, id_))
    return connection.changes()


def hide_all(owner: str, transaction: Transaction) -> None:
    """Make all conversations of an owner invisible."""
    transaction.connection.execute(
        "UPDATE conversations SET deleted_at = ? WHERE owner_id = ? AND deleted_at IS NULL",
        (to_micros(transaction.moment), owner),
    )


def remove_owner(owner: str, transaction: Transaction) -> int | None:
    """Remove the owner and count what is left; None where a conversation was created in the meantime."""
    connection = transaction.connection
    if connection.execute("SELECT 1 FROM conversations WHERE owner_id = ? LIMIT 1", (owner,)).get:
        return None
    connection.execute("DELETE FROM users WHERE id = ?", (owner,))
    transaction.owners.discard(owner)
    left = connection.execute(
        "SELECT (SELECT count(*) FROM messages WHERE owner_id = ?) + (SELECT count(*) FROM users WHERE id = ?)",
        (owner, owner),
    ).get
    return cast("int", left)


def rename_owner(old: str, new: str, transaction: Transaction) -> int:
    """Give the conversations of one owner to another one; their messages are indexed anew next."""
    connection, both = transaction.connection, (new, old)
    clash = "SELECT 1 FROM conversations a JOIN conversations b ON b.owner_id = ? AND b.id = a.id WHERE a.owner_id = ?"
    if connection.execute(f"{clash} LIMIT 1", both).get:
        raise Conflict(IDS_CLASH)
    first = cast("int | None", connection.execute("SELECT min(rid) FROM messages WHERE owner_id = ?", (old,)).get)
    connection.execute("PRAGMA defer_foreign_keys = ON")
    connection.execute("INSERT OR IGNORE INTO users (id) VALUES (?)", (new,))
    if first is not None:
        indexed = "SELECT rid FROM messages JOIN message_words_docsize d ON d.id = rid WHERE owner_id = ?"
        connection.execute(f"DELETE FROM message_words WHERE rowid IN ({indexed})", (old,))  # noqa: S608
        mark_unindexed(transaction, first)
    connection.execute("UPDATE conversations SET owner_id = ? WHERE owner_id = ?", both)
    count = connection.changes()
    connection.execute("UPDATE messages SET owner_id = ? WHERE owner_id = ?", both)
    connection.execute("DELETE FROM users WHERE id = ?", (old,))
    transaction.owners.discard(old)
    return count


def count_indexed(owner: str, connection: apsw.Connection) -> int:
    """How many messages of the owner the full-text index holds."""
    statement = "SELECT count(*) FROM message_words WHERE message_words MATCH ?"
    return cast("int", connection.execute(statement, (f'owner : "{_owner_word(owner)}"',)).get)


def merge_index(pages: int, transaction: Transaction) -> bool:
    """Merge some pages of the full-text index, which drops what was deleted; False when nothing is left to do.

    A negative number begins to merge the index as a whole, a positive one goes on with that, and leaves
    alone what others have written since. A step that changes fewer than two rows had nothing to merge
    (SQLite's documentation of FTS5, 6.8).
    """
    connection = transaction.connection
    before = connection.total_changes()
    connection.execute("INSERT INTO message_words (message_words, rank) VALUES ('merge', ?)", (pages,))
    return connection.total_changes() - before >= 2
