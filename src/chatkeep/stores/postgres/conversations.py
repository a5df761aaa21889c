"""The rows of conversations in PostgreSQL, and their labels. Every statement names the owner first.

Owners come encoded (`encode_nul`); all other text is encoded here.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, cast
from uuid import UUID

from chatkeep.model import Conversation, ImportedConversation, NewConversation
from chatkeep.store import ListOrder
from chatkeep.stores.postgres.columns import (
    CONTENT,
    METADATA,
    equal_or_null,
    in_utc,
    listed,
    sized_conversations,
    to_conversation,
)
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.text import decode, encode
from chatkeep.stores.rows import Key, Row, Rows, Scope, StateRow
from chatkeep.stores.slices import PageSize, Part, within
from chatkeep.stores.window import ListFilter, ListPlace
from chatkeep.values import json_text, labels_text

MEASURED = 64
"""Rows of which the sizes are asked for at first."""

MAX_INTEGER = 2**31 - 1

CONVERSATION_COLUMNS = """
    c.id, c.owner_id, c.title, c.context_id, c.project_id, c.llm_provider_id, c.external_id, c.labels, c.metadata,
    c.last_seq, c.head_id, c.created_at, c.updated_at
"""
CONVERSATION = f"SELECT {CONVERSATION_COLUMNS} FROM conversations c WHERE c.owner_id = $1 AND c.deleted_at IS NULL"  # noqa: S608
LIST_ORDER: Mapping[ListOrder, str] = {"id": "{0}id", "updated": "{0}updated_at DESC, {0}id DESC"}
STATE = """
    SELECT last_seq, head_seq, head_id, runs, title, updated_at, now() FROM conversations
    WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL
"""
INSERT_CONVERSATION = f"""
    WITH owner AS (INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING)
    INSERT INTO conversations AS c (owner_id, id, title, context_id, project_id, llm_provider_id, external_id, labels,
                                    metadata, fingerprint, slot, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, least($12, now()), least($13, now()))
    ON CONFLICT DO NOTHING
    RETURNING {CONVERSATION_COLUMNS}
"""  # noqa: S608
TEXTS = ("title", "context_id")
# Each looked up for itself: few of the many that an owner may have.
AMONG = f"""
    SELECT {CONVERSATION_COLUMNS} FROM unnest($2::uuid[]) AS wanted (id), LATERAL (
        SELECT * FROM conversations o WHERE o.owner_id = $1 AND o.id = wanted.id LIMIT 1
    ) c WHERE c.deleted_at IS NULL
