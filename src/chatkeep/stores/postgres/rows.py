"""The SQL of the PostgreSQL store, and how its rows become records. Every statement names the owner first.

Owners come encoded (`encode_nul`); all other text is encoded here.
"""

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any, Self, cast, override
from uuid import UUID

from chatkeep.access import BOTH_HAVE_PROJECT, IDS_CLASH
from chatkeep.errors import Conflict
from chatkeep.ids import valid_id
from chatkeep.model import (
    Message,
)
from chatkeep.store import Order
from chatkeep.stores.append import Known, Placed, State
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.postgres.columns import (
    CONTENT,
    in_segment,
    sized_messages,
    to_hit,
    to_messages,
)
from chatkeep.stores.postgres.conversations import DELETE_LABELS, count_of
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.projects import LOCK_HIDDEN
from chatkeep.stores.postgres.search import FIRST_PLACE, search_statements
from chatkeep.stores.postgres.text import encode, terms_of
from chatkeep.stores.postgres.turns import PostgresTurns
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.stores.rows import Found, Key, Place, Row, StateRow, Within, WordIndex, order_of
from chatkeep.stores.slices import PageSize, Part, Removed, that_fit
from chatkeep.stores.window import Window, cursor_time
from chatkeep.tree import Position, Segment
from chatkeep.turns import Ending, TurnKey
from chatkeep.values import EPOCH, decode_nul, encode_nul, json_text
from chatkeep.words import MAX_INDEXED_CHARS, Query, query_terms

INDEX_SLICE = 500
"""Messages that one transaction indexes at most."""

MAX_STORED_CHARS = 5 * MAX_INDEXED_CHARS
"""Length of the stored text that is read to index it: `encode_nul` writes up to 5 characters for one."""

INDEX_SLICE_BYTES = 1 << 20
"""Bytes of text that one transaction indexes, about, which takes a quarter of a second."""

SLICE = 5_000
"""Messages that one transaction removes at most, which bounds how long other writers wait."""

MAX_BIGINT = 2**63 - 1

OF_OWNERS = (
    "messages",
    "conversation_labels",
    "projects",
    "turns",
    "turn_events",
    "documents",
    "chunks",
    "vectors",
)
"""Tables of which nothing is left when an owner is removed."""

