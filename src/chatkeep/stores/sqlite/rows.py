"""The SQL of the SQLite store, and how its rows become records. Every statement names the owner first."""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any, cast
from uuid import UUID

import apsw

from chatkeep.access import IDS_CLASH
from chatkeep.errors import Conflict
from chatkeep.ids import valid_id
from chatkeep.model import (
    Message,
)
from chatkeep.store import Order
from chatkeep.stores.append import Known, Placed, State
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.stores.rows import Found, Key, Place, Row, Within, WordIndex
from chatkeep.stores.slices import PageSize, Part, Removed, that_fit
from chatkeep.stores.sqlite.columns import (
    answer_values,
    found_within,
    in_segment,
    message_values,
    messages_within,
    of_word_index,
    owner_word,
    state_values,
    to_message,
    uuid,
)
from chatkeep.stores.sqlite.database import Transaction
from chatkeep.stores.sqlite.providers import SqliteProviders
from chatkeep.stores.sqlite.rewrites import count_removal
from chatkeep.stores.sqlite.search import (
    COUNT_HITS,
    FIRST_PLACE,
    HITS_FOR_A_MESSAGE,
    RESTORED,
    match_of,
    search_statements,
    small_values,
)
from chatkeep.tree import Position, Segment
from chatkeep.turns import Ending, TurnKey
from chatkeep.values import to_micros
from chatkeep.words import MAX_INDEXED_CHARS, Query, index_text

SLICE = 1_000
"""Messages that one transaction removes, about, so that other writers need not wait long."""

INDEX_SLICE = 2_000
"""Messages that one transaction indexes at most."""

INDEX_SLICE_BYTES = 4 << 20
"""Bytes of text that one transaction indexes, about: half a second of Han, a tenth of ASCII. With a quarter of it an
import commits more often than it needs."""

MERGE_PAGES = 500
"""Pages that one step of merging the full-text index writes, about."""

SAVE_STATE = """
    UPDATE conversations SET last_seq = ?, head_seq = ?, head_id = ?, runs = ?, title = ?, updated_at = ?
    WHERE owner_id = ? AND id = ?
"""
MESSAGE_COLUMNS = """
    m.id, m.conversation_id, m.seq, m.parent_id, m.role, m.content, m.status, m.parts, m.sources, m.metadata,
    m.external_id, m.sent_at, m.created_at, m.model, m.input_tokens, m.output_tokens, m.duration_ms
"""
MESSAGE = f"SELECT {MESSAGE_COLUMNS} FROM messages m WHERE m.owner_id = ? AND m.conversation_id = ?"  # noqa: S608
PLACES = "SELECT m.seq, m.status FROM messages m WHERE m.owner_id = ? AND m.conversation_id = ?"
DELETED_PLACES = """
    SELECT run, seq FROM messages WHERE owner_id = ? AND conversation_id = ? AND status = 'deleted'
        AND (run, seq) > (?, ?) ORDER BY run, seq LIMIT ?
"""
INSERT_MESSAGE = """
    INSERT INTO messages (rid, owner_id, conversation_id, seq, id, run, depth, parent_id, role, content, status,
                          parts, sources, metadata, model, input_tokens, output_tokens, duration_ms, external_id,
                          sent_at, created_at, fingerprint)
"""
INSERT_WORDS = "INSERT INTO message_words (rowid, owner, words)"
ERASE_MESSAGE = """
    UPDATE messages SET content = '', parts = NULL, sources = NULL, metadata = NULL, external_id = NULL,
        status = 'deleted'
    WHERE owner_id = ? AND conversation_id = ? AND id = ? AND status <> 'deleted' RETURNING rid
"""
SET_ANSWER = """
    UPDATE messages SET status = ?, content = ?, parts = ?, sources = ?, model = ?, input_tokens = ?,
        output_tokens = ?, duration_ms = ?
    WHERE owner_id = ? AND conversation_id = ? AND id = ? AND status IN ('in_progress', 'interrupted')
    RETURNING rid
"""
MOVE = "UPDATE conversations SET updated_at = max(updated_at, ?) WHERE owner_id = ? AND id = ?"
SET_METADATA = "UPDATE messages SET metadata = ? WHERE owner_id = ? AND conversation_id = ? AND id = ?"
SEARCH, SEARCH_RESTORED, SEARCH_SMALL = search_statements(MESSAGE_COLUMNS)
RESTORED_TO = """
    INSERT INTO store_state VALUES ('restored_to', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
FINGERPRINTS = """
    SELECT fingerprint FROM messages WHERE owner_id = ? AND conversation_id = ? AND seq BETWEEN ? AND ? ORDER BY seq
