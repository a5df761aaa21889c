"""The store in memory: for tests of applications, and for conversations that need not outlive the process.

It keeps the whole contract, durability apart. What runs on its rows never waits, so that nothing can come
between the steps of a transaction; what refuses has changed nothing.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain, islice
from operator import itemgetter
from typing import Any, override
from uuid import UUID

from chatkeep.access import IDS_CLASH
from chatkeep.errors import Conflict, InvalidInput
from chatkeep.events import TurnEvent
from chatkeep.model import (
    Conversation,
    Message,
    NewConversation,
    Status,
)
from chatkeep.options import StoreOptions
from chatkeep.store import ListOrder, Order, file_path
from chatkeep.stores.append import Known, Placed, State, times_of
from chatkeep.stores.base import RowStore
from chatkeep.stores.memory.access import MemoryAccess
from chatkeep.stores.memory.projects import StoredProject
from chatkeep.stores.memory.providers import MemoryProviders, first_providers
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.stores.provider_rows import ProviderRow
from chatkeep.stores.revisions import Schema
from chatkeep.stores.rows import (
    Found,
    Hit,
    Key,
    Place,
    Rows,
    Scope,
    StateRow,
    Within,
    WordIndex,
    Work,
    bytes_of,
    run,
    stored_bytes,
)
from chatkeep.stores.slices import PageSize, Part, Removed, within
from chatkeep.stores.turn_rows import AnswerCount, TurnRow, two_digits
from chatkeep.stores.window import EVERY, ListFilter, ListPlace
from chatkeep.tree import Position, Segment
from chatkeep.turns import GRACE, Ending, TurnKey, TurnPlace, TurnProgress, TurnState, TurnWrite
from chatkeep.values import EPOCH, json_text, load_json, now, to_micros
from chatkeep.words import RULE, Query, holds

ERASED: Mapping[str, Any] = {
    "content": "",
    "parts": None,
    "sources": (),
    "metadata": {},
    "external_id": None,
    "status": Status.DELETED,
}
"""What a deletion leaves of a message, beside its place and its id."""


@dataclass
class _Entry:
    """A message with its place."""

    message: Message
    position: Position
    fingerprint: bytes


@dataclass
class _Turn:
    """The lease of a turn, and its events."""

    parent_id: UUID
    worker: UUID
    until: datetime
    is_stopping: bool = False
    events: list[TurnEvent] = field(default_factory=list)

    def row(self, key: TurnKey) -> TurnRow:
        """The lease as a row."""
        moment = now()
        return TurnRow(key.message_id, self.parent_id, self.worker, self.until <= moment, self.until <= moment - GRACE)

    def after(self, n: int, max_bytes: int) -> TurnProgress:
        """What comes after an event."""
        sized = ((event, stored_bytes(json_text(event.data))) for event in self.events[n:])
        return TurnProgress(deepcopy(within(sized, max_bytes).items), is_running=True, has_expired=self.until <= now())


@dataclass
class _Stored:
    """A conversation with its messages, the one with seq n at n - 1."""

    conversation: Conversation
    fingerprint: bytes
    head_seq: int | None = None
    runs: str | None = None
    log: list[_Entry] = field(default_factory=list)
    by_id: dict[UUID, _Entry] = field(default_factory=dict)


@dataclass
class _Data:
    """What a store holds."""

    owners: dict[str, dict[UUID, _Stored]] = field(default_factory=dict)
    providers: dict[UUID, ProviderRow] = field(default_factory=first_providers)
    projects: dict[str, dict[UUID, StoredProject]] = field(default_factory=dict)
    turns: dict[TurnKey, "_Turn"] = field(default_factory=dict)
    removed: dict[str, Removed] = field(default_factory=dict)
    """What was hidden, by owner: there is nothing to remove later, but to count."""


class MemoryRows(MemoryProviders, Rows):
    """Rows in dictionaries."""

    __slots__ = ("_data", "_index")

    reads_visible = True
    is_snapshot = True

    def __init__(self, data: _Data, *, index: bool) -> None:
        self._data = data
        self._projects = data.projects
        self._providers = data.providers
        self._index = index

    def _of(self, owner: str) -> dict[UUID, _Stored]:
        return self._data.owners.get(owner, {})

    def _find(self, key: Key) -> _Stored | None:
        return self._of(key[0]).get(key[1])

    def _log_of(self, key: Key) -> list[_Entry]:
        found = self._find(key)
        return found.log if found is not None else []

    def _entries(self, key: Key, ids: Collection[UUID]) -> list[_Entry]:
        found = self._find(key)
        return [found.by_id[id_] for id_ in ids if id_ in found.by_id] if found is not None else []

    # --- conversations ------------------------------------------------------------------------------------

    @override
    async def state(self, key: Key, *, lock: bool = False) -> StateRow | None:
        found = self._find(key)
        if found is None:
            return None
        c = found.conversation
        return StateRow(c.last_seq, found.head_seq, c.head_id, found.runs, c.title, c.updated_at, now())

    @override
    async def conversation(self, key: Key, *, lock: bool = False) -> Conversation | None:
        found = self._find(key)
        return None if found is None else _copy(found.conversation)

    async def exists_elsewhere(self, id_: UUID) -> bool:
        return any(id_ in conversations for conversations in self._data.owners.values())

    async def create(self, key: Key, new: NewConversation, *, slot: bool = False) -> Conversation | None:
        if self._find(key) or (slot and await self.newest(key[0], Scope(new.context_id, new.project_id))):
            return None
        created, updated = times_of(new, now())
        conversation = Conversation(
            id=key[1],
            owner_id=key[0],
            title=new.title,
            context_id=new.context_id,
            project_id=new.project_id,
            llm_provider_id=new.llm_provider_id,
            external_id=new.external_id,
            labels=new.labels,
            metadata=deepcopy(new.metadata),
            last_seq=0,
            head_id=None,
            created_at=created,
            updated_at=updated,
        )
        self._data.owners.setdefault(key[0], {})[key[1]] = _Stored(conversation, new.fingerprint())
        return _copy(conversation)

    async def fingerprint(self, key: Key) -> bytes | None:
        found = self._find(key)
        return None if found is None else found.fingerprint

    async def newest(self, owner: str, scope: Scope) -> Conversation | None:
        there = [c for c in self._sorted(owner, EVERY, "updated") if (c.context_id, c.project_id) == scope]
        return _copy(there[0]) if there else None

    def _sorted(self, owner: str, which: ListFilter, order: ListOrder) -> list[Conversation]:
        found = [each.conversation for each in self._of(owner).values() if _is_in(each.conversation, which)]
        if order == "id":
            return sorted(found, key=lambda c: c.id)
        return sorted(found, key=lambda c: (c.updated_at, c.id), reverse=True)

    async def listed(
        self, owner: str, which: ListFilter, order: ListOrder, after: ListPlace | None, size: PageSize, offset: int
    ) -> Part[Conversation]:
        found = self._sorted(owner, which, order)
        if after is not None and after.updated_at is not None:
            place = after.updated_at, after.id
            found = [c for c in found if (c.updated_at, c.id) < place]
        elif after is not None:
            found = [c for c in found if c.id > after.id]
        some = within(
            ((c, stored_bytes(json_text(c.metadata))) for c in found[offset : offset + size.limit]), size.max_bytes
        )
        return Part([_copy(c) for c in some.items], some.cut)

    async def count(self, owner: str, which: ListFilter) -> int:
        return len(self._sorted(owner, which, "id"))

    async def labelled(self, owner: str, label: str, limit: int) -> list[UUID]:
        found = (each.conversation for each in self._of(owner).values())
        return list(islice((c.id for c in found if label in c.labels), limit))

    async def set_values(self, key: Key, values: Mapping[str, Any]) -> None:
        found = self._of(key[0])[key[1]]
        changed = dict(values)
        if "head_seq" in changed:
            found.head_seq = changed.pop("head_seq")
        if "metadata" in changed:
            changed["metadata"] = load_json(changed["metadata"])
        found.conversation = found.conversation.model_copy(update=changed)

    def _naming(self, provider: UUID) -> Iterable[Conversation]:
        each = (stored.conversation for owned in self._data.owners.values() for stored in owned.values())
        return (conversation for conversation in each if conversation.llm_provider_id == provider)

    def _give_provider(self, conversation: Conversation, provider: UUID) -> None:
        found = self._of(conversation.owner_id)[conversation.id]
        found.conversation = conversation.model_copy(update={"llm_provider_id": provider})

    # --- messages -----------------------------------------------------------------------------------------

    async def save(self, key: Key, state: State, new: Sequence[Placed]) -> None:
        found = self._of(key[0])[key[1]]
        for message, position, fingerprint in new:
            entry = _Entry(_copy(message), position, fingerprint)
            found.log.append(entry)
            found.by_id[message.id] = entry
        found.head_seq, found.runs = state.head.seq if state.head else None, state.tree.dump()
        changed = {
            "title": state.title,
            "last_seq": state.tree.last_seq,
            "head_id": state.head_id,
            "updated_at": state.updated_at,
        }
        found.conversation = found.conversation.model_copy(update=changed)

    async def known(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Known]:
        return {
            entry.message.id: Known(entry.position, entry.fingerprint, entry.message.status is Status.DELETED)
            for entry in self._entries(key, ids)
        }

    async def position(self, key: Key, seq: int) -> Position:
        return self._log_of(key)[seq - 1].position

    async def messages_by_id(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Message]:
        return {entry.message.id: _copy(entry.message) for entry in self._entries(key, ids)}

    async def messages_by_seq(self, key: Key, seqs: Sequence[int], size: PageSize) -> Part[Message]:
        log = self._log_of(key)
        found = (log[seq - 1].message for seq in seqs)
        return _part((message for message in found if message.status != Status.DELETED), size)

    async def log(self, key: Key, after: int, size: PageSize) -> Part[Message]:
        return _part((entry.message for entry in islice(self._log_of(key), after, None)), size)

    async def fingerprints(self, key: Key, first: int, last: int) -> list[bytes]:
        return [entry.fingerprint for entry in self._log_of(key)[first - 1 : last]]

    async def next_in_run(self, key: Key, parent: Position) -> list[int]:
        following = (entry.position for entry in islice(self._log_of(key), parent.seq, None))
        return list(islice((position.seq for position in following if position.run == parent.run), 1))

    async def segment(self, key: Key, segment: Segment, order: Order, size: PageSize) -> Part[Message]:
        return _part(self._segment(key, segment, order), size)

    async def places(self, key: Key, segments: Sequence[Segment], order: Order, limit: int) -> list[Place]:
        path = chain.from_iterable(self._segment(key, segment, order) for segment in segments)
        return [Place(message.seq, message.status == Status.DELETED) for message in islice(path, limit)]

    async def count_segment(self, key: Key, segment: Segment, *, deleted: bool = False) -> int:
        found = self._segment(key, segment, "asc")
        return sum(message.status == Status.DELETED or not deleted for message in found)

    async def deleted_places(self, key: Key, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        deleted = [entry.position for entry in self._log_of(key) if entry.message.status == Status.DELETED]
        places = sorted((position.run, position.seq) for position in deleted)
        return [place for place in places if place > after][:limit]

    def _segment(self, key: Key, segment: Segment, order: Order) -> Iterator[Message]:
        """The messages of a segment, in this order."""
        log, seqs = self._log_of(key), range(segment.low, segment.high + 1)
        entries = (log[seq - 1] for seq in (reversed(seqs) if order == "desc" else seqs))
        return (entry.message for entry in entries if entry.position.run == segment.run)

    async def set_metadata(self, key: Key, id_: UUID, metadata: str | None) -> None:
        for entry in self._entries(key, (id_,)):
            changed = load_json(metadata) if metadata else {}
            entry.message = entry.message.model_copy(update={"metadata": changed})

    async def erase_message(self, key: Key, id_: UUID) -> None:
        for entry in self._entries(key, (id_,)):
            entry.message = entry.message.model_copy(update=dict(ERASED))

    # --- search -------------------------------------------------------------------------------------------

    async def search(
        self, owner: str, query: Query, below: tuple[Any, ...] | None, size: PageSize, only: Within | None = None
    ) -> Found:
        stored = [
            (_place(entry.message), entry.message, each.conversation.title)
            for id_, each in self._of(owner).items()
            if only is None or id_ == only.id
            for entry in each.log
        ]
        there = [hit for hit in stored if (below is None or hit[0] < below) and holds(hit[1].content, query)]
        newest = sorted(there, key=itemgetter(0), reverse=True)[: size.limit]
        some, cut = within(((hit, bytes_of(hit[1])) for hit in newest), size.max_bytes)
        hits = [Hit(place, _copy(message), title, bytes_of(message)) for place, message, title in some]
        return Found(hits, rest=hits[-1].place if len(hits) < len(there) else None, cut=cut)

    async def index_slice(self) -> bool:
        return False

    async def word_index(self) -> WordIndex:
        return WordIndex(RULE)  # what has no index is searched by the rule of this version

    async def set_word_index(self, before: WordIndex, after: WordIndex) -> bool:
        return before == after

    async def keys_above(self, id_: UUID | None, limit: int) -> list[Key]:  # noqa: ARG002 - none are indexed
        return []

    async def index_again(self, key: Key, after: int) -> int | None:  # noqa: ARG002 - none are indexed
        return None

    # --- turns --------------------------------------------------------------------------------------------

    async def lock_turns(self, owner: str) -> int:
        return sum(key.owner == owner and turn.until > now() for key, turn in self._data.turns.items())

    async def turns_of(self, key: Key) -> list[TurnRow]:
        return [turn.row(each) for each, turn in self._data.turns.items() if each[:2] == key]

    async def turn(self, key: TurnKey) -> TurnRow | None:
        found = self._data.turns.get(key)
        return None if found is None else found.row(key)

    async def begin_turn(self, key: TurnKey, parent_id: UUID, worker: UUID, lease: timedelta) -> None:
        self._data.turns[key] = _Turn(parent_id, worker, now() + lease)

    async def take_turn(self, key: TurnKey, worker: UUID, lease: timedelta) -> None:
        found = self._data.turns[key]
        found.worker, found.until = worker, now() + lease

    async def store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> dict[TurnKey, TurnState]:
        return {write.key: self._store(worker, write, lease) for write in writes}

    def _store(self, worker: UUID, write: TurnWrite, lease: timedelta) -> TurnState:
        turn = self._data.turns.get(write.key)
        if turn is None or turn.worker != worker:
            return TurnState.LOST
        turn.events += deepcopy([event for event in write.events if event.n > len(turn.events)])
        turn.until = now() + lease
        return TurnState.STOPPING if turn.is_stopping else TurnState.RUNNING

    async def events_of(self, places: Sequence[TurnPlace], max_bytes: int) -> list[TurnProgress]:
        gone = TurnProgress((), is_running=False)
        found = [(place, self._data.turns.get(place.key)) for place in places]
        return [gone if turn is None else turn.after(place.after, max_bytes) for place, turn in found]

    async def ask_to_stop(self, key: TurnKey) -> bool:
        self._data.turns[key].is_stopping = True
        return True

    async def set_answer(self, key: TurnKey, ending: Ending) -> None:
        found = self._of(key.owner)[key.conversation_id]
        for entry in self._entries(key[:2], (key.message_id,)):
            entry.message = _copy(entry.message.model_copy(update=ending._asdict()))
        moved = max(found.conversation.updated_at, now())
        found.conversation = found.conversation.model_copy(update={"updated_at": moved})

    async def end_turn(self, key: TurnKey) -> None:
        self._data.turns.pop(key, None)

    async def expired_turns(self, limit: int) -> list[TurnKey]:
        past = [(turn.until, key) for key, turn in self._data.turns.items() if turn.until <= now()]
        return [key for _, key in sorted(past)[:limit]]

    async def answers_of(self, owner: str, after: datetime, before: datetime) -> list[AnswerCount]:
        messages = (entry.message for each in self._of(owner).values() for entry in each.log)
        return [_count(message) for message in messages if message.model and after <= message.created_at < before]

    # --- removal ------------------------------------------------------------------------------------------

    async def owners_with_remains(self) -> list[str]:
        return [
            owner for owner, projects in self._projects.items() if any(each.has_remains for each in projects.values())
        ]

    async def hide(self, key: Key) -> bool:
        return self._remove(key[0], [key[1]] if self._find(key) else [])

    async def lock_owner(self, owner: str) -> None:
        """Do nothing: nobody else writes while a transaction does."""

    async def hide_slice(self, owner: str) -> bool:
        self._remove(owner, list(self._of(owner)))
        return False

    async def hide_conversations(self, key: ProjectKey) -> bool:
        found = self._sorted(key.owner, ListFilter(project_id=key.id), "id") if self._is_hidden(key) else []
        return self._remove(key.owner, [c.id for c in found])

    def _remove(self, owner: str, ids: Collection[UUID]) -> bool:
        gone = [self._data.owners[owner].pop(id_) for id_ in ids]
        messages = [entry.message for each in gone for entry in each.log]
        indexed = sum(1 for message in messages if message.content) if self._index else 0
        labels = sum(len(each.conversation.labels) for each in gone)
        turns = [key for key in self._data.turns if key.owner == owner and key.conversation_id in ids]
        for key in turns:
            del self._data.turns[key]
        before = self._data.removed.get(owner, Removed())
        counts = {"indexed": indexed, "labels": labels, "turns": len(turns)}
        self._data.removed[owner] = before.plus(Removed(len(gone), len(messages), **counts))
        return bool(gone)

    async def purge_slice(self, owner: str) -> Removed | None:
        return self._data.removed.pop(owner, None)

    async def remove_owner(self, owner: str) -> int | None:
        return None if self._data.owners.pop(owner, None) else 0

    async def rename_owner(self, old: str, new: str) -> int:
        """Give the conversations of one owner to another, to be indexed anew, and count them. Raises Conflict."""
        moved = self._of(old)
        if moved.keys() & self._of(new).keys():
            raise Conflict(IDS_CLASH)
        self._check_projects(old, new)
        self._move_projects(old, new)
        for each in moved.values():
            each.conversation = each.conversation.model_copy(update={"owner_id": new})
        if old in self._data.owners:
            self._data.owners.setdefault(new, {}).update(self._data.owners.pop(old))
        for key in [key for key in self._data.turns if key.owner == old]:  # expired: its worker knows the old owner
            turn = self._data.turns.pop(key)
            self._data.turns[key._replace(owner=new)] = replace(turn, until=EPOCH)
        return len(moved)


class MemoryStore(RowStore[MemoryRows]):
    """Conversations in this process's memory."""

    newest_revision = "memory"
    revisions = (newest_revision,)

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        if file_path(url):
            raise InvalidInput("a memory store has no path: memory://")
        self._data = _Data()
        self._access = MemoryAccess(lambda: chain(self._data.owners, self._data.projects))

    async def _read[T](self, work: Work[MemoryRows, T]) -> T:
        return run(work(MemoryRows(self._data, index=self._options.search)))

    @override
    async def _write[T](self, work: Work[MemoryRows, T], *, atomic: bool = True) -> T:
        return await self._read(work)

    async def _rename(self, old: str, new: str) -> int:
        return await self._write(lambda rows: rows.rename_owner(old, new))

    async def _migrate(self, revision: str) -> None:
        """Do nothing: what is in memory has the shape of this version."""

    async def _schema(self) -> Schema:
        return Schema(self.newest_revision)

    async def _finish(self) -> None:
        """Do nothing: no write takes time."""

    async def _close(self) -> None:
        self._data = _Data()


