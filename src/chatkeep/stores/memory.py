"""The store in memory: for tests of applications, and for conversations that need not outlive the process.

It keeps the whole contract, durability apart. Every method runs without an await inside, so that nothing
can come between its steps.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from uuid import UUID

from chatkeep.access import IDS_CLASH, KEPT, LEASE, Access, ApiKey, Forgotten, Reply, judged
from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, NotYours, StoreUnavailable
from chatkeep.ids import new_id, valid_id
from chatkeep.migrations import HEAD
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ErasureReceipt,
    ImportedConversation,
    Message,
    NewConversation,
    NewMessage,
    Page,
    SearchHit,
    Status,
)
from chatkeep.store import ListOrder, Order, Store, StoreOptions, file_path
from chatkeep.stores.append import Known, Placed, State, check, ids_to_look_up, plan
from chatkeep.stores.window import Window, list_scope, valid_page
from chatkeep.tree import Position, Segment, Tree
from chatkeep.values import clean_text, merge_patch, now, to_micros, valid_owner
from chatkeep.words import holds, query_phrases, snippet


@dataclass
class _Entry:
    """A message with its place, and its number in the order in which this store stored messages."""

    message: Message
    position: Position
    fingerprint: bytes
    number: int


@dataclass
class _Request:
    """A request that was sent with a key."""

    fingerprint: bytes
    began: datetime
    reply: Reply | None = None


@dataclass
class _Thread:
    """A conversation with its messages, the one with seq n at n - 1."""

    conversation: Conversation
    fingerprint: bytes
    tree: Tree = field(default_factory=Tree)
    head: Position | None = None
    log: list[_Entry] = field(default_factory=list)
    by_id: dict[UUID, _Entry] = field(default_factory=dict)


class MemoryAccess(Access):
    """API keys and replies in this process's memory."""

    def __init__(self, threads: dict[str, dict[UUID, _Thread]]) -> None:
        self._threads = threads
        self._keys: dict[str, tuple[ApiKey, bytes]] = {}
        self._requests: dict[tuple[str, str], _Request] = {}

    async def create_key(self, key: ApiKey, secret_hash: bytes) -> None:
        if key.id in self._keys:
            raise Conflict("there is an API key with this id", got=key.id)
        self._keys[key.id] = key, secret_hash

    async def find_key(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        return self._keys.get(key_id)

    async def list_keys(self, owner: str | None = None) -> list[ApiKey]:
        keys = [key for key, _ in self._keys.values() if owner in (None, key.owner_id)]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    async def revoke_key(self, key_id: str) -> bool:
        return self._keys.pop(key_id, None) is not None

    async def key_used(self, key_id: str, moment: datetime) -> None:
        if key_id in self._keys:
            key, secret_hash = self._keys[key_id]
            self._keys[key_id] = key.model_copy(update={"last_used_at": moment}), secret_hash

    async def begin_request(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        moment = now()
        self._requests = {place: request for place, request in self._requests.items() if request.began + KEPT > moment}
        known = self._requests.get((owner, key))
        if known is None or (known.reply is None and known.fingerprint == fingerprint and known.began + LEASE < moment):
            self._requests[owner, key] = _Request(fingerprint, moment)
            return None
        return judged(known.fingerprint, known.reply, fingerprint)

    async def finish_request(self, owner: str, key: str, reply: Reply) -> None:
        known = self._requests.get((owner, key))
        if known is not None:
            known.reply = reply

    async def abandon_request(self, owner: str, key: str) -> None:
        known = self._requests.get((owner, key))
        if known is not None and known.reply is None:
            del self._requests[owner, key]

    async def forget_owner(self, owner: str) -> Forgotten:
        keys = [key.id for key in await self.list_keys(owner)]
        requests = [place for place in self._requests if place[0] == owner]
        for key_id in keys:
            del self._keys[key_id]
        for place in requests:
            del self._requests[place]
        return Forgotten(len(keys), len(requests))

    async def rename_owner(self, old: str, new: str) -> int:
        threads = self._threads.get(valid_owner(old), {})
        if old == valid_owner(new):
            return 0
        if threads.keys() & self._threads.get(new, {}).keys():
            raise Conflict(IDS_CLASH)
        for thread in threads.values():
            thread.conversation = thread.conversation.model_copy(update={"owner_id": new})
        self._threads.setdefault(new, {}).update(self._threads.pop(old, {}))
        for key in await self.list_keys(old):
            self._keys[key.id] = key.model_copy(update={"owner_id": new}), self._keys[key.id][1]
        self._requests = {place: request for place, request in self._requests.items() if place[0] != old}
        return len(threads)


class MemoryStore(Store):
    """Conversations in this process's memory."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        if file_path(url):
            raise InvalidInput("a memory store has no path: memory://", got=file_path(url))
        self._threads: dict[str, dict[UUID, _Thread]] = {}
        self._access = MemoryAccess(self._threads)
        self._stored = 0
        self._closed = False

    @property
    def access(self) -> Access:
        return self._access

    # --- conversations ------------------------------------------------------------------------------------

    async def create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        return _copy(self._create(self._open(owner), new))

    async def get_or_create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        newest = next(iter(self._sorted(self._open(owner), "updated", new.context_id, exact=True)), None)
        return _copy(newest or self._create(owner, new))

    async def get_conversation(self, owner: str, conversation_id: UUID | str) -> Conversation:
        return _copy(self._thread(owner, conversation_id).conversation)

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
        scope = list_scope(self._open(owner), context_id, order)
        listed = self._sorted(owner, order, context_id, exact=context_id is not None)
        rest = listed[offset:] if cursor is None else _after(listed, order, scope, cursor)
        following = None
        if len(rest) > limit:
            following = encode_cursor("conversations", scope, *_place(rest[limit - 1], order))
        return Page(items=[_copy(c) for c in rest[:limit]], total=len(listed) if total else None, next=following)

    async def update_conversation(
        self, owner: str, conversation_id: UUID | str, change: ConversationChange
    ) -> Conversation:
        thread = self._thread(owner, conversation_id)
        new: dict[str, object] = {}
        if "title" in change.model_fields_set:
            new["title"] = change.title
        if "metadata" in change.model_fields_set:
            old = thread.conversation.metadata
            new["metadata"] = {} if change.metadata is None else merge_patch(old, change.metadata)
        if "head_id" in change.model_fields_set:
            thread.head = None if change.head_id is None else _entry(thread, change.head_id).position
            new["head_id"] = change.head_id
        thread.conversation = _copy(thread.conversation.model_copy(update=new))
        return _copy(thread.conversation)

    async def delete_conversation(self, owner: str, conversation_id: UUID | str) -> bool:
        try:
            thread = self._thread(owner, conversation_id)
        except NotFound:
            return False
        del self._threads[owner][thread.conversation.id]
        return True

    # --- messages -----------------------------------------------------------------------------------------

    async def append(
        self,
        owner: str,
        conversation_id: UUID | str,
        messages: Sequence[NewMessage],
        *,
        expected_seq: int | None = None,
    ) -> list[Message]:
        fingerprints = check(messages, self._options.max_content_chars)
        thread = self._thread(owner, conversation_id)
        state = _state(thread)
        results = plan(
            thread.conversation.id, state, messages, fingerprints, _known(thread, messages), now(), expected_seq
        )
        for result in results:
            if isinstance(result, Placed) and result.message.id not in thread.by_id:
                self._keep(thread, result)
        _save_state(thread, state)
        return [_copy(r.message if isinstance(r, Placed) else thread.by_id[r].message) for r in results]

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
        valid_owner(owner)
        id_, leaf = valid_id(conversation_id), None if leaf is None else valid_id(leaf)
        window = Window.of(owner, id_, leaf, limit, before, after, order, cursor, offset)
        thread = self._thread(owner, id_)
        end = _leaf(thread, leaf, window)
        path = thread.tree.path(end.run, end.seq) if end else []
        found = islice(_walk(thread, window.cut(path), order), offset, offset + limit + 1)
        length = sum(1 for _ in _walk(thread, path, "asc")) if total else None
        return window.page([_copy(message) for message in found], end, length)

    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        valid_page(limit, 0, None)
        thread = self._thread(owner, conversation_id)
        return [_copy(entry.message) for entry in thread.log[max(after, 0) : max(after, 0) + limit]]

    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        thread = self._thread(owner, conversation_id, message_id)
        return _copy(_entry(thread, valid_id(message_id)).message)

    async def siblings(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> list[Message]:
        thread = self._thread(owner, conversation_id, message_id)
        parent_id = _entry(thread, valid_id(message_id)).message.parent_id
        messages = (entry.message for entry in thread.log)
        return [_copy(m) for m in messages if m.parent_id == parent_id and m.status != Status.DELETED]

    async def delete_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        thread = self._thread(owner, conversation_id, message_id)
        entry = thread.by_id.get(valid_id(message_id))
        if entry is None or entry.message.status == Status.DELETED:
            return False
        erased: dict[str, object] = {
            "content": "",
            "sources": (),
            "metadata": {},
            "external_id": None,
            "status": Status.DELETED,
        }
        entry.message = entry.message.model_copy(update=erased)
        return True

    async def search_messages(
        self, owner: str, query: str, *, limit: int = 20, cursor: str | None = None
    ) -> Page[SearchHit]:
        valid_page(limit, 0, None)
        if not self._options.search:
            raise InvalidInput("this store was opened with search=off; open it without that to search")
        phrases = query_phrases(query)
        scope = (self._open(owner), query)
        below = decode_cursor(cursor, "search", scope, int)[0] if cursor else self._stored + 1
        found = list(islice(self._search(owner, phrases, below), limit + 1))
        following = encode_cursor("search", scope, found[limit - 1][0]) if len(found) > limit else None
        return Page(items=[hit for _, hit in found[:limit]], next=following)

    # --- the store as a whole -----------------------------------------------------------------------------

    async def erase_owner(self, owner: str) -> ErasureReceipt:
        threads = self._threads.pop(self._open(owner), {}).values()
        entries = [entry for thread in threads for entry in thread.log]
        forgotten = await self._access.forget_owner(owner)
        return ErasureReceipt(
            owner_id=owner,
            conversations=len(threads),
            messages=len(entries),
            search_entries=sum(1 for entry in entries if entry.message.content) if self._options.search else 0,
            api_keys=forgotten.api_keys,
            requests=forgotten.requests,
            remaining=len(self._threads.get(owner, ())),
            erased_at=now(),
        )

    async def migrate(self, revision: str = "head") -> None:
        """Do nothing: what is in memory has the shape of this version."""

    async def schema_revision(self) -> str | None:
        return HEAD

    async def ping(self) -> None:
        self._open("ping")

    async def aclose(self) -> None:
        self._closed = True
        self._threads.clear()

    # ------------------------------------------------------------------------------------------------------

    def _open(self, owner: str) -> str:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        return valid_owner(owner)

    def _thread(self, owner: str, conversation_id: UUID | str, *other_ids: UUID | str) -> _Thread:
        """The owner's conversation. Raises InvalidId, NotFound or NotYours."""
        id_, *_ = [valid_id(value) for value in (conversation_id, *other_ids)]
        thread = self._threads.get(self._open(owner), {}).get(id_)
        if thread is None:
            raise self._missing(id_)
        return thread

    def _missing(self, id_: UUID) -> ChatkeepError:
        if not self._options.hide_foreign and any(id_ in threads for threads in self._threads.values()):
            return NotYours("this conversation belongs to somebody else", got=id_)
        return NotFound("there is no such conversation", got=id_)

    def _create(self, owner: str, new: NewConversation) -> Conversation:
        threads = self._threads.setdefault(owner, {})
        id_, fingerprint, moment = new.id or new_id(), new.fingerprint(), now()
        known = threads.get(id_)
        if known and known.fingerprint != fingerprint:
            raise Conflict("this conversation id is already used for other values", got=id_)
        if known:
            return known.conversation
        updated = new.updated_at if isinstance(new, ImportedConversation) else None
        conversation = Conversation(
            id=id_,
            owner_id=owner,
            title=new.title,
            context_id=new.context_id,
            external_id=new.external_id,
            metadata=deepcopy(new.metadata),
            last_seq=0,
            head_id=None,
            created_at=moment,
            updated_at=updated or moment,
        )
        threads[id_] = _Thread(conversation, fingerprint)
        return conversation

    def _sorted(self, owner: str, order: ListOrder, context_id: str | None, *, exact: bool) -> list[Conversation]:
        conversations = [thread.conversation for thread in self._threads.get(owner, {}).values()]
        if exact:
            conversations = [c for c in conversations if c.context_id == context_id]
        if order == "id":
            return sorted(conversations, key=lambda c: c.id)
        return sorted(conversations, key=lambda c: (c.updated_at, c.id), reverse=True)

    def _keep(self, thread: _Thread, placed: Placed) -> None:
        self._stored += 1
        entry = _Entry(_copy(placed.message), placed.position, placed.fingerprint, self._stored)
        thread.log.append(entry)
        thread.by_id[placed.message.id] = entry

    def _search(self, owner: str, phrases: list[list[str]], below: int) -> Iterator[tuple[int, SearchHit]]:
        threads = self._threads.get(owner, {}).values()
        entries = [(entry.number, entry.message, thread) for thread in threads for entry in thread.log]
        for number, message, thread in sorted(entries, key=lambda entry: entry[0], reverse=True):
            if number < below and holds(message.content, phrases):
                title, text = thread.conversation.title, snippet(message.content, phrases)
                yield number, SearchHit(message=_copy(message), title=title, snippet=text)


def _copy[R: (Conversation, Message)](record: R) -> R:
    """A copy with metadata of its own: records are frozen, and what is inside their metadata is not."""
    return record.model_copy(update={"metadata": deepcopy(record.metadata)})


def _state(thread: _Thread) -> State:
    """A copy of what an append changes, so that a refused one leaves the thread as it was."""
    tree = Tree(thread.tree.last_seq, list(thread.tree.runs))
    conversation = thread.conversation
    return State(tree, thread.head, conversation.head_id, conversation.title, conversation.updated_at)


def _save_state(thread: _Thread, state: State) -> None:
    thread.tree, thread.head = state.tree, state.head
    thread.conversation = thread.conversation.model_copy(
        update={
            "title": state.title,
            "last_seq": state.tree.last_seq,
            "head_id": state.head_id,
            "updated_at": state.updated_at,
        }
    )


def _known(thread: _Thread, messages: Sequence[NewMessage]) -> dict[UUID, Known]:
    entries = {id_: thread.by_id[id_] for id_ in ids_to_look_up(messages) if id_ in thread.by_id}
    return {id_: Known(entry.position, entry.fingerprint) for id_, entry in entries.items()}


def _entry(thread: _Thread, message_id: UUID) -> _Entry:
    entry = thread.by_id.get(message_id)
    if entry is None or entry.message.status == Status.DELETED:
        raise NotFound("there is no such message in this conversation", got=message_id)
    return entry


def _leaf(thread: _Thread, leaf: UUID | None, window: Window) -> Position | None:
    if window.leaf_seq is not None:
        return thread.log[window.checked_leaf(thread.tree.last_seq) - 1].position
    return thread.head if leaf is None else _entry(thread, leaf).position


def _walk(thread: _Thread, segments: list[Segment], order: Order) -> Iterator[Message]:
    """The messages of `segments` that are not deleted, in reading order."""
    for segment in segments:
        entries = thread.log[segment.low - 1 : segment.high]
        for entry in reversed(entries) if order == "desc" else entries:
            if entry.position.run == segment.run and entry.message.status != Status.DELETED:
                yield entry.message


def _place(conversation: Conversation, order: ListOrder) -> tuple[int | str, ...]:
    if order == "id":
        return (conversation.id.hex,)
    return to_micros(conversation.updated_at), conversation.id.hex


def _after(listed: list[Conversation], order: ListOrder, scope: tuple[object, ...], cursor: str) -> list[Conversation]:
    """What stands behind the cursor."""
    if order == "id":
        last = valid_id(decode_cursor(cursor, "conversations", scope, str)[0])
        return [c for c in listed if c.id > last]
    micros, hex_id = decode_cursor(cursor, "conversations", scope, int, str)
    place = micros, valid_id(hex_id)
    return [c for c in listed if (to_micros(c.updated_at), c.id) < place]
