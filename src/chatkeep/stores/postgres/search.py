"""The SQL of the search in PostgreSQL."""

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

from chatkeep.stores.postgres.columns import sized_messages

FIRST_PLACE = (datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1), 2**63 - 1)
"""A place above every message."""


def search_statements(columns: str) -> Mapping[bool, str]:
    """The statements of a search, given the columns of a message, by whether words are excluded.

    To exclude words, the server reads the terms of each hit.
    """
    return {excludes: _search(columns, excludes=excludes) for excludes in (False, True)}


def _search(columns: str, *, excludes: bool) -> str:
    """The messages with the terms $2 below a place, and without the terms $6 if some are excluded."""
    number = 7 if excludes else 6
    hits = f"""
        SELECT {columns}, c.id AS conversation_id, c.title, m.created_at AS at
        FROM messages m
        JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
        WHERE m.owner_id = $1 AND m.terms @> $2 AND c.deleted_at IS NULL
            AND (m.created_at, m.conversation_id, m.seq) < ($3, $4, $5){" AND NOT m.terms && $6" if excludes else ""}
        ORDER BY m.created_at DESC, m.conversation_id DESC, m.seq DESC LIMIT ${number}
    """  # noqa: S608
    order = "at DESC, conversation_id DESC, seq DESC"
    return sized_messages(hits, order, f"${number + 1}", ", conversation_id, title, bytes")
