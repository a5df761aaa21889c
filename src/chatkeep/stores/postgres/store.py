"""The store in a PostgreSQL database: many processes on many machines."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, cast, override
from uuid import UUID

from chatkeep.errors import InvalidInput
from chatkeep.migrations import HEAD, REVISIONS
from chatkeep.model import Conversation, ImportReceipt, Message, NewConversation, NewMessage, Page
from chatkeep.options import StoreOptions
from chatkeep.stores.access_sql import SqlAccess
from chatkeep.stores.append import is_simple, with_ids
from chatkeep.stores.base import RowStore
from chatkeep.stores.group_commit import GroupCommit
from chatkeep.stores.imports import Import
from chatkeep.stores.locks import KeyedLocks
from chatkeep.stores.long_texts import HasContent
from chatkeep.stores.paths import living_of
from chatkeep.stores.postgres.append import Item, append, appended, to_item
from chatkeep.stores.postgres.citus import append_alone, append_of_owner, distribute
from chatkeep.stores.postgres.database import Database
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.rows import PostgresRows
from chatkeep.stores.postgres.text import terms_of
from chatkeep.stores.postgres.turns import of_owners
from chatkeep.stores.revisions import Schema
from chatkeep.stores.rows import Key, Row, Work
from chatkeep.stores.slices import Part
from chatkeep.stores.window import Window
from chatkeep.tree import Position, Tree
from chatkeep.turns import TurnKey, TurnState, TurnWrite
from chatkeep.values import decode_nul, encode_nul

FLUSHERS = 2
"""Batches in flight at the same time: while one waits for the disk, the other is filled and sent."""

CLOCK = "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS bigint)"
"""The database's clock, as for leases of turns, in microseconds since 1970."""


class Simple(NamedTuple):
    """An append on the fast path, on its way into a batch."""

    item: Item
    message: NewMessage