MESSAGE_COLUMNS = """
    m.id, m.seq, m.parent_id, m.role, m.content, m.status, m.parts, m.sources, m.metadata, m.external_id, m.sent_at,
    m.created_at::text AS created_at, m.model, m.input_tokens, m.output_tokens, m.duration_ms
"""
# In one statement, so with one snapshot: messages are removed after their conversation was hidden, so a visible one
# is whole.
MESSAGE = f"""
    SELECT {MESSAGE_COLUMNS} FROM messages m
    WHERE m.owner_id = $1 AND m.conversation_id = $2 AND EXISTS (
        SELECT 1 FROM conversations c WHERE c.owner_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
    )
"""  # noqa: S608
SAVE = """
    WITH c AS (
        UPDATE conversations
        SET last_seq = $3, head_seq = $4, head_id = $5, runs = $6, title = $7, updated_at = $8
        WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL
        RETURNING 1
    )
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, parent_id, role, content, status, parts,
                          sources, metadata, model, input_tokens, output_tokens, duration_ms, external_id, sent_at,
                          created_at, fingerprint, terms)
    SELECT $1, $2, t.seq, t.id, t.run, t.depth, t.parent_id, t.role, t.content, t.status, t.parts, t.sources::json,
           t.metadata::json, t.model, t.input_tokens, t.output_tokens, t.duration_ms, t.external_id, t.sent_at,
           t.created_at, t.fingerprint, string_to_array(t.terms, ' ')
    FROM c, unnest($9::bigint[], $10::uuid[], $11::integer[], $12::bigint[], $13::uuid[], $14::text[], $15::text[],
                   $16::text[], $17::text[], $18::text[], $19::text[], $20::text[], $21::bigint[], $22::bigint[],
                   $23::bigint[], $24::text[], $25::timestamptz[], $26::timestamptz[], $27::bytea[], $28::text[])
        AS t (seq, id, run, depth, parent_id, role, content, status, parts, sources, metadata, model, input_tokens,
              output_tokens, duration_ms, external_id, sent_at, created_at, fingerprint, terms)
"""
SET_ANSWER = """
    WITH m AS (
        UPDATE messages
        SET content = $4, status = $5, parts = $6, sources = $7::json, model = $8, input_tokens = $9,
            output_tokens = $10, duration_ms = $11, terms = string_to_array($12, ' ')
        WHERE owner_id = $1 AND conversation_id = $2 AND id = $3 AND status IN ('in_progress', 'interrupted')
        RETURNING 1
    )
    UPDATE conversations SET updated_at = greatest(updated_at, now())
    WHERE owner_id = $1 AND id = $2 AND EXISTS (SELECT 1 FROM m)
"""
STRAIGHT_MESSAGES = f"""
    SELECT {MESSAGE_COLUMNS} FROM messages m
    WHERE m.owner_id = $1 AND m.conversation_id = $2 AND c.runs IS NULL
        AND m.seq > $3 AND m.seq < $4 AND m.seq <= c.head_seq
    ORDER BY m.seq {{order}} LIMIT $5
"""  # noqa: S608
# The newest or oldest messages of a conversation that never branched, with its row, in one round trip.
STRAIGHT_HISTORY = f"""
    SELECT m.*, c.last_seq, c.head_seq, c.runs
    FROM conversations c LEFT JOIN LATERAL (
        {sized_messages(STRAIGHT_MESSAGES, "seq {order}", "$6", "")}
    ) m ON true
    WHERE c.owner_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
"""  # noqa: S608
STRAIGHT = {order: STRAIGHT_HISTORY.format(order=order) for order in ("desc", "asc")}
# By its statistics, fresh or not, the planner may take a long conversation for one message, and every index of it for
# as good as the others: with `=` or `= ANY(…)` it then reads the whole conversation. The order asks for the one index.
EACH = """
    SELECT m.* FROM unnest($3::{0}[]) AS wanted (key), LATERAL (
        {1} AND m.{2} BETWEEN wanted.key AND wanted.key ORDER BY m.{2} LIMIT 1
    ) m
"""
MESSAGES_BY_SEQ = (
    EACH.format("bigint", f"{MESSAGE} AND m.status <> 'deleted'", "seq") + "ORDER BY m.seq {order} LIMIT $4"
)
BY_SEQ = {order: sized_messages(MESSAGES_BY_SEQ.format(order=order), f"seq {order}", "$5") for order in ("desc", "asc")}
MESSAGES_BY_ID = EACH.format("uuid", MESSAGE, "id")
KNOWN = """
    SELECT m.id, m.seq, m.run, m.depth, m.fingerprint, m.status = 'deleted' FROM messages m
    WHERE m.owner_id = $1 AND m.conversation_id = $2
"""
KNOWN_BY_ID = EACH.format("uuid", KNOWN, "id")
POSITION = """
    SELECT seq, run, depth FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND seq BETWEEN $3 AND $3
    ORDER BY seq LIMIT 1
"""
# A path is read run by run, in the order of the arrays, and no further than the limit.
PLACES = """
    SELECT m.seq, m.status = 'deleted'
    FROM unnest($3::integer[], $4::bigint[], $5::bigint[]) AS part (run, low, high), LATERAL (
        SELECT m.seq, m.status FROM messages m
        WHERE m.owner_id = $1 AND m.conversation_id = $2 AND m.run = part.run AND m.depth < m.seq
            AND m.seq BETWEEN part.low AND part.high
        ORDER BY m.seq {order} LIMIT $6
    ) m LIMIT $6
"""
TRUNK_PLACES = """
    SELECT m.seq, m.status = 'deleted' FROM messages m
    WHERE m.owner_id = $1 AND m.conversation_id = $2 AND m.seq BETWEEN $3 AND $4 ORDER BY m.seq {order} LIMIT $5
"""
DELETED_PLACES = """
    SELECT run, seq FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND status = 'deleted'
        AND (run, seq) > ($3, $4) ORDER BY run, seq LIMIT $5
"""
REPEATED = f"""
    SELECT {MESSAGE_COLUMNS}, m.fingerprint FROM messages m
    JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
    WHERE m.owner_id = $1 AND m.conversation_id = $2 AND m.id = $3 AND c.deleted_at IS NULL
"""  # noqa: S608
FINGERPRINTS = """
    SELECT fingerprint FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND seq BETWEEN $3 AND $4
    ORDER BY seq
"""
SET_METADATA = "UPDATE messages SET metadata = $4 WHERE owner_id = $1 AND conversation_id = $2 AND id = $3"
ERASE_MESSAGE = """
    UPDATE messages SET content = '', parts = NULL, sources = NULL, metadata = NULL, external_id = NULL, terms = '{}',
        status = 'deleted'
    WHERE owner_id = $1 AND conversation_id = $2 AND id = $3 AND status <> 'deleted'
"""
SEARCH = search_statements(MESSAGE_COLUMNS)
UNINDEXED = """
    SELECT owner_id, conversation_id, seq, left(content, $2) FROM (
        SELECT *, sum(octet_length(content)) OVER (ORDER BY owner_id, conversation_id, seq) AS total FROM (
            SELECT owner_id, conversation_id, seq, content FROM messages WHERE terms IS NULL
            ORDER BY owner_id, conversation_id, seq LIMIT $1) part
    ) sized WHERE total - octet_length(content) < $3
"""
INDEX = """
    UPDATE messages m SET terms = string_to_array(t.terms, ' ')
    FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[]) AS t (owner_id, conversation_id, seq, terms)
    WHERE m.owner_id = t.owner_id AND m.conversation_id = t.conversation_id AND m.seq = t.seq AND m.terms IS NULL
"""
SET_WORD_INDEX = """
    UPDATE word_index SET rule = $1, target = $2, place = $3
    WHERE (rule, target, place) IS NOT DISTINCT FROM ($4::integer, $5::integer, $6::uuid)
"""
KEYS_ABOVE = """
    SELECT owner_id, id FROM conversations WHERE id IN (
        SELECT DISTINCT id FROM conversations WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2)
    ORDER BY id
"""
INDEXED_AFTER = """
    SELECT seq, left(content, $4), terms FROM (
        SELECT *, sum(octet_length(content)) OVER (ORDER BY seq) AS total FROM (
            SELECT seq, content, terms FROM messages
            WHERE owner_id = $1 AND conversation_id = $2 AND seq > $3 AND terms IS NOT NULL ORDER BY seq LIMIT $5) part
    ) sized WHERE total - octet_length(content) < $6
"""
# Not of a message that was deleted meanwhile: its words are gone.
INDEX_AGAIN = """
    UPDATE messages m SET terms = string_to_array(t.terms, ' ')
    FROM unnest($3::bigint[], $4::text[]) AS t (seq, terms)
    WHERE m.owner_id = $1 AND m.conversation_id = $2 AND m.seq = t.seq AND m.status <> 'deleted'
"""
HIDE = """
    UPDATE conversations SET deleted_at = coalesce(deleted_at, now()), slot = false WHERE owner_id = $1 AND id = $2
"""
# Its worker stores nothing any more. `purge_slice` removes the lease, and counts it.
FENCE = """
    UPDATE turns SET worker = '00000000-0000-0000-0000-000000000000', until = 'epoch'
    WHERE owner_id = $1 AND conversation_id = ANY($2)
"""
HIDE_SLICE = """
    UPDATE conversations SET deleted_at = now(), slot = false WHERE owner_id = $1 AND deleted_at IS NULL AND id IN (
        SELECT id FROM conversations WHERE owner_id = $1 AND deleted_at IS NULL LIMIT $2)
    RETURNING id
"""
HIDE_OF_PROJECT = """
    UPDATE conversations SET deleted_at = now(), slot = false WHERE owner_id = $1 AND deleted_at IS NULL AND id IN (
        SELECT id FROM conversations WHERE owner_id = $1 AND project_id = $2 AND deleted_at IS NULL LIMIT $3)
    RETURNING id
"""
HIDDEN = """
    SELECT id, last_seq FROM conversations WHERE owner_id = $1 AND deleted_at IS NOT NULL
    ORDER BY id LIMIT $2 FOR UPDATE
"""
REMOVE_CONVERSATIONS = "DELETE FROM conversations WHERE owner_id = $1 AND id = ANY($2) AND deleted_at IS NOT NULL"
REMOVE_TURNS = "DELETE FROM turns WHERE owner_id = $1 AND conversation_id = ANY($2)"
REMOVE_MESSAGES = """
    WITH gone AS (
        DELETE FROM messages WHERE owner_id = $1 AND conversation_id = ANY($2){and_more}
        RETURNING terms IS NOT NULL AND content <> '' AS indexed)
    SELECT 0, count(*), count(*) FILTER (WHERE indexed) FROM gone
"""
REMOVE_ALL = REMOVE_MESSAGES.format(and_more="")
REMOVE_SOME = REMOVE_MESSAGES.format(
    and_more=""" AND seq IN (
            SELECT seq FROM messages WHERE owner_id = $1 AND conversation_id = ANY($2) ORDER BY seq LIMIT $3)"""
)
REMAINS = """
    SELECT owner_id FROM conversations WHERE deleted_at IS NOT NULL
    UNION SELECT owner_id FROM projects WHERE deleted_at IS NOT NULL
    UNION SELECT owner_id FROM documents WHERE has_rubbish
"""
LOCK_PROJECTS = """
    SELECT count(*) FROM (SELECT 1 FROM projects WHERE owner_id IN ($1, $2) ORDER BY owner_id, id FOR UPDATE) p
"""
LOCK_CONVERSATIONS = """
    SELECT count(*) FROM (SELECT 1 FROM conversations WHERE owner_id = $1 ORDER BY id FOR UPDATE) c
"""
LOCK_LEASES = """
    SELECT count(*) FROM (
        SELECT 1 FROM turns WHERE owner_id = $1 ORDER BY conversation_id, message_id FOR UPDATE) t
"""
CLASH = """
    SELECT 1 FROM conversations a JOIN conversations b ON b.owner_id = $2 AND b.id = a.id
    WHERE a.owner_id = $1 LIMIT 1
"""
# The new owner's project stays, and has the conversations of both. Documents would be lost, and conversations that came
# into a project that is being removed.
PROJECTS_CLASH = """
    SELECT 1 FROM projects a JOIN projects b ON b.owner_id = $2 AND b.id = a.id
    WHERE a.owner_id = $1 AND (b.deleted_at IS NOT NULL OR EXISTS (
        SELECT 1 FROM documents WHERE owner_id = $1 AND project_id = a.id)) LIMIT 1
"""
# One statement: the foreign keys between the tables are checked at its end; those of documents, chunks and vectors
# give them to the new owner, too. Leases expire: their workers know the old owner. Of two conversations that hold the
# slot of the same context, the new owner's keeps it.
RENAME = """
    WITH c AS (
        UPDATE conversations c SET owner_id = $2, slot = c.slot AND NOT EXISTS (
            SELECT 1 FROM conversations n
            WHERE n.owner_id = $2 AND n.slot AND coalesce(n.context_id, '') = coalesce(c.context_id, '')
                AND n.project_id IS NOT DISTINCT FROM c.project_id)
        WHERE owner_id = $1 RETURNING 1
    ), l AS (UPDATE conversation_labels SET owner_id = $2 WHERE owner_id = $1), p AS (
        UPDATE projects p SET owner_id = $2 WHERE owner_id = $1 AND NOT EXISTS (
            SELECT 1 FROM projects n WHERE n.owner_id = $2 AND n.id = p.id)
    ), m AS (UPDATE messages SET owner_id = $2, terms = NULL WHERE owner_id = $1
    ), t AS (UPDATE turns SET owner_id = $2, until = 'epoch' WHERE owner_id = $1
    ), e AS (UPDATE turn_events SET owner_id = $2 WHERE owner_id = $1)
    SELECT count(*) FROM c
"""


