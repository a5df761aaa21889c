"""The rows of conversations in SQLite, and their labels. Every statement names the owner first."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, cast, override
from uuid import UUID

import apsw

from chatkeep.model import CONVERSATION_FIELDS, Conversation, NewConversation, stored
from chatkeep.store import ListOrder
from chatkeep.stores.append import times_of
from chatkeep.stores.rows import Key, Row, Rows, Scope, StateRow
from chatkeep.stores.slices import PageSize, Part
from chatkeep.stores.sqlite.columns import (
    conversations_within,
    fetch,
    listed,
    to_conversation,
    uuid,
)
from chatkeep.stores.sqlite.database import Transaction, Values
from chatkeep.stores.window import ListFilter, ListPlace
from chatkeep.values import EPOCH, from_micros, json_text, labels_text, to_micros

CONVERSATION = """
    SELECT c.id, c.owner_id, c.title, c.context_id, c.project_id, c.llm_provider_id, c.external_id, c.labels,
           c.metadata, c.last_seq, c.head_id, c.created_at, c.updated_at
    FROM conversations c WHERE c.owner_id = ? AND c.deleted_at IS NULL
"""
STATE = """
    SELECT last_seq, head_seq, head_id, runs, title, updated_at FROM conversations
    WHERE owner_id = ? AND id = ? AND deleted_at IS NULL
"""
INSERT_CONVERSATION = """
    INSERT INTO conversations (owner_id, id, title, context_id, project_id, llm_provider_id, external_id, labels,
                               metadata, fingerprint, created_at, updated_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner_id, id) DO NOTHING
"""
NEWEST = f"""
    {CONVERSATION} AND c.context_id IS ? AND c.project_id IS ? ORDER BY c.updated_at DESC, c.id DESC LIMIT 1
