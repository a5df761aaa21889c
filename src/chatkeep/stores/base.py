"""The ports over rows: arguments, pages, search, removal. Written once for every database."""

import asyncio
import logging
import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, ClassVar
from uuid import UUID

from chatkeep.access import Access
from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import ChatkeepError, InvalidInput, NotYours, SchemaMismatch, StoreUnavailable
from chatkeep.ids import new_id, valid_id
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ErasureReceipt,
    ImportedConversation,
    ImportedMessage,
    ImportReceipt,
    Message,
    NewConversation,
    NewMessage,
    Page,
    SearchHit,
)
from chatkeep.store import ListOrder, Order, StoreOptions
from chatkeep.stores.append import check, listed, size_of, with_ids
from chatkeep.stores.fairness import FairSemaphore
from chatkeep.stores.hits import Below, HitReader
from chatkeep.stores.imports import Import, Imports
from chatkeep.stores.locks import KeyedLocks
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.process import PROCESS, check_process
from chatkeep.stores.rows import Found, Key, PageSize, Removed, Rows, Within, WordIndex, Work
from chatkeep.stores.time_limit import TimeLimit
from chatkeep.stores.window import Window, list_cursor, list_place, list_scope, valid_page
from chatkeep.values import clean_text, now, valid_metadata, valid_owner
from chatkeep.words import RULE, parse_query

logger = logging.getLogger(__name__)

ERASE_ROUNDS = 3
"""How often an erasure begins again because others created conversations meanwhile, before it locks them out."""

INDEXED_AT_ONCE = 100
"""Ids of conversations that are indexed anew before that is noted: at most so many once more after a crash."""

AFTER_OTHERS_SECONDS = (2.0, 10.0)
"""Bounds of the random pause after another process was found to do the same."""

LARGE_APPEND_CHARS = 256 << 10
"""Longer appends of one owner are made one at a time: 8 MB take a database a tenth of a second, and the
others' writes come between."""

SMALL_PAGE_BYTES = 2 << 20
"""Bytes of a page that is read without waiting for the owner's turn to read much. Others waited 2 s while 64 clients of
one owner read pages of 8 MiB."""

NEAR_OFFSET = 1_000
"""Rows that a page may skip without waiting for the owner's turn to read much: it takes less than a millisecond."""