"""  # noqa: S608
LABELLED = "SELECT conversation_id FROM conversation_labels WHERE owner_id = $1 AND label = $2 LIMIT $3"
DELETE_LABELS = "DELETE FROM conversation_labels WHERE owner_id = $1 AND conversation_id = ANY($2)"


class PostgresConversations(Rows):
    """Rows of conversations on one connection: each statement sees a snapshot of its own."""

    __slots__ = ("_connection",)

    reads_visible = True

    def __init__(self, connection: Connection) -> None:
        """Take the connection."""
        self._connection = connection

    # --- conversations ------------------------------------------------------------------------------------

    async def state(self, key: Key, *, lock: bool = False) -> StateRow | None:
        row = await self._connection.fetchrow(f"{STATE} FOR NO KEY UPDATE" if lock else STATE, *key)
        return None if row is None else StateRow(*row)._replace(title=decode(row[4]), updated_at=in_utc(row[5]))

    async def conversation(self, key: Key, *, lock: bool = False) -> Conversation | None:
        statement = f"{CONVERSATION} AND c.id = $2{' FOR NO KEY UPDATE' if lock else ''}"
        row = await self._connection.fetchrow(statement, *key)
        return None if row is None else to_conversation(row)

    async def exists_elsewhere(self, id_: UUID) -> bool:
        statement = "SELECT 1 FROM conversations WHERE id = $1 AND deleted_at IS NULL LIMIT 1"
        return await self._connection.fetchval(statement, id_) is not None

    async def create(self, key: Key, new: NewConversation, *, slot: bool = False) -> Conversation | None:
        times = (new.created_at, new.updated_at) if isinstance(new, ImportedConversation) else (None, None)
        scope = encode(new.title), encode(new.context_id), new.project_id, new.llm_provider_id, encode(new.external_id)
        values = labels_text(new.labels), json_text(new.metadata), new.fingerprint()
        row = await self._connection.fetchrow(INSERT_CONVERSATION, *key, *scope, *values, slot, *times)
        if row is not None and new.labels:
            await self._insert_labels(key, new.labels)
        return None if row is None else to_conversation(row)

    async def fingerprint(self, key: Key) -> bytes | None:
        statement = "SELECT fingerprint FROM conversations WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL"
        return cast("bytes | None", await self._connection.fetchval(statement, *key))

    async def newest(self, owner: str, scope: Scope) -> Conversation | None:
        values: list[object] = [owner]
        where = equal_or_null("c.context_id", encode(scope.context_id), values)
        where += equal_or_null("c.project_id", scope.project_id, values)
        statement = f"{CONVERSATION}{where} ORDER BY c.updated_at DESC, c.id DESC LIMIT 1"
        row = await self._connection.fetchrow(statement, *values)
        return None if row is None else to_conversation(row)

    async def listed(
        self, owner: str, which: ListFilter, order: ListOrder, after: ListPlace | None, size: PageSize, offset: int
    ) -> Part[Conversation]:
        where, values = listed(owner, which)
        n = len(values)
        if after is not None and after.updated_at is not None:
            where += f" AND (c.updated_at, c.id) < (${n + 1}, ${n + 2})"
            values += [after.updated_at, after.id]
        elif after is not None:
            where += f" AND c.id > ${n + 1}"
            values.append(after.id)
        by, n = LIST_ORDER[order], len(values)
        rows = f"{self._conversations(which)}{where} ORDER BY {by.format('c.')} OFFSET ${n + 1} LIMIT ${n + 2}"
        statement = sized_conversations(rows, by.format(""), f"${n + 3}")
        found, cut = await self._fetch_page(statement, *values, offset, size=size, column=METADATA)
        return Part([to_conversation(row) for row in found], cut)

    def _conversations(self, which: ListFilter) -> str:
        """The beginning of a list: all of the owner's, or those with some ids, each looked up for itself."""
        return CONVERSATION if which.ids is None else AMONG

    async def count(self, owner: str, which: ListFilter) -> int:
        where, values = listed(owner, which)
        statement = f"SELECT count(*) FROM ({self._conversations(which)}{where}) c"  # noqa: S608
        return cast("int", await self._connection.fetchval(statement, *values))

    async def labelled(self, owner: str, label: str, limit: int) -> list[UUID]:
        return [row[0] for row in await self._connection.fetch(LABELLED, owner, label, limit)]

    async def set_values(self, key: Key, values: Mapping[str, Any]) -> None:
        columns = {name: encode(value) if name in TEXTS else value for name, value in values.items()}
        if "context_id" in values:
            columns["slot"] = False
        if "labels" in values:
            columns["labels"] = labels_text(values["labels"])
            await self._connection.execute(DELETE_LABELS, key[0], [key[1]])
            await self._insert_labels(key, values["labels"])
        # Names of this package, never a caller's.
        names = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, 3))
        statement = f"UPDATE conversations SET {names} WHERE owner_id = $1 AND id = $2"  # noqa: S608
        await self._connection.execute(statement, *key, *columns.values())

    async def _insert_labels(self, key: Key, labels: Sequence[str]) -> None:
        if labels:  # rows of VALUES go straight to their machine of a cluster, a SELECT does not
            rows = ", ".join(f"($1, $2, ${number})" for number in range(3, len(labels) + 3))
            columns = "owner_id, conversation_id, label"
            await self._connection.execute(f"INSERT INTO conversation_labels ({columns}) VALUES {rows}", *key, *labels)  # noqa: S608

    async def _fetch_page(self, statement: str, *values: object, size: PageSize, column: int = CONTENT) -> Part[Row]:
        """The first rows that have room in a page: mostly all, since none has more than its share.

        Else their sizes say how many have room, and those are read. Adding sizes up in the statement would take the
        server a third more time for every page. To measure JSON the server has to read it: of many rows, first a part.
        """
        for count in sorted({min(size.limit, MEASURED), size.limit}):
            found = await self._connection.fetch(statement, *values, count, size.max_bytes // count)
            if None in map(itemgetter(column), found):
                some, cut = within(((row, row[-1]) for row in found), size.max_bytes)
                if cut or count == size.limit:
                    return Part(await self._connection.fetch(statement, *values, len(some), MAX_INTEGER), cut)
        return Part(found)

    async def _planned(self, statement: str, *values: object) -> Sequence[Row]:
        """Fetch by a plan of its own: one that is kept may have been made when the table was empty, and reads all
        of it for each turn, or each document, when it has grown."""
        prepared = await self._connection.prepare(statement, name="")
        return await prepared.fetch(*values)


def count_of(status: str) -> int:
    """How many rows a DELETE removed."""
    return int(status.removeprefix("DELETE "))