class PostgresRows(PostgresTurns):
    """Rows on one connection: each statement sees a snapshot of its own."""

    __slots__ = ("_index", "_terms", "_texts")

    def __init__(self, connection: Connection, texts: LongTexts, *, index: bool = True, by_owner: bool = False) -> None:
        """Take the connection, and what splits long texts; index=False leaves new messages to `index_slice`."""
        super().__init__(connection, by_owner=by_owner)
        self._texts = texts
        self._index = index
        self._terms: Mapping[str, str] = {}

    def knowing(self, terms: Mapping[str, str]) -> Self:
        """These rows, knowing the terms of some texts that are to be saved."""
        self._terms = terms
        return self

    # --- messages -----------------------------------------------------------------------------------------

    async def save(self, key: Key, state: State, new: Sequence[Placed]) -> None:
        columns = zip(*(self._message_values(key[0], placed) for placed in new), strict=True)
        await self._connection.execute(
            SAVE,
            *key,
            state.tree.last_seq,
            state.head.seq if state.head else None,
            state.head_id,
            state.tree.dump(),
            encode(state.title),
            state.updated_at,
            *map(list, columns),
        )

    def _message_values(self, owner: str, placed: Placed) -> Row:
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
            json_text(message.parts) if message.parts else None,
            json_text(message.sources) if message.sources else None,
            json_text(message.metadata) if message.metadata else None,
            encode(message.model),
            message.input_tokens,
            message.output_tokens,
            message.duration_ms,
            encode(message.external_id),
            message.sent_at,
            message.created_at,
            fingerprint,
            self._terms_of(owner, message.content) if self._index else None,
        )

    def _terms_of(self, owner: str, content: str) -> str:
        known = self._terms.get(content)
        return terms_of(content, owner) if known is None else known

    async def _part(self, key: Key, order: Order, rest: str, *values: object, size: PageSize) -> Part[Message]:
        """Messages of one conversation, by seq and as many as have room; `rest` is the condition that selects them."""
        n = len(values) + 2
        statement = sized_messages(
            f"{MESSAGE}{rest} ORDER BY m.seq {order} LIMIT ${n + 1}", f"seq {order}", f"${n + 2}"
        )
        rows, cut = await self._fetch_page(statement, *key, *values, size=size)
        return Part(to_messages(key[1], rows), cut)

    async def repeated(self, key: Key, id_: UUID, fingerprint: bytes) -> Message | None:
        """The stored message that an append with this fingerprint repeats."""
        row = await self._connection.fetchrow(REPEATED, *key, id_)
        return to_messages(key[1], [row])[0] if row is not None and row[-1] == fingerprint else None

    async def known(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Known]:
        found = await self._connection.fetch(KNOWN_BY_ID, *key, list(ids))
        return {row[0]: Known(Position(*row[1:4]), row[4], row[5]) for row in found}

    async def position(self, key: Key, seq: int) -> Position:
        return Position(*cast("Row", await self._connection.fetchrow(POSITION, *key, seq)))

    async def messages_by_id(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Message]:
        found = await self._connection.fetch(MESSAGES_BY_ID, *key, list(ids))
        return {message.id: message for message in to_messages(key[1], found)}

    async def messages_by_seq(self, key: Key, seqs: Sequence[int], size: PageSize) -> Part[Message]:
        statement = BY_SEQ[order_of(seqs)]
        rows, cut = await self._fetch_page(statement, *key, list(seqs), size=size)
        return Part(to_messages(key[1], rows), cut)

    async def log(self, key: Key, after: int, size: PageSize) -> Part[Message]:
        return await self._part(key, "asc", " AND m.seq > $3", after, size=size)

    async def fingerprints(self, key: Key, first: int, last: int) -> list[bytes]:
        return [row[0] for row in await self._connection.fetch(FINGERPRINTS, *key, first, last)]

    async def next_in_run(self, key: Key, parent: Position) -> list[int]:
        found = await self._connection.fetchval(
            "SELECT seq FROM messages WHERE owner_id = $1 AND conversation_id = $2 AND run = $3 AND seq > $4"
            " AND depth < seq ORDER BY seq LIMIT 1",
            *key,
            parent.run,
            parent.seq,
        )
        return [] if found is None else [found]

    async def segment(self, key: Key, segment: Segment, order: Order, size: PageSize) -> Part[Message]:
        where, values = in_segment(segment)
        return await self._part(key, order, where, *values, size=size)

    async def places(self, key: Key, segments: Sequence[Segment], order: Order, limit: int) -> list[Place]:
        parts: Sequence[object] = [list(column) for column in zip(*(each[:3] for each in segments), strict=True)]
        statement = PLACES
        if segments[0].trunk:
            statement, parts = TRUNK_PLACES, segments[0][1:3]
        found = await self._connection.fetch(statement.format(order=order), *key, *parts, limit)
        return [Place(*row) for row in found]

    async def count_segment(self, key: Key, segment: Segment, *, deleted: bool = False) -> int:
        where, values = in_segment(segment)
        if deleted:  # the index of tombstones has the run
            where = " AND m.seq BETWEEN $3 AND $4 AND m.run = $5 AND m.status = 'deleted'"
            values = segment.low, segment.high, segment.run
        statement = f"SELECT count(*) FROM messages m WHERE m.owner_id = $1 AND m.conversation_id = $2{where}"  # noqa: S608
        return cast("int", await self._connection.fetchval(statement, *key, *values))

    async def deleted_places(self, key: Key, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        return [tuple(row) for row in await self._connection.fetch(DELETED_PLACES, *key, *after, limit)]

    async def straight_history(
        self, key: Key, window: Window, max_bytes: int
    ) -> tuple[StateRow, list[Message] | None] | None:
        """The seqs and runs of a conversation, and in the same round trip the messages of a page, and one more.

        None instead of them if it ever branched, or if they may have no room in a page.
        """
        low, high, limit = min(window.low, MAX_BIGINT), max(min(window.high, MAX_BIGINT), 0), window.limit + 1
        found = await self._connection.fetch(STRAIGHT[window.order], *key, low, high, limit, max_bytes // limit)
        if not found:
            return None
        last_seq, head_seq, runs = found[0][-3:]
        row = StateRow(last_seq, head_seq, None, runs, None, EPOCH, EPOCH)
        if found[0][0] is None:
            return row, [] if runs is None else None
        return row, None if None in map(itemgetter(CONTENT), found) else to_messages(key[1], found)

    async def set_metadata(self, key: Key, id_: UUID, metadata: str | None) -> None:
        await self._connection.execute(SET_METADATA, *key, id_, metadata)

    async def erase_message(self, key: Key, id_: UUID) -> None:
        await self._connection.execute(ERASE_MESSAGE, *key, id_)

    async def set_answer(self, key: TurnKey, ending: Ending) -> None:
        terms = self._terms.get(ending.content)
        if terms is None and self._index:
            terms = await self._texts.run(terms_of, ending.content, key.owner)
        await self._connection.execute(
            SET_ANSWER,
            *key,
            encode_nul(ending.content),
            ending.status,
            json_text(ending.parts) if ending.parts else None,
            json_text(ending.sources) if ending.sources else None,
            encode(ending.model),
            ending.input_tokens,
            ending.output_tokens,
            ending.duration_ms,
            terms,
        )

    @override
    def shows_whole(self, found: Sequence[Message], segment: Segment, order: Order, *, ends: bool) -> bool:
        return not ends

    # --- search -------------------------------------------------------------------------------------------

    async def search(
        self, owner: str, query: Query, below: tuple[Any, ...] | None, size: PageSize, only: Within | None = None
    ) -> Found:
        wanted, excluded, exact = query_terms(owner, query)
        place = (cursor_time(below[0]), valid_id(below[1]), below[2]) if below else FIRST_PLACE
        statement = SEARCH[bool(excluded), only and only.is_small]
        more = (*([excluded] if excluded else ()), *([only.id] if only else ()))
        rows, cut = await self._fetch_page(statement, owner, wanted, *place, *more, size=size)
        hits = [to_hit(row) for row in rows]
        return Found(hits, exact, hits[-1].place if cut or len(hits) == size.limit else None, cut)

    async def index_slice(self) -> bool:
        found = await self._connection.fetch(UNINDEXED, INDEX_SLICE, MAX_STORED_CHARS, INDEX_SLICE_BYTES)
        if not found:
            return False
        keys = map(list, zip(*(row[:3] for row in found), strict=True))
        terms = [await self._texts.run(terms_of, decode_nul(content), owner) for owner, _, _, content in found]
        await self._connection.execute(INDEX, *keys, terms)
        return True

    async def word_index(self) -> WordIndex:
        (row,) = await self._connection.fetch("SELECT rule, target, place FROM word_index")
        return WordIndex(*row)

    async def set_word_index(self, before: WordIndex, after: WordIndex) -> bool:
        return await self._connection.execute(SET_WORD_INDEX, *after, *before) != "UPDATE 0"

    async def keys_above(self, id_: UUID | None, limit: int) -> list[Key]:
        return [tuple(row) for row in await self._connection.fetch(KEYS_ABOVE, id_, limit)]

    async def index_again(self, key: Key, after: int) -> int | None:
        limits = MAX_STORED_CHARS, INDEX_SLICE, INDEX_SLICE_BYTES
        found = await self._connection.fetch(INDEXED_AFTER, *key, after, *limits)
        changed: dict[int, str] = {}
        for seq, content, terms in found:
            new = await self._texts.run(terms_of, decode_nul(content), key[0])
            if set(new.split(" ")) != set(terms or [""]):
                changed[seq] = new
        if changed:
            await self._connection.execute(INDEX_AGAIN, *key, list(changed), list(changed.values()))
        return found[-1][0] if found else None

    # --- removal ------------------------------------------------------------------------------------------

    async def owners_with_remains(self) -> list[str]:
        return [owner for (owner,) in await self._connection.fetch(REMAINS)]

    async def lock_owner(self, owner: str) -> None:
        # Whoever creates a conversation locks the row, too, in a weaker mode: the foreign key does.
        await self._connection.execute("SELECT 1 FROM users WHERE id = $1 FOR UPDATE", owner)

    async def hide(self, key: Key) -> bool:
        is_there = await self._connection.execute(HIDE, *key) != "UPDATE 0"
        await self._connection.execute(FENCE, key[0], [key[1]])
        return is_there

    async def hide_slice(self, owner: str) -> bool:
        return await self._hide_some(HIDE_SLICE, owner)

    async def hide_conversations(self, key: ProjectKey) -> bool:
        if await self._connection.fetchval(LOCK_HIDDEN, *key) is None:
            return False
        return await self._hide_some(HIDE_OF_PROJECT, *key)

    async def _hide_some(self, statement: str, owner: str, *which: UUID) -> bool:
        hidden = [row[0] for row in await self._connection.fetch(statement, owner, *which, SLICE)]
        await self._connection.execute(FENCE, owner, hidden)
        return len(hidden) == SLICE

    async def purge_slice(self, owner: str) -> Removed | None:
        hidden = await self._connection.fetch(HIDDEN, owner, SLICE)  # the locks serialise concurrent removals
        if not hidden:
            return None
        whole = that_fit([(id_, last_seq) for id_, last_seq in hidden], SLICE)
        statement, ids, limit = (REMOVE_ALL, whole, ()) if whole else (REMOVE_SOME, [hidden[0][0]], (SLICE,))
        gone = Removed(*cast("Row", await self._connection.fetchrow(statement, owner, ids, *limit)))
        if not whole and gone.messages == SLICE:
            return gone
        labels = await self._connection.execute(DELETE_LABELS, owner, ids)
        turns = await self._connection.execute(REMOVE_TURNS, owner, ids)
        await self._connection.execute(REMOVE_CONVERSATIONS, owner, ids)
        counts = {"labels": count_of(labels), "turns": count_of(turns)}
        return gone.plus(Removed(len(ids), **counts))

    async def remove_owner(self, owner: str) -> int | None:
        await self.lock_owner(owner)  # so that nobody creates a conversation between the question and the removal
        if await self._connection.fetchval("SELECT 1 FROM conversations WHERE owner_id = $1 LIMIT 1", owner):
            return None
        await self._connection.execute("DELETE FROM users WHERE id = $1", owner)
        left: int = await self._connection.fetchval("SELECT count(*) FROM users WHERE id = $1", owner)
        for table in OF_OWNERS:
            left += await self._connection.fetchval(f"SELECT count(*) FROM {table} WHERE owner_id = $1", owner)  # noqa: S608
        return left

    async def rename_owner(self, old: str, new: str) -> int:
        """Give the conversations of one owner to another, to be indexed anew, and count them. Raises Conflict."""
        if await self._connection.fetchval("SELECT 1 FROM users WHERE id = $1", old) is None:
            return 0
        # Nobody creates a conversation of either, or changes one of the old owner's, until the transaction ends. The
        # statements after that see what was committed before.
        both = sorted((old, new))
        await self._connection.execute("INSERT INTO users (id) VALUES ($1), ($2) ON CONFLICT DO NOTHING", *both)
        await self._connection.execute("SELECT 1 FROM users WHERE id IN ($1, $2) ORDER BY id FOR UPDATE", *both)
        await self._connection.execute(LOCK_PROJECTS, *both)
        await self._connection.execute(LOCK_CONVERSATIONS, old)
        await self._connection.execute(LOCK_LEASES, old)
        if await self._connection.fetchval(CLASH, old, new):
            raise Conflict(IDS_CLASH)
        if await self._connection.fetchval(PROJECTS_CLASH, old, new):
            raise Conflict(BOTH_HAVE_PROJECT)
        moved = await self._connection.fetchval(RENAME, old, new)
        await self._connection.execute("DELETE FROM users WHERE id = $1", old)
        return cast("int", moved)
