"""The store in a SQLite file: the embedded default."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import apsw

from chatkeep.access import Access
from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import ChatkeepError, InvalidInput, NotFound, NotYours, SchemaMismatch
from chatkeep.ids import valid_id
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
from chatkeep.store import ListOrder, Order, Store, StoreOptions, file_path
from chatkeep.stores.access_sql import Row, SqlAccess
from chatkeep.stores.append import Known, Placed, State, check, ids_to_look_up, plan
from chatkeep.stores.sqlite import rows
from chatkeep.stores.sqlite.database import SqliteFile, Transaction
from chatkeep.stores.window import Window, list_scope, valid_page
from chatkeep.tree import Position, Tree
from chatkeep.values import clean_text, dump_json, from_micros, merge_patch, now, to_micros, valid_owner
from chatkeep.words import query_phrases


class SqliteStore(Store):
    """Conversations in one SQLite file, used from one event loop; several processes may use the same file."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        path = file_path(url)
        if path in ("", ":memory:"):
            raise InvalidInput("a SQLite store needs a file, such as sqlite:///chat.db; in memory is memory://")
        self._file = SqliteFile(
            Path(path).expanduser(),
            synchronous=options.synchronous,
            write_timeout=options.write_timeout,
            readers=options.readers,
            committed=self._committed,
        )
        self._access = SqliteAccess(self._file)
        self._background: set[asyncio.Task[Any]] = set()
        self._indexing: asyncio.Task[None] | None = None

    @property
    def access(self) -> Access:
        return self._access

    # --- conversations ------------------------------------------------------------------------------------

    async def create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        return await self._file.write(partial(rows.create, valid_owner(owner), new), holds=True)

    async def get_or_create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        return await self._file.write(partial(rows.get_or_create, valid_owner(owner), new), holds=True)

    async def get_conversation(self, owner: str, conversation_id: UUID | str) -> Conversation:
        return await self._file.read(partial(self._get, valid_owner(owner), valid_id(conversation_id)))

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
        return await self._file.read(
            partial(rows.list_conversations, owner, context_id, order, scope, limit, cursor, offset, total=total)
        )

    async def update_conversation(
        self, owner: str, conversation_id: UUID | str, change: ConversationChange
    ) -> Conversation:
        key = valid_owner(owner), valid_id(conversation_id)
        return await self._file.write(lambda transaction: self._update(transaction, *key, change))

    async def delete_conversation(self, owner: str, conversation_id: UUID | str) -> bool:
        key = valid_owner(owner), valid_id(conversation_id)
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
        key = valid_owner(owner), valid_id(conversation_id)
        fingerprints = check(messages, self._options.max_content_chars)
        size = sum(len(message.content) for message in messages)
        stored = await self._file.write(
            lambda transaction: self._append(transaction, *key, messages, fingerprints, expected_seq),
            size=size,
            holds=True,
        )
        if self._options.search and _are_imported(messages):
            self._start_indexing()
        return stored

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
        key = valid_owner(owner), valid_id(conversation_id)
        leaf = None if leaf is None else valid_id(leaf)
        window = Window.of(*key, leaf, limit, before, after, order, cursor, offset)
        return await self._file.read(lambda connection: self._history(connection, *key, leaf, window, total=total))

    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        valid_page(limit, 0, None)
        key = valid_owner(owner), valid_id(conversation_id)

        def query(connection: apsw.Connection) -> list[Message]:
            self._conversation(connection, *key)
            return rows.log(connection, *key, after, limit)

        return await self._file.read(query)

    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        key = valid_owner(owner), valid_id(conversation_id), valid_id(message_id)
        return await self._file.read(lambda connection: self._message(connection, *key))

    async def siblings(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> list[Message]:
        key = valid_owner(owner), valid_id(conversation_id), valid_id(message_id)
        return await self._file.read(lambda connection: self._siblings(connection, *key))

    async def delete_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        key = valid_owner(owner), valid_id(conversation_id), valid_id(message_id)
        return await self._file.write(lambda transaction: self._delete_message(transaction, *key))

    async def search_messages(
        self, owner: str, query: str, *, limit: int = 20, cursor: str | None = None
    ) -> Page[SearchHit]:
        valid_page(limit, 0, None)
        if not self._options.search:
            raise InvalidInput("this store was opened with search=off; open it without that to search")
        phrases = query_phrases(query)
        scope = (valid_owner(owner), query)
        below = decode_cursor(cursor, "search", scope, int)[0] if cursor else 2**63 - 1
        hits = await self._file.read(partial(rows.search, owner, phrases, below, limit + 1))
        following = encode_cursor("search", scope, hits[limit - 1][0]) if len(hits) > limit else None
        return Page(items=[hit for _, hit in hits[:limit]], next=following)

    # --- the store as a whole -----------------------------------------------------------------------------

    async def erase_owner(self, owner: str) -> ErasureReceipt:
        valid_owner(owner)
        return cast("ErasureReceipt", await self._in_background(self._erase(owner)))

    def state(self) -> Mapping[str, int]:
        return {"log_bytes": self._file.log_bytes}

    async def migrate(self, revision: str = "head") -> None:
        await self._file.migrate(revision)
        if revision in ("head", HEAD):
            for owner in await self._file.read(rows.owners_with_remains):
                await self._purge(owner)
            if self._options.search:
                await self._index()

    async def schema_revision(self) -> str | None:
        return await self._file.revision()

    async def ping(self) -> None:
        revision = await self._file.revision()
        if revision != HEAD:
            raise SchemaMismatch(f"the schema must be at revision {HEAD}; run `chatkeep db upgrade`", got=revision)

    async def aclose(self) -> None:
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._file.aclose()

    async def _index(self) -> None:
        """Index what is stored and not indexed, in slices between the writes of others."""
        while await self._file.write(rows.index_slice):
            pass

    def _start_indexing(self) -> None:
        """Let imported messages be indexed while the next ones are on their way."""
        if self._indexing is None or self._indexing.done():
            self._indexing = asyncio.create_task(self._index(), name="chatkeep-index")
            self._background.add(self._indexing)
            self._indexing.add_done_callback(self._background.discard)

    async def _in_background(self, work: Coroutine[object, object, object]) -> object:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return await asyncio.shield(task)

    # --- jobs and queries that run in the file's threads --------------------------------------------------

    def _conversation(self, connection: apsw.Connection, owner: str, id_: UUID) -> rows.Thread:
        """The row that appends and histories begin with. Raises NotFound or NotYours."""
        row = rows.thread(connection, owner, id_)
        if row is None:
            raise self._missing(connection, id_)
        return row

    def _missing(self, connection: apsw.Connection, id_: UUID) -> ChatkeepError:
        """Why there is no row: nobody has it, or, where the store may say so, somebody else does."""
        if not self._options.hide_foreign and rows.exists_elsewhere(connection, id_):
            return NotYours("this conversation belongs to somebody else", got=id_)
        return NotFound("there is no such conversation", got=id_)

    def _get(self, owner: str, id_: UUID, connection: apsw.Connection) -> Conversation:
        found = rows.conversation(connection, owner, id_)
        if found is None:
            raise self._missing(connection, id_)
        return found

    def _update(self, transaction: Transaction, owner: str, id_: UUID, change: ConversationChange) -> Conversation:
        connection = transaction.connection
        now_stored = self._get(owner, id_, connection)
        new: dict[str, Any] = {}
        if "title" in change.model_fields_set:
            new["title"] = change.title
        if "metadata" in change.model_fields_set:
            patched = {} if change.metadata is None else merge_patch(now_stored.metadata, change.metadata)
            new["metadata"] = dump_json(patched)
        if "head_id" in change.model_fields_set:
            head = None if change.head_id is None else self._message(connection, owner, id_, change.head_id)
            new["head_seq"], new["head_id"] = (head.seq, head.id.bytes) if head else (None, None)
        if new:
            rows.set_values(connection, owner, id_, new)
        return self._get(owner, id_, connection)

    def _hide(self, transaction: Transaction, owner: str, id_: UUID) -> bool:
        """Make a conversation invisible; its rows are removed next."""
        try:
            self._conversation(transaction.connection, owner, id_)
        except NotFound:
            return False
        rows.set_values(transaction.connection, owner, id_, {"deleted_at": to_micros(transaction.moment)})
        return True

    async def _delete(self, owner: str, id_: UUID) -> bool:
        hidden = await self._file.write(lambda transaction: self._hide(transaction, owner, id_))
        if hidden:
            await self._purge(owner)
        return hidden

    async def _purge(self, owner: str) -> tuple[int, int]:
        """Remove the hidden conversations of an owner in slices. Returns how many (conversations, messages)."""
        conversations = messages = 0
        while removed := await self._file.write(partial(rows.purge_slice, owner)):
            conversations += removed[0]
            messages += removed[1]
        return conversations, messages

    async def _erase(self, owner: str) -> ErasureReceipt:
        conversations = messages = 0
        before = await self._file.read(partial(rows.count_indexed, owner))
        remaining = None
        while remaining is None:
            await self._file.write(partial(rows.hide_all, owner))
            purged = await self._purge(owner)
            conversations, messages = conversations + purged[0], messages + purged[1]
            remaining = await self._file.write(partial(rows.remove_owner, owner))
        left = await self._file.read(partial(rows.count_indexed, owner))
        forgotten = await self._access.forget_owner(owner)
        # The index marks what is deleted and drops it when it merges; pages and the log keep copies.
        if await self._file.write(partial(rows.merge_index, -rows.MERGE_PAGES)):
            while await self._file.write(partial(rows.merge_index, rows.MERGE_PAGES)):
                pass
        await self._file.scrub()
        return ErasureReceipt(
            owner_id=owner,
            conversations=conversations,
            messages=messages,
            search_entries=before - left,
            api_keys=forgotten.api_keys,
            requests=forgotten.requests,
            remaining=remaining + left,
            erased_at=now(),
        )

    def _append(
        self,
        transaction: Transaction,
        owner: str,
        id_: UUID,
        messages: Sequence[NewMessage],
        fingerprints: Sequence[bytes],
        expected_seq: int | None,
    ) -> list[Message]:
        if (owner, id_) in transaction.held_of:
            transaction.write_held()
        connection = transaction.connection
        state, known = self._append_state(connection, owner, id_, messages)
        results = plan(id_, state, messages, fingerprints, known, transaction.moment, expected_seq)
        new = {result.message.id: result for result in results if isinstance(result, Placed)}
        if new:
            self._insert(transaction, owner, list(new.values()), imported=_are_imported(messages))
            rows.save_state(connection, owner, id_, state)
        stored = rows.messages_by_id(connection, owner, id_, [id_ for id_ in results if isinstance(id_, UUID)])
        return [r.message if isinstance(r, Placed) else stored[r] for r in results]

    def _append_state(
        self, connection: apsw.Connection, owner: str, id_: UUID, messages: Sequence[NewMessage]
    ) -> tuple[State, dict[UUID, Known]]:
        row = self._conversation(connection, owner, id_)
        tree = Tree.load(row.last_seq, row.runs)
        known = rows.known(connection, owner, id_, ids_to_look_up(messages)) if row.last_seq else {}
        head = None if row.head_seq is None else rows.position(connection, owner, id_, tree, row.head_seq)
        head_id = None if row.head_id is None else rows.uuid(row.head_id)
        return State(tree, head, head_id, row.title, from_micros(row.updated_at)), known

    def _insert(self, transaction: Transaction, owner: str, new: list[Placed], *, imported: bool) -> None:
        rids = [transaction.next_rid() for _ in new]
        rows.insert_messages(transaction, owner, rids, new)
        if self._options.search and not imported:
            contents = (placed.message.content for placed in new)
            rows.index(transaction, owner, zip(rids, contents, strict=True))
        else:
            rows.mark_unindexed(transaction, rids[0])

    def _history(
        self,
        connection: apsw.Connection,
        owner: str,
        id_: UUID,
        leaf: UUID | None,
        window: Window,
        *,
        total: bool,
    ) -> Page[Message]:
        row = self._conversation(connection, owner, id_)
        tree = Tree.load(row.last_seq, row.runs)
        end = self._leaf(connection, owner, id_, tree, row.head_seq, leaf, window)
        path = tree.path(end.run, end.seq) if end else []
        found = rows.path_messages(connection, owner, id_, window.cut(path), window)
        length = None
        if total:
            length = (end.depth if end else 0) - rows.count_deleted(connection, owner, id_, path)
        return window.page(found, end, length)

    def _leaf(
        self,
        connection: apsw.Connection,
        owner: str,
        id_: UUID,
        tree: Tree,
        head_seq: int | None,
        leaf: UUID | None,
        window: Window,
    ) -> Position | None:
        """Where the path ends: at the cursor's leaf, at the one that is named, or at the head."""
        if window.leaf_seq is not None:
            return rows.position(connection, owner, id_, tree, window.checked_leaf(tree.last_seq))
        if leaf is not None:
            return rows.position(connection, owner, id_, tree, self._message(connection, owner, id_, leaf).seq)
        return None if head_seq is None else rows.position(connection, owner, id_, tree, head_seq)

    def _siblings(self, connection: apsw.Connection, owner: str, id_: UUID, message_id: UUID) -> list[Message]:
        row = self._conversation(connection, owner, id_)
        message = self._message(connection, owner, id_, message_id)
        tree = Tree.load(row.last_seq, row.runs)
        if message.parent_id is None:
            seqs = tree.runs_from(-1, 0)
        else:
            parent = rows.known(connection, owner, id_, {message.parent_id})[message.parent_id].position
            seqs = tree.runs_from(parent.run, parent.seq)
            seqs += rows.next_in_run(connection, owner, id_, parent)
        return rows.messages_by_seq(connection, owner, id_, sorted(seqs))

    def _message(self, connection: apsw.Connection, owner: str, id_: UUID, message_id: UUID) -> Message:
        self._conversation(connection, owner, id_)
        found = rows.message_by_id(connection, owner, id_, message_id)
        if found is None or found.status == Status.DELETED:
            raise NotFound("there is no such message in this conversation", got=message_id)
        return found

    def _delete_message(self, transaction: Transaction, owner: str, id_: UUID, message_id: UUID) -> bool:
        connection = transaction.connection
        self._conversation(connection, owner, id_)
        found = rows.message_by_id(connection, owner, id_, message_id)
        if found is None or found.status == Status.DELETED:
            return False
        rows.erase_message(connection, owner, id_, message_id)
        return True


class SqliteAccess(SqlAccess):
    """API keys and replies in the same file."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def _read(self, statement: str, *values: object) -> Sequence[Row]:
        return await self._file.read(lambda connection: rows.fetch(connection, statement, values))

    async def _write(self, statement: str, *values: object) -> Sequence[Row]:
        return await self._file.write(lambda transaction: rows.fetch(transaction.connection, statement, values))

    async def _rename_conversations(self, old: str, new: str) -> int:
        count = await self._file.write(partial(rows.rename_owner, valid_owner(old), valid_owner(new)))
        while await self._file.write(rows.index_slice):
            pass
        return count


def _are_imported(messages: Sequence[NewMessage]) -> bool:
    """Imported messages are indexed after they are stored: an import waits for one, then for the other."""
    return isinstance(messages[0], ImportedMessage)