"""
# One statement, which SQLite runs without Python but for text that is not ASCII.
INDEX = """
    INSERT INTO message_words (rowid, owner, words) SELECT rid, hex(owner_id), CASE
        WHEN octet_length(content) = length(content) THEN substr(content, 1, ?) ELSE index_text(content) END
    FROM messages WHERE rid BETWEEN ? AND ? AND content <> ''
        AND rid NOT IN (SELECT id FROM message_words_docsize WHERE id BETWEEN ? AND ?)
"""
INDEXED = """
    UPDATE store_state SET value = (SELECT min(rid) FROM messages WHERE rid > ?) WHERE name = 'unindexed_from'
"""
SIZES = "SELECT rid, octet_length(content) FROM messages WHERE rid >= ? ORDER BY rid LIMIT ?"
SET_WORD_INDEX = """
    UPDATE word_index SET rule = ?, target = ?, place = ? WHERE (rule, target, place) IS (?, ?, ?)
"""
KEYS_ABOVE = """
    SELECT owner_id, id FROM conversations
    WHERE id IN (SELECT DISTINCT id FROM conversations WHERE id > ? ORDER BY id LIMIT ?) ORDER BY id
"""
# substr() and length() stop at NUL: such text, and text that is not ASCII, is cut by index_text.
INDEXED_AFTER = """
    SELECT m.rid, m.seq, CASE
        WHEN octet_length(m.content) = length(m.content) THEN substr(m.content, 1, ?) ELSE m.content END
    FROM messages m JOIN message_words_docsize d ON d.id = m.rid
    WHERE m.owner_id = ? AND m.conversation_id = ? AND m.seq > ? ORDER BY m.seq LIMIT ?
"""
HIDE_SLICE = """
    UPDATE conversations SET deleted_at = ? WHERE rid IN (
        SELECT rid FROM conversations WHERE owner_id = ? AND deleted_at IS NULL LIMIT ?)
"""
HIDE_SLICE_OF_PROJECT = """
    UPDATE conversations SET deleted_at = ?1 WHERE rid IN (
        SELECT rid FROM conversations WHERE owner_id = ?2 AND project_id = ?3 AND deleted_at IS NULL AND EXISTS (
            SELECT 1 FROM projects WHERE owner_id = ?2 AND id = ?3 AND deleted_at IS NOT NULL) LIMIT ?4)
"""
HAS_ANYTHING = """
    SELECT 1 WHERE EXISTS (SELECT 1 FROM conversations WHERE owner_id = ?1)
        OR EXISTS (SELECT 1 FROM projects WHERE owner_id = ?1)
"""
OWNERS_WITH_REMAINS = """
    SELECT owner_id FROM conversations WHERE deleted_at IS NOT NULL
    UNION SELECT owner_id FROM projects WHERE deleted_at IS NOT NULL
    UNION SELECT owner_id FROM documents WHERE has_rubbish = 1
"""
REMOVABLE = """
    SELECT m.rid, d.id, m.status = 'in_progress' FROM messages m LEFT JOIN message_words_docsize d ON d.id = m.rid
    WHERE m.owner_id = ? AND m.conversation_id = ? LIMIT ?
"""
CLASH = """
    SELECT 1 FROM conversations a JOIN conversations b ON b.owner_id = ? AND b.id = a.id
    WHERE a.owner_id = ? LIMIT 1