"""
LIST_ORDER: Mapping[ListOrder, str] = {"id": "c.id", "updated": "c.updated_at DESC, c.id DESC"}
# A + keeps SQLite from reading the list in the order of its index: few of many are looked up and sorted.
LIST_ORDER_OF_SOME: Mapping[ListOrder, str] = {"id": "+c.id", "updated": "+c.updated_at DESC, +c.id DESC"}
LABELLED = "SELECT conversation_id FROM conversation_labels WHERE owner_id = ? AND label = ? LIMIT ?"


class SqliteConversations(Rows):
    """Rows of conversations on one connection: a snapshot, or with a transaction what it writes."""

    __slots__ = ("_connection", "_transaction")

    reads_visible = False
    is_snapshot = True

    def __init__(self, connection: apsw.Connection, transaction: Transaction | None = None) -> None:
        """Take what reads and writes."""
        self._connection = connection
        self._transaction = transaction

    @property
    def _writes(self) -> Transaction:
        """The transaction of rows that may write."""
        assert self._transaction is not None  # noqa: S101 - RowStore writes in `_write` alone
        return self._transaction

    @property
    @override
    def moment(self) -> datetime:
        return self._writes.moment

    def _fetch(self, statement: str, values: Values = ()) -> list[Row]:
        return fetch(self._connection, statement, values)

    # --- conversations ------------------------------------------------------------------------------------

    @override
    async def state(self, key: Key, *, lock: bool = False) -> StateRow | None:
        row = self._connection.execute(STATE, (key[0], key[1].bytes)).fetchone()
        if row is None:
            return None
        last_seq, head_seq, head_id, runs, title, updated_at = row
        moment = EPOCH if self._transaction is None else self._transaction.moment
        head = None if head_id is None else uuid(head_id)
        return StateRow(last_seq, head_seq, head, runs, title, from_micros(updated_at), moment)

    @override
    async def conversation(self, key: Key, *, lock: bool = False) -> Conversation | None:
        row = self._connection.execute(f"{CONVERSATION} AND c.id = ?", (key[0], key[1].bytes)).fetchone()
        return None if row is None else to_conversation(row)

    async def exists_elsewhere(self, id_: UUID) -> bool:
        statement = "SELECT 1 FROM conversations WHERE id = ? AND deleted_at IS NULL LIMIT 1"
        return self._connection.execute(statement, (id_.bytes,)).get is not None

    async def create(self, key: Key, new: NewConversation, *, slot: bool = False) -> Conversation | None:
        if slot and await self.newest(key[0], Scope(new.context_id, new.project_id)):
            return None
        created, updated = times_of(new, self._writes.moment)
        self._note_owner(key[0])
        columns = (
            new.title,
            new.context_id,
            new.project_id.bytes if new.project_id else None,
            new.llm_provider_id.bytes if new.llm_provider_id else None,
            new.external_id,
            labels_text(new.labels),
            json_text(new.metadata),
        )
        times = (to_micros(created), to_micros(updated))
        self._connection.execute(INSERT_CONVERSATION, (key[0], key[1].bytes, *columns, new.fingerprint(), *times))
        if not self._connection.changes():
            return None
        if new.labels:
            self._insert_labels(key, new.labels)
        return stored(
            Conversation,
            CONVERSATION_FIELDS,
            {
                "id": key[1],
                "owner_id": key[0],
                "title": new.title,
                "context_id": new.context_id,
                "project_id": new.project_id,
                "llm_provider_id": new.llm_provider_id,
                "external_id": new.external_id,
                "labels": new.labels,
                "metadata": new.metadata,
                "last_seq": 0,
                "head_id": None,
                "created_at": created,
                "updated_at": updated,
            },
        )

    def _note_owner(self, owner: str) -> None:
        if owner not in self._writes.owners:
            self._connection.execute("INSERT INTO users VALUES (?) ON CONFLICT DO NOTHING", (owner,))
            self._writes.owners.add(owner)

    async def fingerprint(self, key: Key) -> bytes | None:
        statement = "SELECT fingerprint FROM conversations WHERE owner_id = ? AND id = ? AND deleted_at IS NULL"
        return cast("bytes | None", self._connection.execute(statement, (key[0], key[1].bytes)).get)

    async def newest(self, owner: str, scope: Scope) -> Conversation | None:
        project = scope.project_id.bytes if scope.project_id else None
        row = self._connection.execute(NEWEST, (owner, scope.context_id, project)).fetchone()
        return None if row is None else to_conversation(row)

    async def listed(
        self, owner: str, which: ListFilter, order: ListOrder, after: ListPlace | None, size: PageSize, offset: int
    ) -> Part[Conversation]:
        where, values = listed(owner, which)
        if after is not None and after.updated_at is not None:
            where += " AND (c.updated_at, c.id) < (?, ?)"
            values += [to_micros(after.updated_at), after.id.bytes]
        elif after is not None:
            where += " AND c.id > ?"
            values.append(after.id.bytes)
        by = LIST_ORDER[order] if which.ids is None else LIST_ORDER_OF_SOME[order]
        statement = f"{CONVERSATION}{where} ORDER BY {by} LIMIT ? OFFSET ?"
        with self._rows(statement, (*values, size.limit, offset)) as rows:
            return conversations_within(rows, size.max_bytes)

    async def count(self, owner: str, which: ListFilter) -> int:
        where, values = listed(owner, which)
        return cast("int", self._connection.execute(f"SELECT count(*) FROM ({CONVERSATION}{where})", values).get)  # noqa: S608

    async def labelled(self, owner: str, label: str, limit: int) -> list[UUID]:
        return [uuid(id_) for (id_,) in self._fetch(LABELLED, (owner, label, limit))]

    async def set_values(self, key: Key, values: Mapping[str, Any]) -> None:
        columns = dict(values)
        if "labels" in values:
            columns["labels"] = labels_text(values["labels"])
            self._delete_labels(key)
            self._insert_labels(key, values["labels"])
        names = ", ".join(f"{name} = ?" for name in columns)  # names of this package, never a caller's
        stored_as = [value.bytes if isinstance(value, UUID) else value for value in columns.values()]
        statement = f"UPDATE conversations SET {names} WHERE owner_id = ? AND id = ?"  # noqa: S608
        self._connection.execute(statement, (*stored_as, key[0], key[1].bytes))

    def _insert_labels(self, key: Key, labels: Sequence[str]) -> None:
        rows = [(key[0], key[1].bytes, label) for label in labels]
        self._connection.executemany("INSERT INTO conversation_labels VALUES (?, ?, ?)", rows)

    def _delete_labels(self, key: Key) -> int:
        statement = "DELETE FROM conversation_labels WHERE owner_id = ? AND conversation_id = ?"
        self._connection.execute(statement, (key[0], key[1].bytes))
        return self._connection.changes()

    def _rows(self, statement: str, values: Values) -> closing[apsw.Cursor]:
        """The rows of a statement, one by one: closed after use, a cursor keeps no snapshot."""
        return closing(self._connection.execute(statement, values))
