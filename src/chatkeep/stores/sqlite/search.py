"""The SQL of the search in SQLite."""

from chatkeep.stores.sqlite.columns import owner_word
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


def search_statements(columns: str) -> tuple[str, str]:
    """The statements of hits in the order of rowids, and of restored ones, given the columns of a message."""
    hits = f"SELECT m.rid, c.title, {columns}"
    search = f"""
        {hits} FROM message_words w
        JOIN messages m ON m.rid = w.rowid
        JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
        WHERE message_words MATCH ? AND w.rowid > ? AND w.rowid < ? AND m.owner_id = ? AND c.deleted_at IS NULL
        ORDER BY w.rowid DESC LIMIT ?
    """
    # What is sorted is only where the hits are: half a microsecond each.
    restored = f"""
        {hits} FROM messages m
        JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
        WHERE m.rid IN (
            SELECT m.rid FROM message_words w JOIN messages m ON m.rid = w.rowid
            WHERE message_words MATCH ? AND w.rowid <= ? AND m.owner_id = ?
                AND (m.created_at, m.conversation_id, m.seq) < (?, ?, ?) AND m.conversation_id NOT IN (
                    SELECT id FROM conversations WHERE owner_id = ? AND deleted_at IS NOT NULL)
            {BY_TIME} LIMIT ?)
        {BY_TIME}
    """  # noqa: S608
    return search, restored
