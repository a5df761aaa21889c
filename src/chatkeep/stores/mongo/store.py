"""The store in a MongoDB database: a replica set (one node is enough), or mongos before shards."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID
from weakref import WeakValueDictionary

from pymongo.errors import DuplicateKeyError

from chatkeep.access import Access
from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, NotYours, SchemaMismatch, StoreUnavailable
from chatkeep.ids import new_id, valid_id
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ErasureReceipt,
    Message,
    NewConversation,
    NewMessage,
    Page,
    SearchHit,
    Status,
)
from chatkeep.store import ListOrder, Order, Store, StoreOptions
from chatkeep.stores.append import Placed, State, check, ids_to_look_up, is_simple, plan
from chatkeep.stores.group_commit import GroupCommit
from chatkeep.stores.mongo import removal, schema
from chatkeep.stores.mongo import rows as documents
from chatkeep.stores.mongo.access import MongoAccess
from chatkeep.stores.mongo.database import Database, Document, View
from chatkeep.stores.mongo.removal import Removed
from chatkeep.stores.mongo.rows import Item, Key
from chatkeep.stores.window import Window, list_scope, valid_page
from chatkeep.tree import Position, Segment, Tree
from chatkeep.values import clean_text, dump_json, merge_patch, now, valid_owner
from chatkeep.words import query_phrases

FLUSHERS = 2
"""Groups under way at the same time: while one waits for the disk, the other is filled and sent."""


class MongoStore(Store):
    """Conversations in a MongoDB database, used from one event loop in each process."""

    driver_options = True
    newest_revision = schema.HEAD

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._database = Database(
            url,
            pool_size=options.pool_size,
            pool_timeout=options.pool_timeout,
            write_timeout=options.write_timeout,
            relaxed=options.durability == "relaxed",
        )
        self._access = MongoAccess(self._database)
        self._groups: GroupCommit[Item] = GroupCommit(self._append_group, flushers=FLUSHERS, committed=self._committed)
        self._turns: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[Any]] = set()
        self._has_schema = False
        self._closed = False

    @property
    def access(self) -> Access:
        return self._access

    # --- conversations ------------------------------------------------------------------------------------

    async def create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        key = await self._key(owner, new.id or new_id())
        return await self._create(key, new, slot=False)

    async def get_or_create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        """Whoever takes the context's slot creates; who finds it taken, by now or a moment ago, reads again."""
        key = await self._key(owner, new.id or new_id())
        while True:
            found = await self._database.read(lambda view: documents.newest(view, key[0], new.context_id))
            found = found or await self._created(key, new, slot=True)
            if found is not None:
                return found

    async def get_conversation(self, owner: str, conversation_id: UUID | str) -> Conversation:
        key = await self._key(owner, conversation_id)
        return documents.to_conversation(await self._database.read(lambda view: self._thread(view, key)))

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
        arguments = (await self._owner(owner), context_id, order, scope, limit, cursor, offset)
        return await self._database.read(lambda view: documents.list_conversations(view, *arguments, total=total))

    async def update_conversation(
        self, owner: str, conversation_id: UUID | str, change: ConversationChange
    ) -> Conversation:
        key = await self._key(owner, conversation_id)
        async with self._turn(key):
            return await self._database.write(lambda view: self._update(view, key, change))

    async def delete_conversation(self, owner: str, conversation_id: UUID | str) -> bool:
        key = await self._key(owner, conversation_id)
        # In a task of its own: a caller that is cancelled does not leave the rest lying.
        return cast("bool", await self._in_background(self._delete(key)))

    # --- messages -----------------------------------------------------------------------------------------

    async def append(
        self,
        owner: str,
        conversation_id: UUID | str,
        messages: Sequence[NewMessage],
        *,
        expected_seq: int | None = None,
    ) -> list[Message]:
        valid_owner(owner)
        valid_id(conversation_id)
        fingerprints = check(messages, self._options.max_content_chars)
        for message in messages:
            documents.check_message_fits(message, search=self._options.search)
        key = await self._key(owner, conversation_id)
        may_repeat = messages[0].id is not None
        # What is tried twice must be stored once.
        messages = [m if m.id is not None else m.model_copy(update={"id": new_id()}) for m in messages]
        with self._database.writing:
            if expected_seq is None and is_simple(messages) and key not in self._turns:
                item = Item(key, messages[0], fingerprints[0], may_repeat)
                stored = await self._groups.submit(item, size=len(messages[0].content), key=key)
                if stored is not None:
                    return [cast("Message", stored)]
            async with self._turn(key):
                return await self._database.write(
                    lambda view: self._append(view, key, messages, fingerprints, expected_seq)
                )

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
        id_, leaf = valid_id(conversation_id), None if leaf is None else valid_id(leaf)
        window = Window.of(valid_owner(owner), id_, leaf, limit, before, after, order, cursor, offset)
        key = await self._key(owner, id_)
        return await self._database.read(lambda view: self._history(view, key, leaf, window, total=total))

    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        valid_page(limit, 0, None)
        key = await self._key(owner, conversation_id)

        async def query(view: View) -> list[Message]:
            found = await documents.log(view, key, after, limit)
            await self._thread(view, key)  # after them: what is there now was whole when they were read
            return found

        return await self._database.read(query)

    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        key, id_ = await self._key(owner, conversation_id, message_id), valid_id(message_id)
        return documents.to_message(await self._database.read(lambda view: self._message(view, key, id_)))

    async def siblings(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> list[Message]:
        key, id_ = await self._key(owner, conversation_id, message_id), valid_id(message_id)
        return await self._database.read(lambda view: self._siblings(view, key, id_))

    async def delete_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        key, id_ = await self._key(owner, conversation_id, message_id), valid_id(message_id)

        async def delete(view: View) -> bool:
            await self._thread(view, key)
            return await documents.erase_message(view, key, id_)

        return await self._database.write_one(delete)

    async def search_messages(
        self, owner: str, query: str, *, limit: int = 20, cursor: str | None = None
    ) -> Page[SearchHit]:
        valid_page(limit, 0, None)
        if not self._options.search:
            raise InvalidInput("this store was opened with search=off; open it without that to search")
        phrases = query_phrases(query)
        scope = (valid_owner(owner), query)
        below = documents.place_after(cursor, scope) if cursor else None
        owner = await self._owner(owner)
        hits = await self._database.read(lambda view: documents.search(view, owner, phrases, below, limit + 1))
        following = documents.search_cursor(scope, hits[limit - 1][0]) if len(hits) > limit else None
        return Page(items=[hit for _, hit in hits[:limit]], next=following)

    # --- the store as a whole -----------------------------------------------------------------------------

    async def erase_owner(self, owner: str) -> ErasureReceipt:
        return cast("ErasureReceipt", await self._in_background(self._erase(await self._owner(owner))))

    async def migrate(self, revision: str = "head") -> None:
        self._open()
        await schema.migrate(self._database, revision)
        self._has_schema = False
        if revision in ("head", schema.HEAD):
            for owner in await self._database.read(removal.owners_with_remains):
                await self._purge(owner)
            while self._options.search and await self._database.write_one(documents.index_slice):
                pass

    async def schema_revision(self) -> str | None:
        self._open()
        return await self._database.read(schema.revision)

    def state(self) -> Mapping[str, int]:
        return {"connections_used": self._database.permits.used}

    async def distribute(self) -> list[str]:
        await self._owner("distribute")
        with self._database.translating():
            return await schema.spread(self._database)

    async def ping(self) -> None:
        revision = await self.schema_revision()
        if revision != schema.HEAD:
            raise SchemaMismatch(
                f"the schema must be at revision {schema.HEAD}; run `chatkeep db upgrade`", got=revision
            )

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._groups.aclose()
        await self._database.aclose()

    def _open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def _owner(self, owner: str) -> str:
        """The owner, when the store is open and has a schema: MongoDB would make collections by itself."""
        self._open()
        valid_owner(owner)
        if not self._has_schema:
            if await self.schema_revision() is None:
                raise SchemaMismatch(schema.NO_SCHEMA, got=self._database.name)
            self._has_schema = True
        return owner

    async def _key(self, owner: str, conversation_id: UUID | str, *other_ids: UUID | str) -> Key:
        id_, *_ = [valid_id(value) for value in (conversation_id, *other_ids)]
        return await self._owner(owner), id_

    async def _in_background(self, work: Coroutine[object, object, object]) -> object:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return await asyncio.shield(task)

    @asynccontextmanager
    async def _turn(self, key: Key) -> AsyncIterator[None]:
        """Nobody else in this process writes the conversation in a transaction meanwhile: one would fail."""
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn:
            await self._groups.passed(key)
            yield

    # --- appending ----------------------------------------------------------------------------------------

    async def _append_group(self, items: Sequence[Item]) -> Sequence[object]:
        """Append in one transaction; each item's message or Conflict, None where it must go the careful way."""
        mine = [item for item in items if item.key not in self._turns]
        outcomes = await self._database.attempt(lambda view: self._append_items(view, mine)) if mine else None
        by_item = dict(zip(map(id, mine), outcomes or [None] * len(mine), strict=True))
        return [by_item.get(id(item)) for item in items]

    async def _append_items(self, view: View, items: Sequence[Item]) -> list[object]:
        moment, search = now(), self._options.search
        if len(items) == 1:
            stored = await documents.append_alone(view, items[0], moment, search=search)
            if stored is not None:
                return [stored]
        talks = await documents.conversations(view, {item.key for item in items})
        brought = {item.place for item in items if item.may_repeat}
        known = await documents.messages_of_many(view, brought) if brought else {}
        group = _Group(talks, known)
        outcomes: list[object] = [group.outcome(item) for item in items]
        if group.new:
            await documents.save(view, group.changed(), list(group.new.values()), search=search)
        return outcomes

    async def _append(
        self,
        view: View,
        key: Key,
        messages: Sequence[NewMessage],
        fingerprints: Sequence[bytes],
        expected_seq: int | None,
    ) -> list[Message]:
        thread = await self._thread(view, key)
        ids = ids_to_look_up(messages) if thread["last_seq"] else set()
        found = await documents.messages_of_many(view, {(key, id_) for id_ in ids}) if ids else {}
        known = {id_: document for (_, id_), document in found.items()}
        state = documents.to_state(thread, await self._head(view, key, thread))
        positions = {id_: documents.to_known(document) for id_, document in known.items()}
        results = plan(key[1], state, messages, fingerprints, positions, now(), expected_seq)
        # Each once: an append may name one twice.
        new = {result.message.id: (key, result) for result in results if isinstance(result, Placed)}
        if new:
            await documents.save(view, {key: state}, list(new.values()), search=self._options.search)
        return [r.message if isinstance(r, Placed) else documents.to_message(known[r]) for r in results]

    # --- what runs on a view ------------------------------------------------------------------------------

    async def _thread(self, view: View, key: Key) -> Document:
        """The conversation's document. Raises NotFound or NotYours."""
        found = await documents.conversation(view, key)
        if found is None:
            raise await self._missing(view, key[1])
        return found

    async def _missing(self, view: View, id_: UUID) -> ChatkeepError:
        """Why there is no document: nobody has it, or, where the store may say so, somebody else does."""
        hidden = self._options.hide_foreign
        # Asking for an id without its owner would ask every shard.
        if hidden is None:
            hidden = self._database.sharded
        if not hidden and await documents.exists_elsewhere(view, id_):
            return NotYours("this conversation belongs to somebody else", got=id_)
        return NotFound("there is no such conversation", got=id_)

    async def _create(self, key: Key, new: NewConversation, *, slot: bool) -> Conversation:
        while True:
            found = await self._created(key, new, slot=slot)
            if found is not None:
                return found

    async def _created(self, key: Key, new: NewConversation, *, slot: bool) -> Conversation | None:
        """Store a conversation; or the one with this id. None where neither can be, for now."""
        document = documents.new_conversation(key, new, slot=slot)

        async def create(view: View) -> bool:
            try:
                await documents.create(view, document)
            except DuplicateKeyError:
                return False
            return True

        if await self._database.write_one(create):
            return documents.to_conversation(document)
        found = await self._database.read(lambda view: documents.created_before(view, key, new))
        if found is None:
            # Its id is one that is being removed, unless it is the slot that is taken.
            await self._purge(key[0])
        return found

    async def _head(self, view: View, key: Key, thread: Document) -> Position | None:
        if thread["head_seq"] is None:
            return None
        tree = Tree.load(thread["last_seq"], thread["runs"])
        return await documents.position(view, key, tree, thread["head_seq"])

    async def _update(self, view: View, key: Key, change: ConversationChange) -> Conversation:
        thread = await self._thread(view, key)
        new: dict[str, Any] = {}
        if "title" in change.model_fields_set:
            new["title"] = change.title
        if "metadata" in change.model_fields_set:
            old = documents.to_conversation(thread).metadata
            new["metadata"] = dump_json({} if change.metadata is None else merge_patch(old, change.metadata))
        if "head_id" in change.model_fields_set:
            head = None if change.head_id is None else await self._message(view, key, change.head_id)
            new["head_seq"], new["head_id"] = (head["seq"], change.head_id) if head else (None, None)
            straight = thread["runs"] is None and (new["head_seq"] or 0) == thread["last_seq"]
            new["straight"] = straight
        if new:
            await documents.set_values(view, key, new)
        return documents.to_conversation({**thread, **new})

    async def _delete(self, key: Key) -> bool:
        hidden = await self._database.write_one(lambda view: removal.hide(view, key))
        if hidden:
            await self._purge(key[0])
            return True
        missing = await self._database.read(lambda view: self._missing(view, key[1]))
        if isinstance(missing, NotYours):
            raise missing
        return False

    async def _purge(self, owner: str) -> Removed:
        """Remove the hidden conversations of an owner in slices, and count what went."""
        total = Removed()
        while removed := await self._database.write_one(lambda view: removal.purge_slice(view, owner)):
            total = Removed(*map(sum, zip(total, removed, strict=True)))
        return total

    async def _erase(self, owner: str) -> ErasureReceipt:
        total, remaining = Removed(), None
        while remaining is None:
            await self._database.write_one(lambda view: removal.hide_all(view, owner))
            total = Removed(*map(sum, zip(total, await self._purge(owner), strict=True)))
            remaining = await self._database.write_one(lambda view: removal.remove_owner(view, owner))
        forgotten = await self._access.forget_owner(owner)
        return ErasureReceipt(
            owner_id=owner,
            conversations=total.conversations,
            messages=total.messages,
            search_entries=total.indexed,
            api_keys=forgotten.api_keys,
            requests=forgotten.requests,
            remaining=remaining,
            erased_at=now(),
        )

    async def _history(self, view: View, key: Key, leaf: UUID | None, window: Window, *, total: bool) -> Page[Message]:
        thread = await self._thread(view, key)
        tree = Tree.load(thread["last_seq"], thread["runs"])
        end = await self._leaf(view, key, tree, thread, leaf, window)
        path = tree.path(end.run, end.seq) if end else []
        segments = [segment for segment in window.cut(path) if segment.low <= segment.high]
        found = await documents.path_messages(view, key, segments, window)
        length = None
        if total:
            length = (end.depth if end else 0) - await documents.count_deleted(view, key, path)
        if not _is_whole(found, window, segments):
            await self._thread(view, key)  # it may be being removed since it was read
        return window.page(found, end, length)

    async def _leaf(
        self, view: View, key: Key, tree: Tree, thread: Mapping[str, Any], leaf: UUID | None, window: Window
    ) -> Position | None:
        """Where the path ends: at the cursor's leaf, at the one that is named, or at the head."""
        if window.leaf_seq is not None:
            return await documents.position(view, key, tree, window.checked_leaf(tree.last_seq))
        if leaf is not None:
            return documents.to_known(await self._message(view, key, leaf)).position
        return await self._head(view, key, dict(thread))

    async def _siblings(self, view: View, key: Key, message_id: UUID) -> list[Message]:
        document = await self._message(view, key, message_id)
        thread = await self._thread(view, key)
        tree = Tree.load(thread["last_seq"], thread["runs"])
        if document["parent_id"] is None:
            seqs = tree.runs_from(-1, 0)
        else:
            found = await documents.message(view, key, document["parent_id"])
            assert found is not None  # noqa: S101 - a message's place stays
            parent = documents.to_known(found).position
            seqs = tree.runs_from(parent.run, parent.seq)
            seqs += await documents.next_in_run(view, key, parent)
        return await documents.messages_by_seq(view, key, seqs)

    async def _message(self, view: View, key: Key, id_: UUID) -> Document:
        """A message's document. Raises NotFound, also for a deleted one, and NotYours."""
        found = await documents.message(view, key, id_)
        await self._thread(view, key)  # after it: what is there now was whole when it was read
        if found is None or found["status"] == Status.DELETED:
            raise NotFound("there is no such message in this conversation", got=id_)
        return found


class _Group:
    """What a group of appends does to its conversations, decided item by item."""

    def __init__(self, talks: Mapping[Key, Document], known: Mapping[tuple[Key, UUID], Document]) -> None:
        self._states: dict[Key, State | None] = {key: documents.known_state(talk) for key, talk in talks.items()}
        self._known = known
        self._moment = now()
        self.new: dict[tuple[Key, UUID], tuple[Key, Placed]] = {}

    def changed(self) -> dict[Key, State]:
        """The conversations with new messages."""
        keys = {key for key, _ in self.new}
        return {key: state for key, state in self._states.items() if key in keys and state is not None}

    def outcome(self, item: Item) -> Message | Conflict | None:
        """The stored message, or why there is none; None where this needs to know more of the conversation."""
        if item.key not in self._states:
            return None
        there, placed = self._known.get(item.place), self.new.get(item.place)
        if there is not None or placed is not None:
            known = placed[1].fingerprint if placed else cast("Document", there)["fingerprint"]
            if known != item.fingerprint:
                return Conflict("this message id is already used for other content", got=item.message.id)
            return placed[1].message if placed else documents.to_message(cast("Document", there))
        state = self._states[item.key]
        if state is None:
            return None
        (result,) = plan(item.key[1], state, [item.message], [item.fingerprint], {}, self._moment)
        assert isinstance(result, Placed)  # noqa: S101 - nothing was known
        self.new[item.place] = item.key, result
        return result.message


def _is_whole(found: Sequence[Message], window: Window, segments: Sequence[Segment]) -> bool:
    """Whether a page shows by itself that nothing of it was removed while it was read: no seq is missing."""
    if not segments:
        return True
    low, high = segments[0].low, segments[0].high
    enough = min(window.limit + 1, high - low + 1)
    if window.offset or not segments[0].trunk or len(segments) > 1 or len(found) != enough:
        return False
    first = high if window.order == "desc" else low
    return found[0].seq == first and abs(found[-1].seq - first) == enough - 1