def _place(message: Message) -> tuple[int, str, int]:
    """The place of a message in the order of hits."""
    return to_micros(message.created_at), message.conversation_id.hex, message.seq


def _count(message: Message) -> AnswerCount:
    """One answer as statistics count it."""
    day = to_micros(message.created_at) // 86_400_000_000
    duration = None if message.duration_ms is None else two_digits(message.duration_ms)
    return AnswerCount(day, duration, message.status, 1, message.input_tokens or 0, message.output_tokens or 0)


def _part(found: Iterable[Message], size: PageSize) -> Part[Message]:
    """Copies of the first messages."""
    some = within(((message, bytes_of(message)) for message in islice(found, size.limit)), size.max_bytes)
    return Part([_copy(message) for message in some.items], some.cut)


def _is_in(conversation: Conversation, which: ListFilter) -> bool:
    """Whether a list has a conversation."""
    scope = (
        (which.context_id, conversation.context_id),
        (which.project_id, conversation.project_id),
        (which.external_id, conversation.external_id),
    )
    after, before, labels = which.updated_after, which.updated_before, set(conversation.labels)
    return (
        all(wanted in (None, value) for wanted, value in scope)
        and (after is None or conversation.updated_at > after)
        and (before is None or conversation.updated_at < before)
        and labels.issuperset(which.labels)
        and labels.isdisjoint(which.without)
    )


def _copy[R: (Conversation, Message)](record: R) -> R:
    """A copy with metadata and parts of its own: records are frozen, and what is inside of them is not."""
    changed: dict[str, Any] = {"metadata": deepcopy(record.metadata)}
    if isinstance(record, Message) and record.parts:
        changed["parts"] = deepcopy(record.parts)
    return record.model_copy(update=changed)
