"""The SQL of the search in PostgreSQL."""

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

from chatkeep.stores.postgres.columns import sized_messages

FIRST_PLACE = (datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1), 2**63 - 1)
"""A place above every message."""


type Kind = tuple[bool, bool | None]
"""Whether words are excluded, and whether the one conversation that is searched is small; None: all are searched."""


def search_statements(columns: str) -> Mapping[Kind, str]:
    """The statements of a search, given the columns of a message."""
    return {
        (excludes, small): _search(columns, excludes=excludes, small=small)
        for excludes in (False, True)
        for small in (None, False, True)
    }


def _search(columns: str, *, excludes: bool, small: bool | None) -> str:
    """The messages of $1 with the terms $2 below a place; then come the excluded terms and the conversation."""
    conversation, limit = f"${6 + excludes}", 6 + excludes + (small is not None)
    # The terms of every hit are read for this, which may be long.
    without = " AND NOT m.terms && $6" if excludes else ""
    hits = f"""
        SELECT {columns}, c.id AS conversation_id, c.title, m.created_at AS at
        FROM {_messages(conversation, small=small)} m
        JOIN conversations c ON c.owner_id = m.owner_id AND c.id = m.conversation_id
        WHERE m.owner_id = $1 AND m.terms @> $2 AND c.deleted_at IS NULL
            AND (m.created_at, m.conversation_id, m.seq) < ($3, $4, $5){without}
            {"" if small is None else f"AND m.conversation_id = {conversation}"}
        ORDER BY m.created_at DESC, m.conversation_id DESC, m.seq DESC LIMIT ${limit}
    """  # noqa: S608
    order = "at DESC, conversation_id DESC, seq DESC"
    return sized_messages(hits, order, f"${limit + 1}", ", conversation_id, title, bytes")


def _messages(conversation: str, *, small: bool | None) -> str:
    """Where hits are looked for. OFFSET keeps the planner, which does not know which are fewer, to one index."""
    if small is None:
        return "messages"
    first = f"conversation_id = {conversation}" if small else "terms @> $2"
    return f"(SELECT * FROM messages WHERE owner_id = $1 AND {first} OFFSET 0)"  # noqa: S608