"""

NOTHING_KNOWN: Mapping[str, str] = {}


class SqliteRows(SqliteProviders):
    """Rows on one connection: a snapshot, or with a transaction what it writes."""

    __slots__ = ("_index", "_words")

    def __init__(
        self,
        connection: apsw.Connection,
        transaction: Transaction | None = None,
        *,
        index: bool = True,
        words: Mapping[str, str] = NOTHING_KNOWN,
    ) -> None:
        """Take what reads and writes, and the words of some texts that are to be saved.

        index=False leaves new messages to `index_slice`.
        """
        super().__init__(connection, transaction)
        self._index = index
        self._words = words

    def _flush(self, key: Key) -> None:
        """Write the deferred rows if some are of this conversation."""
        if self._transaction is not None and key in self._transaction.deferred_of:
            self._transaction.flush()

    # --- messages -----------------------------------------------------------------------------------------

    async def save(self, key: Key, state: State, new: Sequence[Placed]) -> None:
        transaction, owner = self._writes, key[0]
        rids = [transaction.next_rid() for _ in new]
        rows = [message_values(owner, rid, placed) for rid, placed in zip(rids, new, strict=True)]
        transaction.defer(INSERT_MESSAGE, rows)
        transaction.deferred_of.add(key)
        if self._index:
            word, contents = owner_word(owner), [placed.message.content for placed in new]
            words = [(rid, word, self._words_of(text)) for rid, text in zip(rids, contents, strict=True) if text]
            transaction.defer(INSERT_WORDS, words)
        else:
            self._mark_unindexed(rids[0])
        if any(placed.message.created_at is not transaction.moment for placed in new):
            self._connection.execute(RESTORED_TO, (rids[-1],))
        self._connection.execute(SAVE_STATE, (*state_values(state), owner, key[1].bytes))

    def _words_of(self, content: str) -> str:
        known = self._words.get(content)
        return index_text(content) if known is None else known

    def _messages(self, key: Key, rest: str, *values: Any) -> list[Message]:
        """Messages of one conversation, `rest` being the end of the statement that selects them."""
        self._flush(key)
        return [to_message(row, key[1]) for row in self._fetch(f"{MESSAGE}{rest}", (key[0], key[1].bytes, *values))]

    def _part(self, key: Key, rest: str, *values: Any, max_bytes: int) -> Part[Message]:
        """The same, as many as have room."""
        self._flush(key)
        with self._rows(f"{MESSAGE}{rest}", (key[0], key[1].bytes, *values)) as rows:
            return messages_within(rows, key[1], max_bytes)

    def _columns(self, key: Key, columns: str, rest: str, *values: Any) -> Row | None:
        """Some columns of the first message that `rest` selects."""
        self._flush(key)
        statement = f"SELECT {columns} FROM messages m WHERE m.owner_id = ? AND m.conversation_id = ?{rest}"  # noqa: S608
        return self._connection.execute(statement, (key[0], key[1].bytes, *values)).fetchone()

    async def known(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Known]:
        columns = "m.seq, m.run, m.depth, m.fingerprint, m.status = 'deleted'"
        found = {id_: self._columns(key, columns, " AND m.id = ?", id_.bytes) for id_ in ids}
        return {id_: Known(Position(*row[:3]), row[3], bool(row[4])) for id_, row in found.items() if row is not None}

    async def position(self, key: Key, seq: int) -> Position:
        return Position(*cast("Row", self._columns(key, "m.seq, m.run, m.depth", " AND m.seq = ?", seq)))

    async def messages_by_id(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Message]:
        found = chain.from_iterable(self._messages(key, " AND m.id = ?", id_.bytes) for id_ in ids)
        return {message.id: message for message in found}

    async def messages_by_seq(self, key: Key, seqs: Sequence[int], size: PageSize) -> Part[Message]:
        self._flush(key)
        statement, of_conversation = f"{MESSAGE} AND m.seq = ? AND m.status <> 'deleted'", (key[0], key[1].bytes)
        found = chain.from_iterable(self._fetch(statement, (*of_conversation, seq)) for seq in seqs)
        return messages_within(islice(found, size.limit), key[1], size.max_bytes)

    async def log(self, key: Key, after: int, size: PageSize) -> Part[Message]:
        return self._part(key, " AND m.seq > ? ORDER BY m.seq LIMIT ?", after, size.limit, max_bytes=size.max_bytes)

    async def fingerprints(self, key: Key, first: int, last: int) -> list[bytes]:
        values = (key[0], key[1].bytes, first, last)
        return [fingerprint for (fingerprint,) in self._fetch(FINGERPRINTS, values)]

    async def next_in_run(self, key: Key, parent: Position) -> list[int]:
        rest = " AND m.run = ? AND m.seq > ? AND m.depth < m.seq ORDER BY m.seq LIMIT 1"
        row = self._columns(key, "m.seq", rest, parent.run, parent.seq)
        return [] if row is None else [row[0]]

    async def segment(self, key: Key, segment: Segment, order: Order, size: PageSize) -> Part[Message]:
        where, values = in_segment(segment)
        rest = f"{where} ORDER BY m.seq {order} LIMIT ?"
        return self._part(key, rest, *values, size.limit, max_bytes=size.max_bytes)

    async def places(self, key: Key, segments: Sequence[Segment], order: Order, limit: int) -> list[Place]:
        self._flush(key)
        found: list[Place] = []
        for segment in segments:
            where, values = in_segment(segment)
            statement = f"{PLACES}{where} ORDER BY m.seq {order} LIMIT ?"
            rows = self._fetch(statement, (key[0], key[1].bytes, *values, limit - len(found)))
            found += [Place(seq, status == "deleted") for seq, status in rows]
            if len(found) == limit:
                break
        return found

    async def count_segment(self, key: Key, segment: Segment, *, deleted: bool = False) -> int:
        where, values = in_segment(segment)
        if deleted:  # the index of tombstones has the run
            where = " AND m.seq BETWEEN ? AND ? AND m.run = ? AND m.status = 'deleted'"
            values = segment.low, segment.high, segment.run
        return cast("int", cast("Row", self._columns(key, "count(*)", where, *values))[0])

    async def deleted_places(self, key: Key, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        self._flush(key)
        return self._fetch(DELETED_PLACES, (key[0], key[1].bytes, *after, limit))

    async def set_metadata(self, key: Key, id_: UUID, metadata: str | None) -> None:
        self._flush(key)
        self._connection.execute(SET_METADATA, (metadata, key[0], key[1].bytes, id_.bytes))

    async def erase_message(self, key: Key, id_: UUID) -> None:
        self._flush(key)
        rid = self._connection.execute(ERASE_MESSAGE, (key[0], key[1].bytes, id_.bytes)).get
        self._connection.execute("DELETE FROM message_words WHERE rowid = ?", (rid,))

    async def set_answer(self, key: TurnKey, ending: Ending) -> None:
        transaction, place = self._writes, (key.owner, key.conversation_id.bytes)
        self._flush(key[:2])  # the question and the answer may be new
        rid = self._connection.execute(SET_ANSWER, (*answer_values(ending), *place, key.message_id.bytes)).get
        if rid is None:
            return
        self._connection.execute(MOVE, (to_micros(transaction.moment), *place))
        self._connection.execute("DELETE FROM message_words WHERE rowid = ?", (rid,))  # of one that was cut off
        if not ending.content:
            return
        if self._index:
            transaction.defer(INSERT_WORDS, [(rid, owner_word(key.owner), self._words_of(ending.content))])
            transaction.deferred_of.add(key[:2])
        else:
            self._mark_unindexed(cast("int", rid))

    # --- search -------------------------------------------------------------------------------------------

    async def search(
        self, owner: str, query: Query, below: tuple[Any, ...] | None, size: PageSize, only: Within | None = None
    ) -> Found:
        match = match_of(owner, query)
        place = below or FIRST_PLACE
        if only and only.is_small and self._are_many(match, only.messages * HITS_FOR_A_MESSAGE):
            with self._rows(SEARCH_SMALL, small_values(owner, match, place, size.limit, only)) as rows:
                return found_within(rows, size)
        with closing(self._hits(owner, match, place, size.limit, only)) as rows:
            return found_within(rows, size)

    def _are_many(self, match: str, number: int) -> bool:
        """Whether there are so many hits in all conversations."""
        return cast("int", self._connection.execute(COUNT_HITS, (match, number)).get) == number

    def _hits(self, owner: str, match: str, below: tuple[Any, ...], limit: int, only: Within | None) -> Generator[Row]:
        """The hits one by one: those in the order of their rowids, then those that were restored."""
        conversation = only and only.id.bytes
        rid, created_at, id_, seq = below
        restored, count = cast("int", self._connection.execute(RESTORED).get), 0
        if rid > restored:
            with self._rows(SEARCH, (match, restored, rid, owner, conversation, limit)) as rows:
                for row in rows:
                    count += 1
                    yield row
        if restored and count < limit:
            behind = (created_at, valid_id(id_).bytes, seq)
            values = (match, restored, owner, conversation, *behind, owner, limit - count)
            with self._rows(SEARCH_RESTORED, values) as rows:
                yield from rows

    def _mark_unindexed(self, rid: int) -> None:
        """Note that messages from `rid` on are stored without being indexed."""
        marked = self._writes.unindexed_from
        if marked is None or rid < marked:
            self._connection.execute(
                "UPDATE store_state SET value = ? WHERE name = 'unindexed_from' AND (value IS NULL OR value > ?)",
                (rid, rid),
            )
            self._writes.unindexed_from = rid

    async def index_slice(self) -> bool:
        self._writes.flush()
        first = self._connection.execute("SELECT value FROM store_state WHERE name = 'unindexed_from'").get
        if first is None:
            return False
        self._writes.unindexed_from = None
        last = self._end_of_slice(cast("int", first))
        self._connection.execute(INDEX, (MAX_INDEXED_CHARS, first, last, first, last))
        self._connection.execute(INDEXED, (last,))
        return True

    def _end_of_slice(self, first: int) -> int:
        """The last rid of a slice that begins at a rid."""
        rids = that_fit(self._fetch(SIZES, (first, INDEX_SLICE)), INDEX_SLICE_BYTES)
        return rids[-1] if rids else first

    async def word_index(self) -> WordIndex:
        rule, target, place = self._connection.execute("SELECT rule, target, place FROM word_index").get
        return WordIndex(rule, target, None if place is None else uuid(place))

    async def set_word_index(self, before: WordIndex, after: WordIndex) -> bool:
        self._connection.execute(SET_WORD_INDEX, (*of_word_index(after), *of_word_index(before)))
        return self._connection.changes() > 0

    async def keys_above(self, id_: UUID | None, limit: int) -> list[Key]:
        found = self._fetch(KEYS_ABOVE, (b"" if id_ is None else id_.bytes, limit))
        return [(owner, uuid(each)) for owner, each in found]

    async def index_again(self, key: Key, after: int) -> int | None:
        self._writes.flush()
        found = self._fetch(INDEXED_AFTER, (MAX_INDEXED_CHARS, key[0], key[1].bytes, after, INDEX_SLICE // 10))
        some = that_fit([(row, len(row[2])) for row in found], INDEX_SLICE_BYTES) or found[:1]
        word = owner_word(key[0])
        for rid, _, content in some:
            self._connection.execute("DELETE FROM message_words WHERE rowid = ?", (rid,))
            self._connection.execute(f"{INSERT_WORDS} VALUES (?, ?, ?)", (rid, word, index_text(content)))
        return some[-1][1] if some else None

    async def merge_index(self, pages: int) -> bool:
        """Merge some pages of the full-text index, which drops what was deleted; False if nothing is left to do.

        A negative number begins a merge of the whole index; a positive one continues it, without what was written
        since. A step that changes fewer than two rows had nothing to merge (SQLite's documentation of FTS5, 6.8).
        """
        self._writes.flush()
        before = self._connection.total_changes()
        self._connection.execute("INSERT INTO message_words (message_words, rank) VALUES ('merge', ?)", (pages,))
        return self._connection.total_changes() - before >= 2

    # --- removal ------------------------------------------------------------------------------------------

    async def owners_with_remains(self) -> list[str]:
        return [owner for (owner,) in self._fetch(OWNERS_WITH_REMAINS)]

    async def lock_owner(self, owner: str) -> None:
        """Do nothing: nobody else writes while a transaction does."""

    async def hide(self, key: Key) -> bool:
        statement = "UPDATE conversations SET deleted_at = coalesce(deleted_at, ?) WHERE owner_id = ? AND id = ?"
        self._connection.execute(statement, (to_micros(self._writes.moment), key[0], key[1].bytes))
        hidden = self._connection.changes() > 0
        self._end_turns(key)
        return hidden

    async def hide_slice(self, owner: str) -> bool:
        self._connection.execute(HIDE_SLICE, (to_micros(self._writes.moment), owner, SLICE))
        is_more = self._connection.changes() == SLICE
        self._end_hidden_turns(owner)
        return is_more

    async def hide_conversations(self, key: ProjectKey) -> bool:
        values = (to_micros(self._writes.moment), key.owner, key.id.bytes, SLICE)
        self._connection.execute(HIDE_SLICE_OF_PROJECT, values)
        is_more = self._connection.changes() == SLICE
        self._end_hidden_turns(key.owner)
        return is_more

    async def purge_slice(self, owner: str) -> Removed | None:
        self._writes.flush()
        statement = "SELECT id FROM conversations WHERE owner_id = ? AND deleted_at IS NOT NULL LIMIT ?"
        hidden = self._fetch(statement, (owner, SLICE // 10))
        removed = Removed()
        for (id_,) in hidden:
            removed = removed.plus(self._remove_messages(owner, id_, SLICE - removed.messages))
            if removed.messages >= SLICE:
                break
            removed = removed.plus(self._remove_conversation(owner, id_))
        return removed if hidden else None

    def _remove_messages(self, owner: str, id_: bytes, limit: int) -> Removed:
        found = self._fetch(REMOVABLE, (owner, id_, limit))
        indexed = [(rid,) for _, rid, _ in found if rid is not None]
        self._connection.executemany("DELETE FROM message_words WHERE rowid = ?", indexed)
        self._connection.executemany("DELETE FROM messages WHERE rid = ?", [(rid,) for rid, *_ in found])
        # Their leases went when the conversation was hidden; that may have been another process.
        return Removed(0, len(found), len(indexed), turns=sum(in_progress for *_, in_progress in found))

    def _remove_conversation(self, owner: str, id_: bytes) -> Removed:
        labels = self._delete_labels((owner, uuid(id_)))
        statement = "DELETE FROM conversations WHERE owner_id = ? AND id = ? AND deleted_at IS NOT NULL"
        self._connection.execute(statement, (owner, id_))
        return Removed(self._connection.changes(), labels=labels)

    async def remove_owner(self, owner: str) -> int | None:
        self._writes.flush()
        if self._connection.execute(HAS_ANYTHING, (owner,)).get:
            return None
        self._connection.execute("DELETE FROM users WHERE id = ?", (owner,))
        if self._connection.changes():
            count_removal(self._connection)
        self._writes.owners.discard(owner)
        left = (
            ("SELECT count(*) FROM messages WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM turns WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM turn_events WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM conversation_labels WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM projects WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM documents WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM chunks WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM vectors WHERE owner_id = ?", owner),
            ("SELECT count(*) FROM users WHERE id = ?", owner),
            ("SELECT count(*) FROM message_words WHERE message_words MATCH ?", f'owner : "{owner_word(owner)}"'),
        )
        return sum(cast("int", self._connection.execute(statement, (value,)).get) for statement, value in left)

    async def rename_owner(self, old: str, new: str) -> int:
        """Give the conversations of one owner to another, to be indexed anew, and count them. Raises Conflict."""
        self._writes.flush()
        both = (new, old)
        if not self._connection.execute("SELECT 1 FROM users WHERE id = ?", (old,)).get:
            return 0
        if self._connection.execute(CLASH, both).get:
            raise Conflict(IDS_CLASH)
        self._check_projects(old, new)
        first = self._connection.execute("SELECT min(rid) FROM messages WHERE owner_id = ?", (old,)).get
        self._connection.execute("PRAGMA defer_foreign_keys = ON")
        self._connection.execute("INSERT OR IGNORE INTO users (id) VALUES (?)", (new,))
        if first is not None:
            indexed = "SELECT rid FROM messages JOIN message_words_docsize d ON d.id = rid WHERE owner_id = ?"
            self._connection.execute(f"DELETE FROM message_words WHERE rowid IN ({indexed})", (old,))  # noqa: S608
            self._mark_unindexed(cast("int", first))
        self._expire_all(old)  # the foreign keys take them along
        self._connection.execute("UPDATE conversations SET owner_id = ? WHERE owner_id = ?", both)
        count = self._connection.changes()
        for table in ("messages", "conversation_labels", "projects"):  # documents go with projects
            self._connection.execute(f"UPDATE OR IGNORE {table} SET owner_id = ? WHERE owner_id = ?", both)  # noqa: S608
        self._connection.execute("DELETE FROM users WHERE id = ?", (old,))
        count_removal(self._connection)
        self._writes.owners.discard(old)
        return count
