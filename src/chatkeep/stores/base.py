"""The ports over rows: arguments, pages, search. Written once for every database."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import ClassVar
from uuid import UUID

from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import InvalidInput, NotFound, SchemaMismatch
from chatkeep.ids import foreign_id, namespace_of, new_id, valid_id
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ErasureReceipt,
    ImportedConversation,
    ImportedMessage,
    ImportReceipt,
    Message,
    MessageChange,
    NewConversation,
    NewMessage,
    Page,
    SearchHit,
)
from chatkeep.store import ListOrder, Order
from chatkeep.stores.append import check, listed, size_of, with_ids
from chatkeep.stores.documents import DocumentStore
from chatkeep.stores.hits import Below, HitReader
from chatkeep.stores.imports import Import
from chatkeep.stores.process import PROCESS
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.stores.rows import Found, Key, Rows, Within
from chatkeep.stores.slices import PageSize
from chatkeep.stores.window import (
    ListFilter,
    Window,
    list_cursor,
    list_place,
    list_scope,
    valid_labels,
    valid_page,
    valid_time,
)
from chatkeep.values import clean_text, valid_json, valid_owner
from chatkeep.words import parse_query

logger = logging.getLogger(__name__)

LARGE_APPEND_CHARS = 256 << 10
"""Longer appends of one owner are made one at a time: 8 MB take a database a tenth of a second, and the
others' writes come between."""


NEAR_OFFSET = 1_000
"""Rows that a page may skip without waiting for the owner's turn to read much: it takes less than a millisecond."""


