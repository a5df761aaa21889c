"""The ports over rows: arguments, 403 or 404, threading, pages, removal. Written once for every database."""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, ClassVar
from uuid import UUID

from chatkeep.access import Access
from chatkeep.cursor import decode_cursor, encode_cursor
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
    Role,
    SearchHit,
    Status,
)
from chatkeep.store import ListOrder, Order, Store, StoreOptions
from chatkeep.stores.append import Placed, State, check, ids_to_look_up, listed, plan
from chatkeep.stores.process import PROCESS, check_process
from chatkeep.stores.rows import Hit, Key, Removed, Rows, StateRow, Work, unique
from chatkeep.stores.time_limit import TimeLimit
from chatkeep.stores.window import Window, list_cursor, list_place, list_scope, valid_page
from chatkeep.tree import Position, Segment, Tree
from chatkeep.values import clean_text, json_text, now, patched, title_from, valid_metadata, valid_owner
from chatkeep.words import holds, query_phrases, snippet

logger = logging.getLogger(__name__)

ERASE_ROUNDS = 3
"""How often an erasure begins again because others created conversations meanwhile, before it locks them out."""


class RowStore[R: Rows](Store):
    """Conversations over the rows of a database, used from one event loop."""

    hit_place: ClassVar[tuple[type, ...]] = (int, str, int)
    """The types in the cursor of a search: time, conversation and seq of a message."""

    _access: Access

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._reads, self._writes = TimeLimit(options.read_timeout), TimeLimit(options.write_timeout)
        self._metadata_limits = options.metadata_limits
        self._background: set[asyncio.Task[Any]] = set()
        self._forks = PROCESS.forks
        self._closed = False

    @property
    def access(self) -> Access:
        check_process(self._forks)
        return self._access

    # --- what a database brings ---------------------------------------------------------------------------

    @abstractmethod
    async def _read[T](self, work: Work[R, T]) -> T:
        """Run `work`, which only reads."""

    @abstractmethod
    async def _write[T](self, work: Work[R, T], *, atomic: bool = True) -> T:
        """Run `work` in a transaction, again while that may help.

        With atomic=False its steps may be seen one by one, and may be cut off and repeated: a database that
        saves by it does without the transaction.
        """

    async def _write_to[T](self, key: Key, work: Work[R, T]) -> T:  # noqa: ARG002 - some databases lock it
        """Run `work`, which changes one conversation, in a transaction."""
        return await self._write(work)

    async def _append(
        self, key: Key, messages: Sequence[NewMessage], fingerprints: Sequence[bytes], expected_seq: int | None
    ) -> list[Message]:
        """Append what was checked, by the fastest path that the database has."""
        return await self._write_to(key, lambda rows: self._append_to(rows, key, messages, fingerprints, expected_seq))

    @abstractmethod
    async def _rename(self, old: str, new: str) -> int:
        """Give the conversations of one owner to another, to be indexed anew, and count them. Raises Conflict."""

    @abstractmethod
    async def _migrate(self, revision: str) -> None:
        """Bring the schema to `revision`."""

    @abstractmethod
    async def _revision(self) -> str | None:
        """The revision of the schema, None without one."""

    @abstractmethod
    async def _finish(self) -> None:
        """Finish the writes that were taken. It is cancelled if that takes too long."""

    @abstractmethod
    async def _close(self) -> None:
        """Close every connection within a second, whatever it is doing. Idempotent."""

    def _stored_owner(self, owner: str) -> str:
        """The owner as the database stores it."""
        return owner

    @property
    def _hides_foreign(self) -> bool:
        """Whether somebody else's conversation is answered with NotFound."""
        return bool(self._options.hide_foreign)

    async def _scrub(self) -> None:
        """Leave no copy of what was erased, if the database would."""

    # --- conversations ------------------------------------------------------------------------------------

    async def create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        valid_metadata(new.metadata, self._metadata_limits)
        key = self._owner(owner), new.id or new_id()
        return await self._create(key, new) or await self._after_removal(key[0], lambda: self._create(key, new))

    async def get_or_create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        valid_metadata(new.metadata, self._metadata_limits)
        key = self._owner(owner), new.id or new_id()
        with self._writes.of_call():
            found = await self._read(lambda rows: rows.newest(key[0], new.context_id))
            found = found or await self._get_or_create(key, new)
            return found or await self._after_removal(key[0], lambda: self._get_or_create(key, new))

    async def get_conversation(self, owner: str, conversation_id: UUID | str) -> Conversation:
        key = self._key(owner, conversation_id)
        return await self._read(lambda rows: self._conversation(rows, key))

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
        after = None if cursor is None else list_place(cursor, scope, order)
        stored = self._owner(owner)

        async def query(rows: R) -> tuple[list[Conversation], int | None]:
            counted = await rows.count(stored, context_id) if total else None
            return await rows.listed(stored, context_id, order, after, limit + 1, offset), counted

        found, counted = await self._read(query)
        following = list_cursor(found[limit - 1], scope, order) if len(found) > limit else None
        return Page(items=found[:limit], total=counted, next=following)

    async def update_conversation(
        self, owner: str, conversation_id: UUID | str, change: ConversationChange
    ) -> Conversation:
        key = self._key(owner, conversation_id)
        return await self._write_to(key, lambda rows: self._update(rows, key, change))

    async def delete_conversation(self, owner: str, conversation_id: UUID | str) -> bool:
        return await self._in_background(self._delete(owner, self._key(owner, conversation_id)))

    # --- messages -----------------------------------------------------------------------------------------

    async def append(
        self,
        owner: str,
        conversation_id: UUID | str,
        messages: Sequence[NewMessage] | NewMessage,
        *,
        expected_seq: int | None = None,
    ) -> list[Message]:
        key = self._key(owner, conversation_id)
        messages = listed(messages)
        fingerprints = check(messages, self._options.max_content_chars, self._metadata_limits)
        return await self._append(key, messages, fingerprints, expected_seq)

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
        window = Window.of(owner, key[1], leaf, limit, before, after, order, cursor, offset)
        return await self._read(lambda rows: self._history(rows, key, leaf, window, total=total))

    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        valid_page(limit, 0, None)
        key = self._key(owner, conversation_id)
        return await self._read(lambda rows: self._log(rows, key, max(0, min(after, 2**63 - 1)), limit))

    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._read(lambda rows: self._message(rows, key, id_))

    async def siblings(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> list[Message]:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._read(lambda rows: self._siblings(rows, key, id_))

    async def delete_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._write_to(key, lambda rows: self._delete_message(rows, key, id_))

    async def search_messages(
        self, owner: str, query: str, *, limit: int = 20, cursor: str | None = None
    ) -> Page[SearchHit]:
        valid_page(limit, 0, None)
        if not self._options.search:
            raise InvalidInput("this store was opened with search=off; open it without that to search")
        phrases = query_phrases(query)
        scope = (valid_owner(owner), query)
        below = tuple(decode_cursor(cursor, "search", scope, *self.hit_place)) if cursor else None
        stored = self._owner(owner)
        hits = await self._read(lambda rows: self._search(rows, stored, phrases, below, limit + 1))
        following = encode_cursor("search", scope, *hits[limit - 1].place) if len(hits) > limit else None
        return Page(items=[_to_search_hit(hit, phrases) for hit in hits[:limit]], next=following)

    # --- the store as a whole -----------------------------------------------------------------------------

    async def erase_owner(self, owner: str) -> ErasureReceipt:
        return await self._in_background(self._erase(owner, self._owner(owner)))

    async def rename_owner(self, owner: str, new_owner: str) -> int:
        old, new = self._owner(owner), self._owner(new_owner)
        if old == new:
            return 0
        count = await self._rename(old, new)
        await self._access.rename_owner(owner, new_owner)
        await self._index()
        return count

    async def migrate(self, revision: str = "head") -> None:
        self._open()
        await self._migrate(revision)
        if revision in ("head", self.newest_revision):
            for owner in await self._read(lambda rows: rows.owners_with_remains()):
                await self._purge(owner)
            await self._index()

    async def schema_revision(self) -> str | None:
        self._open()
        return await self._revision()

    async def ping(self) -> None:
        revision = await self.schema_revision()
        if revision != self.newest_revision:
            raise SchemaMismatch(
                f"the schema must be at revision {self.newest_revision}; run `chatkeep db upgrade`", got=revision
            )

    async def aclose(self) -> None:
        self._closed = True
        if PROCESS.forks != self._forks:
            return  # what is open belongs to the process that this one was forked from
        try:
            async with asyncio.timeout(self._writes.seconds):
                await asyncio.gather(*self._background, return_exceptions=True)
                await self._finish()
        except TimeoutError:
            logger.warning("writes were cut off after %g s, as the database did not answer", self._writes.seconds)
        finally:
            await self._close()

    # --- what every method begins with --------------------------------------------------------------------

    def _open(self) -> None:
        check_process(self._forks)
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _owner(self, owner: str) -> str:
        """The owner as the database stores it. Raises InvalidInput, or StoreUnavailable if the store is closed."""
        self._open()
        return self._stored_owner(valid_owner(owner))

    def _key(self, owner: str, conversation_id: UUID | str) -> Key:
        return self._owner(owner), valid_id(conversation_id)

    async def _in_background[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in a task that outlives a cancelled caller: a removal that began is finished."""
        task, caller = self._begin(work), asyncio.current_task()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise StoreUnavailable("the store was closed before this was done; try again") from None
            raise

    def _begin[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # --- conversations, in a transaction ------------------------------------------------------------------

    async def _state(self, rows: R, key: Key, *, lock: bool = False) -> StateRow:
        """What appends and histories begin with. Raises NotFound or NotYours."""
        found = await rows.state(key, lock=lock)
        if found is None:
            raise await self._missing(rows, key[1])
        return found

    async def _missing(self, rows: R, id_: UUID) -> ChatkeepError:
        """Why there is no conversation: nobody has it, or somebody else does and the store may say so."""
        if not self._hides_foreign and await rows.exists_elsewhere(id_):
            return NotYours("this conversation belongs to somebody else", got=id_)
        return NotFound("there is no such conversation", got=id_)

    async def _conversation(self, rows: R, key: Key, *, lock: bool = False) -> Conversation:
        found = await rows.conversation(key, lock=lock)
        if found is None:
            raise await self._missing(rows, key[1])
        return found

    async def _after_removal(self, owner: str, create: Callable[[], Awaitable[Conversation | None]]) -> Conversation:
        """Finish the removal of a conversation, and create one with the same id."""
        with self._writes.of_call():
            while True:
                await self._purge(owner)
                made = await create()
                if made is not None:
                    return made

    async def _create(self, key: Key, new: NewConversation) -> Conversation | None:
        """Create a conversation, or find it; None while one with this id is being removed."""
        return await self._write(lambda rows: self._create_in(rows, key, new), atomic=False)

    async def _create_in(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        return await rows.create(key, new) or await self._created_before(rows, key, new)

    async def _get_or_create(self, key: Key, new: NewConversation) -> Conversation | None:
        return await self._write(lambda rows: self._get_or_create_in(rows, key, new), atomic=False)

    async def _get_or_create_in(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        """Whoever takes the slot of the context creates; whoever finds it taken reads again."""
        found = await rows.create(key, new, slot=True) or await rows.newest(key[0], new.context_id)
        return found or await self._created_before(rows, key, new)

    async def _created_before(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        """The conversation with this id; None if there is none now. Raises Conflict if it has other values."""
        fingerprint = await rows.fingerprint(key)
        if fingerprint is None:
            return None
        if fingerprint != new.fingerprint():
            raise Conflict("this conversation id is already used for other values", got=key[1])
        return await rows.conversation(key)

    async def _update(self, rows: R, key: Key, change: ConversationChange) -> Conversation:
        before = await self._conversation(rows, key, lock=True)
        values: dict[str, Any] = {}
        if "title" in change.model_fields_set:
            values["title"] = change.title
        if "metadata" in change.model_fields_set:
            values["metadata"] = json_text(patched(before.metadata, change.metadata, self._metadata_limits))
        if "head_id" in change.model_fields_set:
            head = None if change.head_id is None else await self._message(rows, key, change.head_id)
            values |= {"head_seq": head.seq if head else None, "head_id": change.head_id}
        if not values:
            return before
        await rows.set_values(key, values)
        return await self._conversation(rows, key)

    # --- messages, in a transaction -----------------------------------------------------------------------

    async def _append_to(
        self,
        rows: R,
        key: Key,
        messages: Sequence[NewMessage],
        fingerprints: Sequence[bytes],
        expected_seq: int | None,
    ) -> list[Message]:
        row = await self._state(rows, key, lock=True)
        ids = ids_to_look_up(messages) if row.last_seq else ()
        known = await rows.known(key, ids) if ids else {}
        tree = Tree.load(row.last_seq, row.runs)
        head = None
        if row.head_seq is not None:  # mostly the tree knows its position, without a query
            head = tree.find(row.head_seq) or await rows.position(key, row.head_seq)
        state = State(tree, head, row.head_id, row.title, row.updated_at)
        results = plan(key[1], state, messages, fingerprints, known, row.moment, expected_seq)
        new = unique(result for result in results if isinstance(result, Placed))
        if new:
            await rows.save(key, state, new)
        old = [result for result in results if isinstance(result, UUID)]
        stored = await rows.messages_by_id(key, old) if old else {}
        return [result.message if isinstance(result, Placed) else stored[result] for result in results]

    async def _message(self, rows: R, key: Key, id_: UUID) -> Message:
        found = (await rows.messages_by_id(key, (id_,))).get(id_)
        if found is None or not rows.reads_visible:
            await self._state(rows, key)  # after the message: what is there now was whole when it was read
        if found is None or found.status == Status.DELETED:
            raise NotFound("there is no such message in this conversation", got=id_)
        return found

    async def _delete_message(self, rows: R, key: Key, id_: UUID) -> bool:
        conversation = await self._conversation(rows, key, lock=True)
        message = (await rows.messages_by_id(key, (id_,))).get(id_)
        if message is None or message.status == Status.DELETED:
            return False
        await rows.erase_message(key, id_)
        if message.role == Role.USER and conversation.title == title_from(message.content):
            await rows.set_values(key, {"title": None})
        return True

    async def _log(self, rows: R, key: Key, after: int, limit: int) -> list[Message]:
        found = await rows.log(key, after, limit)
        if not found or not rows.reads_visible:
            await self._state(rows, key)
        return found

    async def _siblings(self, rows: R, key: Key, id_: UUID) -> list[Message]:
        message = await self._message(rows, key, id_)
        row = await self._state(rows, key)
        tree, parent_id = Tree.load(row.last_seq, row.runs), message.parent_id
        if parent_id is None:
            return await rows.messages_by_seq(key, tree.runs_from(-1, 0))
        parent = (await rows.known(key, (parent_id,)))[parent_id].position
        seqs = [*tree.runs_from(parent.run, parent.seq), *await rows.next_in_run(key, parent)]
        return await rows.messages_by_seq(key, seqs)

    # --- paths, in a transaction --------------------------------------------------------------------------

    async def _history(self, rows: R, key: Key, leaf: UUID | None, window: Window, *, total: bool) -> Page[Message]:
        return await self._page(rows, key, await self._state(rows, key), leaf, window, total=total)

    async def _page(
        self, rows: R, key: Key, row: StateRow, leaf: UUID | None, window: Window, *, total: bool
    ) -> Page[Message]:
        tree = Tree.load(row.last_seq, row.runs)
        end = await self._leaf(rows, key, tree, row, leaf, window)
        path = tree.path(end.run, end.seq) if end else []
        segments = [segment for segment in window.cut(path) if segment.low <= segment.high]
        found = await self._path_messages(rows, key, segments, window)
        if not rows.shows_whole(found, window, segments):
            await self._state(rows, key)  # it may be being removed since it was read
        length = await self._length(rows, key, end, path) if total else None
        return window.page(found, end, length)

    async def _leaf(
        self, rows: R, key: Key, tree: Tree, row: StateRow, leaf: UUID | None, window: Window
    ) -> Position | None:
        """The end of the path: the cursor's leaf, the one that is named, or the head."""
        seq = row.head_seq
        if window.leaf_seq is not None:
            seq = window.checked_leaf(tree.last_seq)
        elif leaf is not None:
            seq = (await self._message(rows, key, leaf)).seq
        return None if seq is None else tree.find(seq) or await rows.position(key, seq)

    async def _path_messages(self, rows: R, key: Key, segments: Sequence[Segment], window: Window) -> list[Message]:
        """The messages of a page in reading order, and one more if there is more."""
        found: list[Message] = []
        skip = window.offset
        for segment in segments:
            more = await rows.segment(key, segment, window.order, window.limit + 1 - len(found), skip)
            if skip:
                skip = 0 if more else skip - await rows.count_segment(key, segment, deleted=False)
            found += more
            if len(found) > window.limit:
                break
        return found

    async def _length(self, rows: R, key: Key, end: Position | None, path: Sequence[Segment]) -> int:
        deleted = [await rows.count_segment(key, segment, deleted=True) for segment in path]
        return (end.depth if end else 0) - sum(deleted)

    # --- search and removal -------------------------------------------------------------------------------

    async def _search(
        self, rows: R, owner: str, phrases: list[list[str]], below: tuple[Any, ...] | None, limit: int
    ) -> list[Hit]:
        hits: list[Hit] = []
        while True:
            found = await rows.search(owner, phrases, below, limit)
            hits += [hit for hit in found.hits if found.exact or holds(hit.message.content, phrases)]
            if found.rest is None or len(hits) >= limit:
                return hits[:limit]
            below = found.rest

    async def _index(self) -> None:
        """Index what is stored and not indexed, in slices between the writes of others."""
        while self._options.search and await self._write(lambda rows: rows.index_slice(), atomic=False):
            pass

    async def _delete(self, owner: str, key: Key) -> bool:
        hidden = await self._write(lambda rows: self._hide(rows, key))
        if hidden:
            await self._access.forget_replies(owner, key[1])
            await self._purge(key[0])
        return hidden

    async def _hide(self, rows: R, key: Key) -> bool:
        if await rows.hide(key):
            return True
        missing = await self._missing(rows, key[1])
        if isinstance(missing, NotYours):
            raise missing
        return False

    async def _purge(self, owner: str) -> Removed:
        """Remove the hidden conversations of an owner in slices, and count what went."""
        total = Removed()
        while removed := await self._write(lambda rows: rows.purge_slice(owner)):
            total = total.plus(removed)
        return total

    async def _erase(self, owner: str, stored: str) -> ErasureReceipt:
        total, remaining = Removed(), None
        for _ in range(ERASE_ROUNDS):
            while await self._write(lambda rows: rows.hide_slice(stored), atomic=False):
                pass
            total = total.plus(await self._purge(stored))
            remaining = await self._write(lambda rows: rows.remove_owner(stored), atomic=False)
            if remaining is not None:
                break
        else:
            last, remaining = await self._write(lambda rows: self._erase_the_rest(rows, stored), atomic=False)
            total = total.plus(last)
        forgotten = await self._access.forget_owner(owner)
        await self._scrub()
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

    async def _erase_the_rest(self, rows: R, owner: str) -> tuple[Removed, int]:
        """Remove, and count, what others created while an owner was erased; and count what they go on to create."""
        await rows.lock_owner(owner)
        total = Removed()
        while await rows.hide_slice(owner):
            pass
        while removed := await rows.purge_slice(owner):
            total = total.plus(removed)
        remaining = await rows.remove_owner(owner)
        return total, await rows.count(owner, None) if remaining is None else remaining


def _to_search_hit(hit: Hit, phrases: list[list[str]]) -> SearchHit:
    return SearchHit(message=hit.message, title=hit.title, snippet=snippet(hit.message.content, phrases))