class PostgresStore(RowStore[PostgresRows]):
    """Conversations in a PostgreSQL database, used by any number of processes."""

    driver_options = True
    newest_revision = HEAD
    revisions = REVISIONS

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._database = Database(url, options, reads=self._reads, writes=self._writes)
        self._access = PostgresAccess(self._database)
        self._batches = GroupCommit(self._append_batch, flushers=FLUSHERS, committed=self._committed)
        self._locks: KeyedLocks[Key] = KeyedLocks()

    def state(self) -> Mapping[str, int]:
        return self._database.state()

    async def distribute(self) -> list[str]:
        self._open()
        return await self._database.write(distribute, slow=True)

    def _rows(self, connection: Connection) -> PostgresRows:
        return PostgresRows(connection, self._texts, index=self._options.search, by_owner=self._database.citus)

    async def _read[T](self, work: Work[PostgresRows, T]) -> T:
        return await self._database.read(lambda connection: work(self._rows(connection)))

    @override
    async def _write[T](self, work: Work[PostgresRows, T], *, atomic: bool = True) -> T:
        return await self._database.write(lambda connection: work(self._rows(connection)))

    async def _write_to[T](self, key: Key, work: Work[PostgresRows, T], *, repeatable: bool = False) -> T:
        """Serialised for each conversation: a locked row then keeps one connection waiting, not the whole pool."""
        with self._writes.of_call():
            async with self._locks.of(key):
                return await self._database.write(
                    lambda connection: work(self._rows(connection)), repeatable=repeatable
                )

    async def _attempt[T](self, work: Work[PostgresRows, T]) -> T | None:
        """Run `work`, which is one statement. None if it failed, or its outcome is unknown: use a transaction then."""
        return await self._database.attempt(lambda connection: work(self._rows(connection)))

    async def _migrate(self, revision: str) -> None:
        await self._database.migrate(revision)

    async def _schema(self) -> Schema:
        return await self._database.schema()

    async def _probe(self) -> Schema:
        return await self._database.probe()

    async def _finish(self) -> None:
        await self._batches.aclose()
        await self._database.finish()

    async def _close(self) -> None:
        await self._database.aclose()

    def _stored_owner(self, owner: str) -> str:
        return encode_nul(owner)

    def _shown_owner(self, stored: str) -> str:
        return decode_nul(stored)

    @property
    def _hides_foreign(self) -> bool:
        """Asking for an id without its owner would ask every machine of Citus."""
        hidden = self._options.hide_foreign
        return self._database.citus if hidden is None else hidden

    async def _create(self, key: Key, new: NewConversation) -> Conversation | None:
        with self._database.writing, self._writes.of_call():
            is_one_statement = new.project_id is None and new.llm_provider_id is None and not new.labels
            made = await self._attempt(lambda rows: rows.create(key, new)) if is_one_statement else None
            return made or await super()._create(key, new)

    async def _rename(self, old: str, new: str) -> int:
        await self._database.schema()  # which tells what kind of database it is
        if self._database.citus:
            raise InvalidInput("Citus cannot move rows to another owner; export the conversations and import them")
        return await self._database.write(lambda connection: self._rows(connection).rename_owner(old, new), slow=True)

    # --- appending ----------------------------------------------------------------------------------------

    async def _append(
        self, key: Key, messages: Sequence[NewMessage], fingerprints: Sequence[bytes], expected_seq: int | None
    ) -> list[Message]:
        may_repeat = messages[0].id is not None
        messages = with_ids(messages)
        with self._database.writing, self._writes.of_call():
            terms = await self._terms(key[0], messages)
            if expected_seq is None and is_simple(messages) and not terms and key not in self._locks:
                stored = await self._append_simply(key, messages[0], fingerprints[0], may_repeat=may_repeat)
                if stored is not None:
                    return [stored]
            return await self._write_to(
                key,
                lambda rows: self._append_to(rows.knowing(terms), key, messages, fingerprints, expected_seq),
                repeatable=True,
            )

    async def _import_in(self, key: Key, given: Import) -> ImportReceipt | None:
        with self._database.writing, self._writes.of_call():
            terms = await self._terms(key[0], given.messages)
            return await self._write_to(
                key, lambda rows: self._import(rows.knowing(terms), key, given), repeatable=True
            )

    async def _write_texts[T](self, key: Key, texts: Sequence[HasContent], work: Work[PostgresRows, T]) -> T:
        with self._database.writing, self._writes.of_call():
            terms = await self._terms(key[0], texts)
            return await self._write_to(key, lambda rows: work(rows.knowing(terms)))

    async def _terms(self, owner: str, messages: Sequence[HasContent]) -> dict[str, str]:
        """The terms of long messages, found before a connection is held; these do not keep a batch waiting either."""
        if not self._options.search:
            return {}
        return await self._texts.each(partial(terms_of, owner=owner), messages)

    async def _append_simply(
        self, key: Key, message: NewMessage, fingerprint: bytes, *, may_repeat: bool
    ) -> Message | None:
        """Append by group commit; None if this append needs a transaction of its own."""
        id_ = cast("UUID", message.id)
        item = to_item(*key, id_, message, fingerprint, search=self._options.search)
        stored = await self._batches.submit(Simple(item, message), size=len(item.content), key=key)
        if stored is None and may_repeat:
            return await self._attempt(lambda rows: rows.repeated(key, id_, fingerprint))
        return cast("Message | None", stored)

    async def _append_batch(self, batch: Sequence[Simple]) -> Sequence[object]:
        """Append what is simple in one statement: the stored message of each, or None.

        If the statement fails, its outcome is unknown: each item goes on in a transaction of its own, which
        finds out by its id, and waits for its own locks only.
        """
        first = {simple.item.id: simple for simple in reversed(batch)}
        items = [simple.item for simple in batch if first[simple.item.id] is simple]
        stored = await self._store(items)
        taken = {id_: appended(first[id_].item, first[id_].message, row) for id_, row in stored.items()}
        return [taken.get(s.item.id) if first[s.item.id] is s else None for s in batch]

    async def _store(self, items: Sequence[Item]) -> dict[UUID, Row]:
        """Append a batch; on Citus, each owner's items in a transaction of their own."""
        if not self._database.citus:
            return await self._database.attempt(lambda connection: append(connection, items)) or {}
        owners: dict[str, list[Item]] = {}
        for item in items:
            owners.setdefault(item.owner, []).append(item)
        stored = await asyncio.gather(*(self._store_of_owner(*of_owner) for of_owner in owners.items()))
        return {id_: row for found in stored for id_, row in found.items()}

    async def _store_of_owner(self, owner: str, items: Sequence[Item]) -> dict[UUID, Row]:
        if len(items) == 1:
            return await self._database.attempt(lambda connection: append_alone(connection, items[0])) or {}
        stored = await self._database.attempt(
            lambda connection: append_of_owner(connection, owner, items), transaction=True
        )
        return stored or {}

    # --- turns --------------------------------------------------------------------------------------------

    async def _store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> Mapping[TurnKey, TurnState]:
        """The fast way. If that fails, its outcome is unknown: another transaction finds out what is there."""
        with self._database.writing, self._writes.of_call():
            if not self._database.citus:
                states = await self._database.attempt(
                    lambda connection: self._rows(connection).copy_events(worker, writes, lease), transaction=True
                )
                if states is not None:
                    return states
            return await self._store_events_by_owner(worker, writes, lease)

    async def _store_events_by_owner(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> Mapping[TurnKey, TurnState]:
        async def store(of_owner: Sequence[TurnWrite]) -> Mapping[TurnKey, TurnState]:
            return await self._database.write(
                lambda connection: self._rows(connection).store_events(worker, of_owner, lease), repeatable=True
            )

        stored = await asyncio.gather(*map(store, of_owners(writes).values()))
        return {key: state for states in stored for key, state in states.items()}

    # --- reading ------------------------------------------------------------------------------------------

    async def _history(
        self, rows: PostgresRows, key: Key, leaf: UUID | None, window: Window, room: int, *, total: bool
    ) -> Page[Message]:
        """The page in one round trip if the conversation never branched and the path ends with its head."""
        if window.offset:
            return await super()._history(rows, key, leaf, window, room, total=total)
        straight = await rows.straight_history(key, window, room)
        if straight is None:
            raise await self._missing(rows, key[1])
        row, found = straight
        if found is None or row.head_seq is None or leaf or window.leaf_seq not in (None, row.head_seq):
            return await self._page(rows, key, row, leaf, window, room, total=total)
        if total or len(living_of(found)) < len(found):
            end, tree = Position(row.head_seq, 0, row.head_seq), Tree.load(row.last_seq, None)
            return await self._path_page(rows, key, tree, end, window, room, total=total, first=Part(found))
        shown = found[: window.limit]
        return window.page(shown, row.head_seq, shown[-1].seq if len(found) > window.limit else None)


class PostgresAccess(SqlAccess):
    """API keys, replies and traces of erasures in the same database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _read(self, statement: str, *values: object) -> Sequence[Row]:
        return await self._database.read(lambda connection: connection.fetch(statement, *values))

    async def _write(self, statement: str, *values: object) -> Sequence[Row]:
        # What these INSERTs and UPDATEs return is the same again, unlike what a DELETE has removed.
        repeatable = not statement.startswith("DELETE")
        return await self._database.write(lambda session: session.fetch(statement, *values), repeatable=repeatable)

    async def note_erasure(self, owner: str) -> datetime:
        return await self._noted(owner, CLOCK)

    def _stored_owner(self, owner: str) -> str:
        return encode_nul(owner)

    def _shown_owner(self, stored: str) -> str:
        return decode_nul(stored)