class RowStore[R: Rows](Imports[R]):
    """Conversations over the rows of a database, used from one event loop."""

    hit_place: ClassVar[tuple[type, ...]] = (int, str, int)
    """The types in the cursor of a search: time, conversation and seq of a message."""

    _access: Access

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._reads, self._writes = TimeLimit(options.read_timeout), TimeLimit(options.write_timeout)
        self._texts = LongTexts()
        self._heavy = FairSemaphore(self._most_heavy_reads())
        """Who may read much at a time."""
        self._large_appends = FairSemaphore(2)
        self._changes: KeyedLocks[str] = KeyedLocks()
        """One owner's changes are made one at a time: to merge a mebibyte of metadata takes a database's writer some
        50 ms, for a request of a few bytes, and the others' writes come between."""
        self._erasures: KeyedLocks[str] = KeyedLocks()
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

    async def _read_much[T](self, owner: str, work: Work[R, T]) -> T:
        """Run `work`, which may read much, when it is the owner's turn."""
        with self._reads.of_call():
            async with self._heavy.of(owner):
                return await self._read(work)

    async def _read_page[P: Page[Any]](
        self, owner: str, limit: int, read: Callable[[R, int], Coroutine[Any, Any, P]], *, much: bool = False
    ) -> P:
        """Read a page, given how many bytes it may have; if that is large, when it is the owner's turn to read much."""
        most = self._options.max_page_bytes
        small = min(most, SMALL_PAGE_BYTES)
        if not much:
            page = await self._read(lambda rows: read(rows, small))
            if page.next is None or len(page.items) == limit or small == most:
                return page
        return await self._read_much(owner, lambda rows: read(rows, most))

    def _most_heavy_reads(self) -> int:
        """How many may read much at a time: half of the connections, so that the others are free for short calls."""
        return self._options.pool_size // 2

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

    async def _probe(self) -> str | None:
        """The revision, without waiting for what others do, if the database has a way to."""
        return await self._revision()

    @abstractmethod
    async def _finish(self) -> None:
        """Finish the writes that were taken. It is cancelled if that takes too long."""

    @abstractmethod
    async def _close(self) -> None:
        """Close every connection within a second, whatever it is doing. Idempotent."""

    def _stored_owner(self, owner: str) -> str:
        """The owner as the database stores it."""
        return owner

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

        async def read(rows: R, room: int) -> Page[Conversation]:
            counted = await rows.count(stored, context_id) if total else None
            found, cut = await rows.listed(stored, context_id, order, after, PageSize(limit + 1, room), offset)
            goes_on = cut or len(found) > limit
            following = list_cursor(found[:limit][-1], scope, order) if goes_on else None
            return Page(items=found[:limit], total=counted, next=following)

        return await self._read_page(stored, limit, read, much=total or offset > NEAR_OFFSET)

    async def update_conversation(
        self, owner: str, conversation_id: UUID | str, change: ConversationChange
    ) -> Conversation:
        key = self._key(owner, conversation_id)
        with self._writes.of_call():
            async with self._changes.of(key[0]):
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
        fingerprints = check(messages, self._options, self._metadata_limits)
        if size_of(messages) <= LARGE_APPEND_CHARS:
            return await self._append(key, messages, fingerprints, expected_seq)
        with self._writes.of_call():
            async with self._large_appends.of(key[0]):
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

        async def read(rows: R, room: int) -> Page[Message]:
            return await self._history(rows, key, leaf, window, room, total=total)

        return await self._read_page(key[0], limit, read, much=total or offset > NEAR_OFFSET)

    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        valid_page(limit, 0, None)
        key = self._key(owner, conversation_id)
        return await self._read(lambda rows: self._log(rows, key, max(0, min(after, 2**63 - 1)), limit))

    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._read(lambda rows: self._message(rows, key, id_))

    async def siblings(
        self,
        owner: str,
        conversation_id: UUID | str,
        message_id: UUID | str,
        *,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Message]:
        valid_page(limit, 0, cursor)
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        scope = (owner, key[1], id_)
        (after,) = (0,) if cursor is None else decode_cursor(cursor, "siblings", scope, int)

        async def read(rows: R, room: int) -> Page[Message]:
            found, last_seq = await self._siblings(rows, key, id_, PageSize(limit, room), after)
            return Page(items=found, next=None if last_seq is None else encode_cursor("siblings", scope, last_seq))

        return await self._read_page(key[0], limit, read)

    async def delete_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._write_to(key, lambda rows: self._delete_message(rows, key, id_))

    async def search_messages(
        self,
        owner: str,
        query: str,
        *,
        conversation_id: UUID | str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page[SearchHit]:
        valid_page(limit, 0, None)
        if not self._options.search:
            raise InvalidInput("this store was opened with search=off; open it without that to search")
        reader = HitReader(self._texts, parse_query(query))
        conversation = () if conversation_id is None else (valid_id(conversation_id),)
        scope = (valid_owner(owner), query, *conversation)
        below = tuple(decode_cursor(cursor, "search", scope, *self.hit_place)) if cursor else None
        stored = self._owner(owner)

        async def search(rows: R, below: Below, size: PageSize) -> Found:
            within = [Within(id_, (await self._state(rows, (stored, id_))).last_seq) for id_ in conversation]
            return await rows.search(stored, reader.query, below, size, *within)

        async def find(below: Below, size: PageSize) -> Found:
            return await self._read(lambda rows: search(rows, below, size))

        with self._reads.of_call():
            async with self._heavy.of(stored):
                hits, goes_on = await reader.page(find, below, limit, self._options.max_page_bytes)
                items = [await reader.shown(hit) for hit in hits]
        following = encode_cursor("search", scope, *hits[-1].place) if goes_on else None
        return Page(items=items, next=following)

    # --- whole conversations ------------------------------------------------------------------------------

    async def import_conversation(
        self,
        owner: str,
        conversation: ImportedConversation,
        messages: Sequence[ImportedMessage] = (),
        *,
        update: bool = False,
    ) -> ImportReceipt:
        key = self._owner(owner), conversation.id or new_id()
        valid_metadata(conversation.metadata, self._metadata_limits)
        fingerprints = check(messages, self._options, self._metadata_limits) if listed(messages) else []
        given = Import(conversation, with_ids(messages), fingerprints, update)
        return await self._import_in(key, given) or await self._after_removal(
            key[0], lambda: self._import_in(key, given)
        )

    async def _import_in(self, key: Key, given: Import) -> ImportReceipt | None:
        """Import a conversation in a transaction of its own; None while one with this id is being removed."""
        return await self._write_to(key, lambda rows: self._import(rows, key, given))

    async def export_conversation(self, owner: str, conversation_id: UUID | str) -> tuple[ImportedConversation, int]:
        key = self._key(owner, conversation_id)
        return await self._read(lambda rows: self._export(rows, key))

    async def export_messages(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[ImportedMessage]:
        valid_page(limit, 0, None)
        key = self._key(owner, conversation_id)
        return await self._read(lambda rows: self._export_messages(rows, key, max(0, min(after, 2**63 - 1)), limit))

    # --- the store as a whole -----------------------------------------------------------------------------

    async def erase_owner(self, owner: str) -> ErasureReceipt:
        return await self._in_background(self._erase_alone(owner, self._owner(owner)))

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
            await self._begin_rule()

    async def schema_revision(self) -> str | None:
        self._open()
        return await self._revision()

    async def ping(self) -> None:
        self._open()
        revision = await self._probe()
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
            self._texts.close()
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
            task.add_done_callback(_log_failure)
            raise

    def _begin[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # --- conversations that may be being removed ----------------------------------------------------------

    async def _after_removal[T: (Conversation, ImportReceipt)](
        self, owner: str, create: Callable[[], Awaitable[T | None]]
    ) -> T:
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

    async def _get_or_create(self, key: Key, new: NewConversation) -> Conversation | None:
        return await self._write(lambda rows: self._get_or_create_in(rows, key, new), atomic=False)

    # --- search and removal -------------------------------------------------------------------------------

    async def _index(self) -> None:
        """Index what is stored and not indexed, in slices between the writes of others."""
        while self._options.search and await self._write(lambda rows: rows.index_slice(), atomic=False):
            pass

    async def _begin_rule(self) -> None:
        """Index anew in the background what an older rule of words has indexed; a new database notes today's rule."""
        if self._options.search and (await self._read(lambda rows: rows.word_index())).rule < RULE:
            is_empty = not await self._read(lambda rows: rows.keys_above(None, 1))
            await self._index_again() if is_empty else self._begin(self._index_again())

    async def _index_again(self) -> None:
        """Index anew what an older rule of words has indexed. If it is cut off, the next process goes on."""
        try:
            while self._options.search and await self._index_some_again():
                pass
        except ChatkeepError as error:
            logger.warning("messages are indexed anew when the store is opened again: %s", error)

    async def _index_some_again(self) -> bool:
        """Index some conversations by today's rule; False if all are, or if another version has a newer rule."""
        before = await self._read(lambda rows: rows.word_index())
        if before.rule >= RULE or (before.target or RULE) > RULE:
            return False
        place = before.place if before.target == RULE else None
        keys = await self._read(lambda rows: rows.keys_above(place, INDEXED_AT_ONCE))
        for key in keys:
            await self._index_conversation_again(key)
        after = before._replace(target=RULE, place=keys[-1][1]) if keys else WordIndex(RULE)
        if place is None or not keys:
            logger.info("messages are %s indexed by rule %d of words", "being" if keys else "all", RULE)
        if not await self._write(lambda rows: rows.set_word_index(before, after), atomic=False):
            await asyncio.sleep(random.uniform(*AFTER_OTHERS_SECONDS))  # noqa: S311 - not a secret
        return True

    async def _index_conversation_again(self, key: Key) -> None:
        last: int | None = 0

        async def index(rows: R) -> int | None:
            return await rows.index_again(key, last or 0)

        while last is not None:
            self._open()  # raises when the store is closed: what is not done must not be noted as done
            last = await self._write_to(key, index)

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

    async def _erase_alone(self, owner: str, stored: str) -> ErasureReceipt:
        """One erasure of an owner at a time: the next one finds little to do."""
        async with self._erasures.of(stored):
            return await self._erase(owner, stored)

    async def _erase(self, owner: str, stored: str) -> ErasureReceipt:
        total, remaining = Removed(), None
        for _ in range(ERASE_ROUNDS):
            more = True
            while more:  # what is hidden is removed at once: hiding the next would read over it
                more = await self._write(lambda rows: rows.hide_slice(stored), atomic=False)
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


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Say why something failed of which nobody waits for the end any more."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.warning("a removal failed after its caller had left: %s", error)
