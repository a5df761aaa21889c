"""The store in a PostgreSQL database: many processes on many machines."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast
from uuid import UUID
from weakref import WeakValueDictionary

from chatkeep.access import Access
from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, NotYours, SchemaMismatch, StoreUnavailable
from chatkeep.ids import new_id, valid_id
from chatkeep.migrations import HEAD
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ErasureReceipt,
    ImportedMessage,
    Message,
    NewConversation,
    NewMessage,
    Page,
    SearchHit,
    Status,
)
from chatkeep.store import ListOrder, Order, Store, StoreOptions
from chatkeep.stores.access_sql import Row, SqlAccess
from chatkeep.stores.append import Placed, State, check, ids_to_look_up, is_simple, plan
from chatkeep.stores.group_commit import GroupCommit
from chatkeep.stores.postgres import removal, rows
from chatkeep.stores.postgres.citus import append_of_owner, distribute
from chatkeep.stores.postgres.database import Database
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.window import Window, list_scope, valid_page
from chatkeep.tree import Position, Tree
from chatkeep.values import clean_text, dump_json, encode_nul, from_micros, merge_patch, now, valid_owner
from chatkeep.words import query_phrases

type Key = tuple[str, UUID]
"""The owner as PostgreSQL stores it, and the conversation."""

EPOCH = from_micros(0)

FLUSHERS = 2
"""Batches under way at the same time: while one waits for the disk, the other is filled and sent."""


class Simple(NamedTuple):
    """An append that needs to know nothing of the conversation but its end, on its way into a batch."""

    item: rows.Item
    message: NewMessage


class PostgresStore(Store):
    """Conversations in a PostgreSQL database, used from one event loop in each process."""

    driver_options = True

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._database = Database(
            url,
            pool_size=options.pool_size,
            pool_timeout=options.pool_timeout,
            write_timeout=options.write_timeout,
            pgbouncer=options.pgbouncer,
        )
        self._access = PostgresAccess(self._database, search=options.search)
        self._batches: GroupCommit[Simple] = GroupCommit(
            self._append_batch, flushers=FLUSHERS, committed=self._committed
        )
        self._turns: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def access(self) -> Access:
        return self._access

    # --- conversations ------------------------------------------------------------------------------------

    async def create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        owner, id_ = self._owner(owner), new.id or new_id()
        with self._database.writing:
            created = await self._database.attempt(lambda connection: rows.create(connection, owner, id_, new))
            if created is not None:
                return created
            return await self._database.write(lambda connection: self._create(connection, owner, id_, new))

    async def get_or_create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        owner, id_ = self._owner(owner), new.id or new_id()
        found = await self._database.read(lambda connection: rows.newest(connection, owner, new.context_id))
        if found is not None:
            return found
        return await self._database.write(lambda connection: self._get_or_create(connection, owner, id_, new))

    async def get_conversation(self, owner: str, conversation_id: UUID | str) -> Conversation:
        key = self._key(owner, conversation_id)
        return await self._database.read(lambda connection: self._get(connection, *key))

    async def list_conversations(
        self,
        owner: str,
        *,
        context_id: str | None = None,
        order: ListOrder = "updated",
        limit: int = 10,
        cursor: str | None = None,
        offset: int = 0,
        total: bool = False,
    ) -> Page[Conversation]:
        valid_page(limit, offset, cursor)
        context_id = None if context_id is None else clean_text(context_id)
        scope = list_scope(valid_owner(owner), context_id, order)
        arguments = (self._owner(owner), context_id, order, scope, limit, cursor, offset)
        return await self._database.read(
            lambda connection: rows.list_conversations(connection, *arguments, total=total)
        )

    async def update_conversation(
        self, owner: str, conversation_id: UUID | str, change: ConversationChange
    ) -> Conversation:
        key = self._key(owner, conversation_id)
        return await self._database.write(lambda connection: self._update(connection, *key, change))

    async def delete_conversation(self, owner: str, conversation_id: UUID | str) -> bool:
        key = self._key(owner, conversation_id)
        # In a task of its own: a caller that is cancelled does not leave the rest lying.
        return cast("bool", await self._in_background(self._delete(*key)))

    # --- messages -----------------------------------------------------------------------------------------

    async def append(
        self,
        owner: str,
        conversation_id: UUID | str,
        messages: Sequence[NewMessage],
        *,
        expected_seq: int | None = None,
    ) -> list[Message]:
        key = self._key(owner, conversation_id)
        fingerprints = check(messages, self._options.max_content_chars)
        may_repeat = messages[0].id is not None
        messages = rows.to_new_ids(messages)
        with self._database.writing:
            if expected_seq is None and is_simple(messages) and key not in self._turns:
                stored = await self._append_simply(key, messages[0], fingerprints[0])
                if stored is None and may_repeat:
                    stored = await self._repeated(key, messages[0], fingerprints[0])
                if stored is not None:
                    return [stored]
            if expected_seq is None and isinstance(messages[0], ImportedMessage):
                imported = await self._append_first(key, messages, fingerprints)
                if imported is not None:
                    return imported
            return await self._append_carefully(key, messages, fingerprints, expected_seq)

    async def history(
        self,
        owner: str,
        conversation_id: UUID | str,
        *,
        limit: int = 50,
        before: int | None = None,
        after: int | None = None,
        order: Order = "desc",
        leaf: UUID | str | None = None,
        cursor: str | None = None,
        offset: int = 0,
        total: bool = False,
    ) -> Page[Message]:
        key = self._key(owner, conversation_id)
        leaf = None if leaf is None else valid_id(leaf)
        window = Window.of(valid_owner(owner), key[1], leaf, limit, before, after, order, cursor, offset)
        return await self._database.read(lambda connection: self._history(connection, *key, leaf, window, total=total))

    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        valid_page(limit, 0, None)
        key = self._key(owner, conversation_id)

        async def query(connection: Connection) -> list[Message]:
            found = await rows.log(connection, *key, after, limit)
            if not found:
                await self._thread(connection, *key)
            return found

        return await self._database.read(query)

    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._database.read(lambda connection: self._message(connection, *key, id_))

    async def siblings(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> list[Message]:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._database.read(lambda connection: self._siblings(connection, *key, id_))

    async def delete_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)

        async def delete(connection: Connection) -> bool:
            await self._thread(connection, *key)
            return await rows.erase_message(connection, *key, id_)

        return await self._database.write(delete)

    async def search_messages(
        self, owner: str, query: str, *, limit: int = 20, cursor: str | None = None
    ) -> Page[SearchHit]:
        valid_page(limit, 0, None)
        if not self._options.search:
            raise InvalidInput("this store was opened with search=off; open it without that to search")
        phrases = query_phrases(query)
        scope = (valid_owner(owner), query)
        below = rows.place_after(cursor, scope) if cursor else rows.FIRST_PLACE
        owner = self._owner(owner)
        hits = await self._database.read(lambda connection: rows.search(connection, owner, phrases, below, limit + 1))
        following = rows.search_cursor(scope, hits[limit - 1][0]) if len(hits) > limit else None
        return Page(items=[hit for _, hit in hits[:limit]], next=following)

    # --- the store as a whole -----------------------------------------------------------------------------

    async def erase_owner(self, owner: str) -> ErasureReceipt:
        return cast("ErasureReceipt", await self._in_background(self._erase(owner, self._owner(owner))))

    async def migrate(self, revision: str = "head") -> None:
        self._open()
        await self._database.migrate(revision)
        if revision in ("head", HEAD):
            for owner in await self._database.read(removal.owners_with_remains):
                await self._purge(owner)
            while self._options.search and await self._database.write(rows.index_slice):
                pass

    async def schema_revision(self) -> str | None:
        self._open()
        return await self._database.revision()

    def state(self) -> Mapping[str, int]:
        return self._database.state()

    async def distribute(self) -> list[str]:
        self._open()
        return await self._database.write(distribute)

    async def ping(self) -> None:
        revision = await self.schema_revision()
        if revision != HEAD:
            raise SchemaMismatch(f"the schema must be at revision {HEAD}; run `chatkeep db upgrade`", got=revision)

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._batches.aclose()
        await self._database.aclose()

    def _owner(self, owner: str) -> str:
        """The owner as PostgreSQL stores it."""
        self._open()
        return encode_nul(valid_owner(owner))

    def _open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _key(self, owner: str, conversation_id: UUID | str) -> Key:
        return self._owner(owner), valid_id(conversation_id)

    async def _in_background(self, work: Coroutine[object, object, object]) -> object:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return await asyncio.shield(task)

    # --- appending ----------------------------------------------------------------------------------------

    async def _append_simply(self, key: Key, message: NewMessage, fingerprint: bytes) -> Message | None:
        """Append together with others who append now; None where this append must go the careful way."""
        assert message.id is not None  # noqa: S101 - append gave it one
        item = rows.to_item(*key, message.id, message, fingerprint, search=self._options.search)
        outcome = await self._batches.submit(Simple(item, message), size=len(item.content), key=key)
        return cast("Message | None", outcome)

    async def _append_batch(self, batch: Sequence[Simple]) -> Sequence[object]:
        """Append what is simple in one statement: the stored message of each, or None.

        A statement that fails has stored nothing, or nobody knows: each goes the careful way then, which
        finds out by its id, and waits for its own locks only.
        """
        first = {simple.item.id: simple for simple in reversed(batch)}
        items = [simple.item for simple in batch if first[simple.item.id] is simple]
        stored = await self._store(items)
        taken = {id_: rows.appended(first[id_].item, first[id_].message, row) for id_, row in stored.items()}
        return [taken.get(s.item.id) if first[s.item.id] is s else None for s in batch]

    async def _store(self, items: Sequence[rows.Item]) -> dict[UUID, rows.Row]:
        """Write items where that is simple; on Citus, each owner's in a transaction of their own."""
        if not self._database.citus:
            return await self._database.attempt(lambda connection: rows.append(connection, items)) or {}
        owners: dict[str, list[rows.Item]] = {}
        for item in items:
            owners.setdefault(item.owner, []).append(item)
        stored = await asyncio.gather(*(self._store_of_owner(*of_owner) for of_owner in owners.items()))
        return {id_: row for found in stored for id_, row in found.items()}

    async def _store_of_owner(self, owner: str, items: Sequence[rows.Item]) -> dict[UUID, rows.Row]:
        if len(items) == 1:
            return await self._database.attempt(lambda connection: rows.append(connection, items)) or {}
        work = partial(append_of_owner, owner=owner, items=items)
        return await self._database.attempt(work, transaction=True) or {}

    async def _repeated(self, key: Key, message: NewMessage, fingerprint: bytes) -> Message | None:
        """The stored message, where this append repeats it; None where this is not so, or nobody knows."""
        assert message.id is not None  # noqa: S101 - append gave it one
        work = partial(rows.repeated, owner=key[0], id_=key[1], message_id=message.id, fingerprint=fingerprint)
        return await self._database.attempt(work)

    async def _append_first(
        self, key: Key, messages: Sequence[NewMessage], fingerprints: Sequence[bytes]
    ) -> list[Message] | None:
        """Append to an empty conversation in one statement, as imports do; None where it must go the careful way."""
        state = State(Tree(), None, None, None, EPOCH)
        try:
            results = plan(key[1], state, messages, fingerprints, {}, now())
        except (Conflict, NotFound):  # by what the conversation may hold
            return None
        placed = [result for result in results if isinstance(result, Placed)]
        work = partial(rows.save, owner=key[0], id_=key[1], state=state, new=_once(placed), search=self._options.search)
        return [one.message for one in placed] if await self._database.attempt(work) else None

    async def _append_carefully(
        self, key: Key, messages: Sequence[NewMessage], fingerprints: Sequence[bytes], expected_seq: int | None
    ) -> list[Message]:
        """Append in a transaction of its own; one at a time for each conversation, so that a row that somebody
        else has locked keeps one connection waiting, not all."""
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn:
            return await self._database.write(
                lambda connection: self._append(connection, *key, messages, fingerprints, expected_seq)
            )

    async def _append(
        self,
        connection: Connection,
        owner: str,
        id_: UUID,
        messages: Sequence[NewMessage],
        fingerprints: Sequence[bytes],
        expected_seq: int | None,
    ) -> list[Message]:
        thread = await self._thread(connection, owner, id_, lock=True)
        ids = ids_to_look_up(messages)
        known = await rows.known(connection, owner, id_, ids) if thread.last_seq else {}
        tree = Tree.load(thread.last_seq, thread.runs)
        head = None if thread.head_seq is None else await rows.position(connection, owner, id_, tree, thread.head_seq)
        state = State(tree, head, thread.head_id, thread.title, thread.updated_at)
        results = plan(id_, state, messages, fingerprints, known, thread.moment, expected_seq)
        new = _once([result for result in results if isinstance(result, Placed)])
        if new:
            await rows.save(connection, owner, id_, state, new, search=self._options.search)
        old = [r for r in results if isinstance(r, UUID)]
        stored = await rows.messages_by_id(connection, owner, id_, old) if old else {}
        return [r.message if isinstance(r, Placed) else stored[r] for r in results]

    # --- what runs on a connection ------------------------------------------------------------------------

    async def _thread(self, connection: Connection, owner: str, id_: UUID, *, lock: bool = False) -> rows.Thread:
        """The row that appends and histories begin with. Raises NotFound or NotYours."""
        found = await rows.thread(connection, owner, id_, lock=lock)
        if found is None:
            raise await self._missing(connection, id_)
        return found

    async def _missing(self, connection: Connection, id_: UUID) -> ChatkeepError:
        """Why there is no row: nobody has it, or, where the store may say so, somebody else does."""
        hidden = self._options.hide_foreign
        # Asking for an id without its owner would ask every machine of Citus.
        if hidden is None:
            hidden = self._database.citus
        if not hidden and await rows.exists_elsewhere(connection, id_):
            return NotYours("this conversation belongs to somebody else", got=id_)
        return NotFound("there is no such conversation", got=id_)

    async def _create(self, connection: Connection, owner: str, id_: UUID, new: NewConversation) -> Conversation:
        while True:
            created = await rows.create(connection, owner, id_, new)
            found = created or await rows.created_before(connection, owner, id_, new)
            if found is not None:
                return found
            await removal.remove_remains(connection, owner, id_)

    async def _get_or_create(self, connection: Connection, owner: str, id_: UUID, new: NewConversation) -> Conversation:
        """Whoever takes the context's slot creates; who finds it taken, by now or a moment ago, reads again."""
        while True:
            created = await rows.create(connection, owner, id_, new, slot=True)
            found = created or await rows.newest(connection, owner, new.context_id)
            if found is not None:
                return found
            if await rows.created_before(connection, owner, id_, new) is None:
                await removal.remove_remains(connection, owner, id_)

    async def _get(self, connection: Connection, owner: str, id_: UUID, *, lock: bool = False) -> Conversation:
        found = await rows.conversation(connection, owner, id_, lock=lock)
        if found is None:
            raise await self._missing(connection, id_)
        return found

    async def _update(self, connection: Connection, owner: str, id_: UUID, change: ConversationChange) -> Conversation:
        now_stored = await self._get(connection, owner, id_, lock=True)
        new: dict[str, Any] = {}
        if "title" in change.model_fields_set:
            new["title"] = change.title and encode_nul(change.title)
        if "metadata" in change.model_fields_set:
            patched = {} if change.metadata is None else merge_patch(now_stored.metadata, change.metadata)
            new["metadata"] = dump_json(patched)
        if "head_id" in change.model_fields_set:
            head = None if change.head_id is None else await self._message(connection, owner, id_, change.head_id)
            new["head_seq"], new["head_id"] = (head.seq, head.id) if head else (None, None)
        if new:
            await rows.set_values(connection, owner, id_, new)
        return await self._get(connection, owner, id_)

    async def _delete(self, owner: str, id_: UUID) -> bool:
        hidden = await self._database.write(lambda connection: self._hide(connection, owner, id_))
        if hidden:
            await self._purge(owner)
        return hidden

    async def _hide(self, connection: Connection, owner: str, id_: UUID) -> bool:
        if await removal.hide(connection, owner, id_):
            return True
        missing = await self._missing(connection, id_)
        if isinstance(missing, NotYours):
            raise missing
        return False

    async def _purge(self, owner: str) -> removal.Removed:
        """Remove the hidden conversations of an owner in slices, and count what went."""
        total = removal.Removed()
        while removed := await self._database.write(lambda connection: removal.purge_slice(connection, owner)):
            total = removal.Removed(*map(sum, zip(total, removed, strict=True)))
        return total

    async def _erase(self, name: str, owner: str) -> ErasureReceipt:
        total, remaining = removal.Removed(), None
        while remaining is None:
            await self._database.write(lambda connection: removal.hide_all(connection, owner))
            total = removal.Removed(*map(sum, zip(total, await self._purge(owner), strict=True)))
            remaining = await self._database.write(lambda connection: removal.remove_owner(connection, owner))
        forgotten = await self._access.forget_owner(name)
        return ErasureReceipt(
            owner_id=name,
            conversations=total.conversations,
            messages=total.messages,
            search_entries=total.indexed,
            api_keys=forgotten.api_keys,
            requests=forgotten.requests,
            remaining=remaining,
            erased_at=now(),
        )

    async def _history(
        self,
        connection: Connection,
        owner: str,
        id_: UUID,
        leaf: UUID | None,
        window: Window,
        *,
        total: bool,
    ) -> Page[Message]:
        straight = await rows.straight_history(connection, owner, id_, window)
        if straight is None:
            raise await self._missing(connection, id_)
        last_seq, head_seq, runs, found = straight
        if runs is None and head_seq is not None and leaf is None and window.leaf_seq is None and not total:
            return window.page(found, Position(head_seq, 0, head_seq), None)  # the rest takes 16 µs to say the same
        tree = Tree.load(last_seq, runs)
        end = await self._leaf(connection, owner, id_, tree, head_seq, leaf, window)
        path = tree.path(end.run, end.seq) if end else []
        if runs is not None or end is None or end.seq != head_seq:
            found = await rows.path_messages(connection, owner, id_, window.cut(path), window)
            if len(found) <= window.limit:
                await self._thread(connection, owner, id_)  # or else the rest was not seen as it is being removed
        length = None
        if total:
            length = (end.depth if end else 0) - await rows.count_deleted(connection, owner, id_, path)
        return window.page(found, end, length)

    async def _leaf(
        self,
        connection: Connection,
        owner: str,
        id_: UUID,
        tree: Tree,
        head_seq: int | None,
        leaf: UUID | None,
        window: Window,
    ) -> Position | None:
        """Where the path ends: at the cursor's leaf, at the one that is named, or at the head."""
        if window.leaf_seq is not None:
            return await rows.position(connection, owner, id_, tree, window.checked_leaf(tree.last_seq))
        if leaf is not None:
            named = await self._message(connection, owner, id_, leaf)
            return await rows.position(connection, owner, id_, tree, named.seq)
        return None if head_seq is None else await rows.position(connection, owner, id_, tree, head_seq)

    async def _siblings(self, connection: Connection, owner: str, id_: UUID, message_id: UUID) -> list[Message]:
        thread = await self._thread(connection, owner, id_)
        message = await self._message(connection, owner, id_, message_id)
        tree = Tree.load(thread.last_seq, thread.runs)
        if message.parent_id is None:
            seqs = tree.runs_from(-1, 0)
        else:
            known = await rows.known(connection, owner, id_, {message.parent_id})
            parent = known[message.parent_id].position
            seqs = tree.runs_from(parent.run, parent.seq)
            seqs += await rows.next_in_run(connection, owner, id_, parent)
        return await rows.messages_by_seq(connection, owner, id_, seqs)

    async def _message(self, connection: Connection, owner: str, id_: UUID, message_id: UUID) -> Message:
        found = (await rows.messages_by_id(connection, owner, id_, [message_id])).get(message_id)
        if found is None:
            await self._thread(connection, owner, id_)
        if found is None or found.status == Status.DELETED:
            raise NotFound("there is no such message in this conversation", got=message_id)
        return found


class PostgresAccess(SqlAccess):
    """API keys and replies in the same database."""

    def __init__(self, database: Database, *, search: bool) -> None:
        self._database = database
        self._search = search

    async def _read(self, statement: str, *values: object) -> Sequence[Row]:
        return await self._database.read(lambda connection: connection.fetch(statement, *values))

    async def _write(self, statement: str, *values: object) -> Sequence[Row]:
        return await self._database.write(lambda connection: connection.fetch(statement, *values))

    async def _rename_conversations(self, old: str, new: str) -> int:
        owners = encode_nul(valid_owner(old)), encode_nul(valid_owner(new))
        await self._database.revision()  # which tells what kind of database it is
        if self._database.citus:
            raise InvalidInput("Citus cannot move rows to another owner; export the conversations and import them")
        count = await self._database.write(lambda connection: removal.rename_owner(connection, *owners))
        while self._search and await self._database.write(rows.index_slice):
            pass
        return count


def _once(placed: Sequence[Placed]) -> list[Placed]:
    """The new messages of an append, each once: it may name one twice."""
    return list({one.message.id: one for one in placed}.values())