class RowStore[R: Rows](DocumentStore[R]):
    """Conversations over the rows of a database, used from one event loop."""

    hit_place: ClassVar[tuple[type, ...]] = (int, str, int)
    """The types in the cursor of a search: time, conversation and seq of a message."""

    # --- conversations ------------------------------------------------------------------------------------

    async def create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        valid_json("metadata", new.metadata, self._metadata_limits)
        key = self._owner(owner), new.id or new_id()
        return await self._create(key, new) or await self._after_removal(key[0], lambda: self._create(key, new))

    async def get_or_create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        valid_json("metadata", new.metadata, self._metadata_limits)
        key = self._owner(owner), new.id or new_id()
        if new.external_id is not None:
            if new.id is not None:
                raise InvalidInput("get-or-create makes the id of the external_id; leave one of them out", got=new.id)
            key = key[0], foreign_id(namespace_of(owner), new.external_id)[0]
        with self._writes.of_call():
            found = await self._read(lambda rows: self._found(rows, key, new))
            found = found or await self._get_or_create(key, new)
            return found or await self._after_removal(key[0], lambda: self._get_or_create(key, new))

    async def get_conversation(self, owner: str, conversation_id: UUID | str) -> Conversation:
        key = self._key(owner, conversation_id)
        return await self._read(lambda rows: self._conversation(rows, key))

    async def find_conversation(self, owner: str, external_id: str) -> Conversation:
        stored, wanted = self._owner(owner), clean_text(external_id)
        id_, _ = foreign_id(namespace_of(owner), wanted)
        found = await self._read(lambda rows: self._by_external_id(rows, (stored, id_), wanted))
        if found is None:
            raise NotFound("there is no conversation with this external_id", got=external_id)
        return found

    async def list_conversations(
        self,
        owner: str,
        *,
        context_id: str | None = None,
        project_id: UUID | str | None = None,
        external_id: str | None = None,
        labels: Sequence[str] = (),
        updated_after: datetime | None = None,
        updated_before: datetime | None = None,
        order: ListOrder = "updated",
        limit: int = 10,
        cursor: str | None = None,
        offset: int = 0,
        total: bool = False,
    ) -> Page[Conversation]:
        valid_page(limit, offset, cursor)
        which = ListFilter(
            None if context_id is None else clean_text(context_id),
            None if project_id is None else valid_id(project_id),
            None if external_id is None else clean_text(external_id),
            valid_time("updated_after", updated_after),
            valid_time("updated_before", updated_before),
            *valid_labels(labels),
        )
        scope = list_scope(valid_owner(owner), which, order)
        after = None if cursor is None else list_place(cursor, scope, order)
        stored = self._owner(owner)

        async def read(rows: R, room: int) -> Page[Conversation]:
            counted = await rows.count(stored, which) if total else None
            narrowed = await self._narrowed(rows, stored, which)
            found, cut = await rows.listed(stored, narrowed, order, after, PageSize(limit + 1, room), offset)
            goes_on = cut or len(found) > limit
            following = list_cursor(found[:limit][-1], scope, order) if goes_on else None
            return Page(items=found[:limit], total=counted, next=following)

        much = total or offset > NEAR_OFFSET or which.is_costly
        return await self._read_page(stored, limit, read, much=much)

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
        checking = partial(check, messages, self._options, self._metadata_limits)
        if size_of(messages) <= LARGE_APPEND_CHARS:
            return await self._append(key, messages, checking(), expected_seq)
        with self._writes.of_call():
            async with self._large_appends.of(key[0]):
                return await self._append(key, messages, await self._texts.apart(checking), expected_seq)

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
            page = await self._history(rows, key, leaf, window, room, total=total)
            return await self._page_so_far(rows, key, page)

        return await self._read_page(key[0], limit, read, much=total or offset > NEAR_OFFSET)

    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        valid_page(limit, 0, None)
        key = self._key(owner, conversation_id)
        return await self._read(lambda rows: self._log_so_far(rows, key, max(0, min(after, 2**63 - 1)), limit))

    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        return await self._read(lambda rows: self._message_so_far(rows, key, id_))

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
            following = None if last_seq is None else encode_cursor("siblings", scope, last_seq)
            return await self._page_so_far(rows, key, Page(items=found, next=following))

        return await self._read_page(key[0], limit, read)

    async def update_message(
        self, owner: str, conversation_id: UUID | str, message_id: UUID | str, change: MessageChange
    ) -> Message:
        key, id_ = self._key(owner, conversation_id), valid_id(message_id)
        with self._writes.of_call():
            async with self._changes.of(key[0]):
                return await self._write_to(key, lambda rows: self._update_message(rows, key, id_, change))

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
        valid_json("metadata", conversation.metadata, self._metadata_limits)
        fingerprints = check(messages, self._options, self._metadata_limits) if listed(messages) else []
        given = Import(conversation, with_ids(messages), fingerprints, update)
        if conversation.project_id is not None:  # what is imported would go with what is left of a deleted one
            await self._finish_removal(ProjectKey(key[0], conversation.project_id))
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
        indexing = await self._migrate_to(revision)
        if indexing is not None:
            await indexing

    async def _migrate_at_opening(self) -> None:
        await self._migrate_to("head")

    async def _migrate_to(self, revision: str) -> asyncio.Task[None] | None:
        """Migrate, and return what indexes messages anew in the background, if they have to be."""
        self._open()
        await self._migrate(revision)
        if revision in ("head", self.newest_revision):
            for owner in await self._read(lambda rows: rows.owners_with_remains()):
                await self._purge(owner)
                await self._purge_projects(owner)
                await self._remove_all_rubbish(owner)
            await self._index()
            return await self._begin_rule()
        return None

    async def schema_revision(self) -> str | None:
        self._open()
        return (await self._schema()).revision

    async def ping(self) -> None:
        self._open()
        schema = await self._probe()
        if not schema.serves(self.revisions):
            raise SchemaMismatch(
                f"the schema must be at revision {self.newest_revision}; run `chatkeep db upgrade`", got=schema.revision
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

    # --- conversations that may be being removed ----------------------------------------------------------

    async def _create(self, key: Key, new: NewConversation) -> Conversation | None:
        """Create a conversation, or find it; None while one with this id is being removed."""
        return await self._write(lambda rows: self._create_in(rows, key, new), atomic=False)

    async def _get_or_create(self, key: Key, new: NewConversation) -> Conversation | None:
        return await self._write(lambda rows: self._get_or_create_in(rows, key, new), atomic=False)
