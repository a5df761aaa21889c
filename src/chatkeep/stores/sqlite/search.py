"""The SQL of the search in SQLite."""

from typing import Any

from chatkeep.stores.rows import Within
from chatkeep.stores.sqlite.columns import owner_word
from chatkeep.stores.sqlite.database import Values
from chatkeep.words import Query

FIRST_PLACE = (2**63 - 1, 2**63 - 1, "f" * 32, 2**63 - 1)
"""A place above every message."""

RESTORED = "SELECT coalesce((SELECT value FROM store_state WHERE name = 'restored_to'), 0)"
"""Rowids are in the order of time, but up to this one: that of the last message restored with a time of its own."""

BY_TIME = "ORDER BY m.created_at DESC, m.conversation_id DESC, m.seq DESC"


def match_of(owner: str, query: Query) -> str:
    """The query in the syntax of FTS5, scoped to the owner."""
    wanted = " AND ".join([f'owner : "{owner_word(owner)}"', *map(_phrase, query.phrases)])
    return " NOT ".join([f"({wanted})", *map(_phrase, query.excluded)])


def _phrase(words: list[str]) -> str:
    """Words that are adjacent. None has a character that FTS5 would take for syntax."""
    return f'words : "{" ".join(words)}"'


HITS_FOR_A_MESSAGE = 400
"""Hits that are read in the time in which the index is asked about one message: 0.3 and 120 µs."""

COUNT_HITS = "SELECT count(*) FROM (SELECT 1 FROM message_words WHERE message_words MATCH ? LIMIT ?)"


def small_values(owner: str, match: str, below: tuple[Any, ...], limit: int, only: Within) -> Values:
    """The values of the statement that looks at every message of a conversation."""
    rid, created_at, _, seq = below
    return owner, only.id.bytes, rid, created_at, seq, match, limit


def search_statements(columns: str) -> tuple[str, str, str]:
    """The statements of hits in the order of rowids, of restored ones, and of a small conversation."""
    hits = f"SELECT m.rid, c.title, {columns}"
    search = f"""
        {hits} FROM message_words w
        JOIN messages m ON m.rid = w.rowid
        JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
        WHERE message_words MATCH ? AND w.rowid > ? AND w.rowid < ? AND m.owner_id = ?
            AND m.conversation_id = coalesce(?, m.conversation_id) AND c.deleted_at IS NULL
        ORDER BY w.rowid DESC LIMIT ?
    """
    # What is sorted is only where the hits are: half a microsecond each.
    restored = f"""
        {hits} FROM messages m
        JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
        WHERE m.rid IN (
            SELECT m.rid FROM message_words w JOIN messages m ON m.rid = w.rowid
            WHERE message_words MATCH ? AND w.rowid <= ? AND m.owner_id = ?
                AND m.conversation_id = coalesce(?, m.conversation_id)
                AND (m.created_at, m.conversation_id, m.seq) < (?, ?, ?) AND m.conversation_id NOT IN (
                    SELECT id FROM conversations WHERE owner_id = ? AND deleted_at IS NOT NULL)
            {BY_TIME} LIMIT ?)
        {BY_TIME}
    """  # noqa: S608
    # Both orders in one, as all is sorted here: restored ones have the same place among the rowids.
    rowid, order = f"max(m.rid, ({RESTORED}))", "ORDER BY rowid_place DESC, m.created_at DESC, m.seq DESC"
    small = f"""
        {hits} FROM (
            SELECT m.rid, {rowid} AS rowid_place FROM messages m
            WHERE m.owner_id = ?1 AND m.conversation_id = ?2
                AND ({rowid}, m.created_at, m.seq) < (max(?3, ({RESTORED})), ?4, ?5)
                AND EXISTS (SELECT 1 FROM message_words WHERE message_words MATCH ?6 AND rowid = m.rid)
            {order} LIMIT ?7) hit
        JOIN messages m ON m.rid = hit.rid
        JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
        WHERE m.owner_id = ?1 AND c.deleted_at IS NULL {order}
    """  # noqa: S608
    return search, restored, small
