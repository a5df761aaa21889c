"""The store in a MongoDB database: a replica set (one node is enough), or mongos before shards."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import cast
from uuid import UUID

from chatkeep.errors import SchemaMismatch
from chatkeep.model import ImportReceipt, Message, NewMessage
from chatkeep.options import StoreOptions
from chatkeep.stores.append import is_simple, size_of, with_ids
from chatkeep.stores.base import RowStore
from chatkeep.stores.group_commit import GroupCommit
from chatkeep.stores.imports import Import
from chatkeep.stores.locks import KeyedLocks
from chatkeep.stores.long_texts import HasContent
from chatkeep.stores.mongo import moves, schema
from chatkeep.stores.mongo.access import MongoAccess
from chatkeep.stores.mongo.append import Item, append_batch
from chatkeep.stores.mongo.database import Database, View
from chatkeep.stores.mongo.documents import check_message_fits
from chatkeep.stores.mongo.rows import MongoRows
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey
from chatkeep.stores.revisions import NEEDS_UPGRADE, Schema
from chatkeep.stores.rows import Key, Work
from chatkeep.turns import TurnKey, TurnState, TurnWrite
from chatkeep.words import index_words

FLUSHERS = 2
"""Batches in flight at the same time: while one waits for the disk, the other is filled and sent."""


CONFLICTS = 3
"""How often the events of all turns are stored together, before each turn's go alone: another process may write one of
the turns again and again."""


class MongoStore(RowStore[MongoRows]):
    """Conversations in a MongoDB database, used by any number of processes."""

    driver_options = True
    newest_revision = schema.HEAD
    revisions = schema.REVISIONS

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._database = Database(
            url,
            pool_size=options.pool_size,
            pool_timeout=options.pool_timeout,
            reads=self._reads,
            writes=self._writes,
            relaxed=options.durability == "relaxed",
        )
        self._access = MongoAccess(self._database)
        self._batches: GroupCommit[Item] = GroupCommit(self._append_batch, flushers=FLUSHERS, committed=self._committed)
        self._locks: KeyedLocks[Key] = KeyedLocks()
        self._turn_locks: KeyedLocks[TurnKey] = KeyedLocks()
        self._has_schema = False

    def state(self) -> Mapping[str, int]:
        return {"connections_used": self._database.slots.used}

    async def distribute(self) -> list[str]:
        self._open()
        await self._need_schema()
        with self._database.translating():
            return await schema.spread(self._database)

    def _rows(self, view: View) -> MongoRows:
        return MongoRows(view, self._texts, index=self._options.search)

    async def _read[T](self, work: Work[MongoRows, T]) -> T:
        with self._reads.of_call():
            await self._need_schema()
            return await self._database.read(lambda view: work(self._rows(view)))

    async def _write[T](self, work: Work[MongoRows, T], *, atomic: bool = True) -> T:
        write = self._database.write if atomic else self._database.write_one
        with self._writes.of_call():
            await self._need_schema()
            return await write(lambda view: work(self._rows(view)))

    async def _write_to[T](self, key: Key, work: Work[MongoRows, T]) -> T:
        """Serialised for each conversation in this process: of two transactions that write it, one would fail."""
        with self._writes.of_call():
            return await self._alone(key, work)

    async def _alone[T](self, key: Key, work: Work[MongoRows, T]) -> T:
        async with self._locks.of(key):
            await self._batches.passed(key)
            return await self._write(work)

    async def _need_schema(self) -> None:
        """Raise SchemaMismatch without a schema: MongoDB would make collections by itself."""
        if not self._has_schema:
            if (await self._schema()).revision is None:
                raise SchemaMismatch(NEEDS_UPGRADE, got=self._database.name)
            self._has_schema = True

    async def _migrate(self, revision: str) -> None:
        await schema.migrate(self._database, revision)
        self._has_schema = False

    async def _schema(self) -> Schema:
        return await self._database.read(schema.revision)

    async def _finish(self) -> None:
        await self._batches.aclose()
        await self._database.finish()

    async def _close(self) -> None:
        await self._database.aclose()

    @property
    def _hides_foreign(self) -> bool:
        """Asking for an id without its owner would ask every shard."""
        hidden = self._options.hide_foreign
        return self._database.sharded if hidden is None else hidden

    async def _rename(self, old: str, new: str) -> int:
        """Move conversations and documents one by one: cut off, a second call finishes.

        Both owners have the projects until then, so that no conversation is without its own. What is being removed goes
        before: nothing moves into a project of which the rest is removed.
        """
        for owner in (old, new):
            await self._purge_projects(owner)
        ids = await self._write(lambda rows: rows.begin_rename(old, new), atomic=False)
        projects = [ProjectKey(old, id_) for id_ in await self._read(lambda rows: rows.projects_to_move(old))]
        for key in projects:
            await self._copy_project(key.id, old, new)
        for key in projects:
            await self._move_documents(key, new)
        moved = [await self._move(id_, old, new) for id_ in sorted(ids)]
        if await self._write(lambda rows: rows.end_rename(old), atomic=False):
            left = [key for key in projects if not await self._leave_project(key, new)]
            if left:
                await self._write(lambda rows: rows.keep_owner(old), atomic=False)
        return sum(moved)

    async def _copy_project(self, id_: UUID, old: str, new: str) -> None:
        await self._write(lambda rows: rows.copy_project(id_, old, new), atomic=False)

    async def _leave_project(self, key: ProjectKey, new: str) -> bool:
        return await self._write(lambda rows: rows.leave_project(key, new))

    async def _move_documents(self, project: ProjectKey, new: str) -> None:
        """Give the documents of a project to another owner, who has it as well."""
        for key in await self._read(lambda rows: rows.documents_of(project)):
            await self._move_document(key, new)

    async def _move_document(self, key: DocumentKey, new: str) -> None:
        """Copy a document and give it away, again if it was changed meanwhile; then remove what is left of both."""
        copy, staged = key._replace(owner=new), None
        while row := await self._write(lambda rows: rows.stage_copy(key, new)):
            staged = cast("UUID", row.content)
            for first in range(0, row.document.chunks, moves.COPIED):
                await self._copy_chunks(key, new, staged, first)
            if await self._give_document(key, new, row):
                break
        if staged is not None:
            await self._leave_document(copy, staged)
            await self._remove_rubbish(copy)
        if await self._leave_document(key):
            await self._remove_rubbish(key)

    async def _copy_chunks(self, key: DocumentKey, new: str, content: UUID, first: int) -> None:
        await self._write(lambda rows: rows.copy_chunks(key, new, content, first))

    async def _give_document(self, key: DocumentKey, new: str, row: DocumentRow) -> bool:
        return await self._write(lambda rows: rows.give_document(key, new, row))

    async def _leave_document(self, key: DocumentKey, staged: UUID | None = None) -> bool:
        return await self._write(lambda rows: rows.leave_document(key, staged))

    async def _move(self, id_: UUID, old: str, new: str) -> bool:
        """Move a conversation, in its turn; that takes longer the larger it is."""
        async with self._locks.of((old, id_)):
            await self._batches.passed((old, id_))
            return await self._database.change(lambda view: self._rows(view).move(id_, old, new), atomic=True)

    # --- appending ----------------------------------------------------------------------------------------

    async def _append(
        self, key: Key, messages: Sequence[NewMessage], fingerprints: Sequence[bytes], expected_seq: int | None
    ) -> list[Message]:
        may_repeat = messages[0].id is not None
        messages = with_ids(messages)
        with self._database.writing, self._writes.of_call():
            words = await self._words(messages)
            await self._need_schema()
            if expected_seq is None and is_simple(messages) and not words and key not in self._locks:
                item = Item(key, messages[0], fingerprints[0], may_repeat)
                stored = await self._batches.submit(item, size=size_of(messages), key=key)
                if stored is not None:
                    return [cast("Message", stored)]
            return await self._write_to(
                key, lambda rows: self._append_to(rows.knowing(words), key, messages, fingerprints, expected_seq)
            )

    async def _import_in(self, key: Key, given: Import) -> ImportReceipt | None:
        return await self._write_texts(key, given.messages, lambda rows: self._import(rows, key, given))

    async def _write_texts[T](self, key: Key, texts: Sequence[HasContent], work: Work[MongoRows, T]) -> T:
        with self._database.writing, self._writes.of_call():
            words = await self._words(texts)
            return await self._write_to(key, lambda rows: work(rows.knowing(words)))

    async def _words(self, texts: Sequence[HasContent]) -> dict[str, list[str]]:
        """The words of long texts. Raises InvalidInput if a new message is larger than a document can be."""
        words = await self._texts.each(index_words, texts) if self._options.search else {}
        for text in texts:
            if isinstance(text, NewMessage):
                check_message_fits(text, words if self._options.search else None)
        return words

    # --- turns --------------------------------------------------------------------------------------------

    async def _write_turn[T](self, key: TurnKey, texts: Sequence[HasContent], work: Work[MongoRows, T]) -> T:
        with self._database.writing, self._writes.of_call():
            words = await self._words(texts)
            async with self._locks.of(key[:2]):
                await self._batches.passed(key[:2])
                async with self._turn_locks.of(key):
                    return await self._write(lambda rows: work(rows.knowing(words)))

    async def _store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> Mapping[TurnKey, TurnState]:
        """Store what can be stored at once, or wait if nothing can. A turn that this process is just ending, or
        stopping, is busy: of two transactions that write its lease one would fail, and with it the others' events."""
        states = {write.key: TurnState.BUSY for write in writes}
        free = [write for write in writes if write.key not in self._turn_locks]
        async with AsyncExitStack() as held:
            for key in sorted(write.key for write in free or writes):  # so that nobody waits for who waits for them
                await held.enter_async_context(self._turn_locks.of(key))
            with self._writes.of_call():
                await self._need_schema()
                return states | await self._store_locked(worker, free or writes, lease)

    async def _store_locked(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> dict[TurnKey, TurnState]:
        """Store events together or, after conflicts with other processes, turn by turn: those with more are busy."""
        stored = await self._database.attempt_often(
            lambda view: self._rows(view).store_events(worker, writes, lease), conflicts=CONFLICTS
        )
        if stored is not None or len(writes) == 1:
            return stored or {}
        alone = [await self._store_locked(worker, [write], lease) for write in writes]
        return {key: state for states in alone for key, state in states.items()}

    async def _append_batch(self, items: Sequence[Item]) -> Sequence[object]:
        """Append in one transaction; each item's message or Conflict, None if it needs one of its own."""
        mine = [item for item in items if item.key not in self._locks]
        search = self._options.search
        stored = await self._database.attempt(lambda view: append_batch(view, mine, search=search)) if mine else None
        outcomes = dict(zip(map(id, mine), stored or [None] * len(mine), strict=True))
        return [outcomes.get(id(item)) for item in items]
