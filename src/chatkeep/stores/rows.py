"""The second port: what one transaction of a database does to its rows. `base.RowStore` is a store on top of it.

A database brings these operations, its connections and its fast paths; what an operation of the store means is
written once, above. Every operation but `exists_elsewhere` and those of the whole store names the owner first.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from chatkeep.model import Conversation, Message, NewConversation
from chatkeep.store import ListOrder, Order
from chatkeep.stores.append import Known, Placed, State
from chatkeep.stores.project_rows import ProjectRows
from chatkeep.stores.provider_rows import ProviderRows
from chatkeep.stores.slices import PageSize, Part, Removed
from chatkeep.stores.turn_rows import TurnRows
from chatkeep.stores.window import ListFilter, ListPlace
from chatkeep.tree import Position, Segment
from chatkeep.values import json_text, now
from chatkeep.words import Query

type Key = tuple[str, UUID]
"""The owner, as the database stores it, and the conversation."""

type Row = Any
"""A row as a driver returns it: a tuple, or what can be read like one."""

type Work[R, T] = Callable[[R], Coroutine[Any, Any, T]]
"""What runs in a transaction, given its rows."""


class StateRow(NamedTuple):
    """The columns of a conversation that appends and histories read."""

    last_seq: int
    head_seq: int | None
    head_id: UUID | None
    runs: str | None
    title: str | None
    updated_at: datetime
    moment: datetime
    """The time of the transaction, which new messages get."""


class Scope(NamedTuple):
    """Where get-or-create looks for a conversation and makes one. Conversations without a context, or without a
    project, are a scope of their own."""

    context_id: str | None = None
    project_id: UUID | None = None


class Place(NamedTuple):
    """The place of a message in its conversation."""

    seq: int
    deleted: bool


class Hit(NamedTuple):
    """A message that a search found, its place in the order of hits, its size, and the title of its conversation."""

    place: tuple[int | str, ...]
    message: Message
    title: str | None
    bytes: int = 0


SMALL_CONVERSATION = 10_000
"""Messages of a conversation that a search may look at one by one: tens of milliseconds."""


class Within(NamedTuple):
    """The one conversation that is searched."""

    id: UUID
    messages: int
    """How many it has."""

    @property
    def is_small(self) -> bool:
        """Whether a search may look at every message, whatever else holds the words."""
        return self.messages <= SMALL_CONVERSATION


class Found(NamedTuple):
    """A part of a search's hits, in the order of Store.search_messages."""

    hits: list[Hit]
    exact: bool = True
    """Whether each is a hit of the query. If not, its words are those of one, and it is to be looked at."""
    rest: tuple[int | str, ...] | None = None
    """The place where the search goes on; None at its end."""
    cut: bool = False
    """Whether it ends because the next hit is too large."""


class WordIndex(NamedTuple):
    """By which rule of words (`words.RULE`) messages are indexed, and how far a newer rule has come."""

    rule: int
    """All messages are indexed by this rule, or by a later one."""
    target: int | None = None
    """The rule by which they are being indexed anew; None if they are not."""
    place: UUID | None = None
    """The id up to which conversations are indexed by `target`; None at the beginning."""


class Rows(TurnRows, ProjectRows, ProviderRows):
    """The rows of one transaction."""

    __slots__ = ()

    reads_visible: ClassVar[bool]
    """Whether reading messages finds those of a conversation that is being removed no more: then a message that
    was found shows that its conversation is there."""

    is_snapshot: ClassVar[bool] = False
    """Whether all that one transaction reads is the state at one moment."""

    most_segments: ClassVar[int] = 10_000
    """Most segments of a path that `places` takes at once."""

    @property
    def moment(self) -> datetime:
        """The time that imported messages get which bring none."""
        return now()

    # --- conversations ------------------------------------------------------------------------------------

    @abstractmethod
    async def state(self, key: Key, *, lock: bool = False) -> StateRow | None:
        """What appends and histories read of a conversation; locked against other writers if asked."""

    @abstractmethod
    async def conversation(self, key: Key, *, lock: bool = False) -> Conversation | None:
        """One conversation that is not being removed."""

    @abstractmethod
    async def exists_elsewhere(self, id_: UUID) -> bool:
        """Whether anybody has this id: the one question that names no owner."""

    @abstractmethod
    async def create(self, key: Key, new: NewConversation, *, slot: bool = False) -> Conversation | None:
        """Store a conversation; None if its id is taken, or with `slot` the slot of its scope."""

    @abstractmethod
    async def fingerprint(self, key: Key) -> bytes | None:
        """The fingerprint of a conversation that is not being removed."""

    @abstractmethod
    async def newest(self, owner: str, scope: Scope) -> Conversation | None:
        """The owner's most recently updated conversation of a scope."""

    @abstractmethod
    async def listed(
        self, owner: str, which: ListFilter, order: ListOrder, after: ListPlace | None, size: PageSize, offset: int
    ) -> Part[Conversation]:
        """The conversations of a list after a place, read in the order of an index, never sorted, unless `ids` are
        given."""

    @abstractmethod
    async def count(self, owner: str, which: ListFilter) -> int:
        """The length of that list."""

    @abstractmethod
    async def labelled(self, owner: str, label: str, limit: int) -> list[UUID]:
        """At most `limit` conversations with a label; read from an index."""

    @abstractmethod
    async def set_values(self, key: Key, values: Mapping[str, Any]) -> None:
        """Set title, labels, metadata (as JSON text), context_id, llm_provider_id, or head_seq and head_id.

        With context_id it gives up its slot: another conversation may hold that of the new scope.
        """

    # --- messages -----------------------------------------------------------------------------------------

    @abstractmethod
    async def save(self, key: Key, state: State, new: Sequence[Placed]) -> None:
        """Write what an append changed of its conversation, and its messages."""

    @abstractmethod
    async def known(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Known]:
        """Those of the messages that the conversation has, by id."""

    @abstractmethod
    async def position(self, key: Key, seq: int) -> Position:
        """The position of a message that is known to be there."""

    @abstractmethod
    async def messages_by_id(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Message]:
        """Those of the messages that are there, deleted or not, by id."""

    @abstractmethod
    async def messages_by_seq(self, key: Key, seqs: Sequence[int], size: PageSize) -> Part[Message]:
        """The messages with these seqs, which rise or fall, in this order; without those that are deleted."""

    @abstractmethod
    async def log(self, key: Key, after: int, size: PageSize) -> Part[Message]:
        """The messages above a seq, deleted or not, by seq."""

    @abstractmethod
    async def fingerprints(self, key: Key, first: int, last: int) -> list[bytes]:
        """The fingerprints of the messages with seqs from `first` to `last`, deleted or not, by seq."""

    @abstractmethod
    async def next_in_run(self, key: Key, parent: Position) -> list[int]:
        """The seq of the message that continues the run of `parent`, which is no trunk; empty at the tip."""

    @abstractmethod
    async def segment(self, key: Key, segment: Segment, order: Order, size: PageSize) -> Part[Message]:
        """The messages of a part of a path, deleted or not, by seq in this order."""

    @abstractmethod
    async def places(self, key: Key, segments: Sequence[Segment], order: Order, limit: int) -> list[Place]:
        """The places of at most `limit` messages of a path, deleted or not, by seq in this order.

        The segments come in this order, too, at most `most_segments`. Without the messages: those may be large.
        """

    @abstractmethod
    async def count_segment(self, key: Key, segment: Segment, *, deleted: bool = False) -> int:
        """How many messages a part of a path has, or how many deleted ones; counted in an index."""

    @abstractmethod
    async def deleted_places(self, key: Key, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        """Run and seq of at most `limit` deleted messages after a run and seq, in this order; read from an index."""

    @abstractmethod
    async def set_metadata(self, key: Key, id_: UUID, metadata: str | None) -> None:
        """Set the metadata of a message, as JSON text; None if it is empty."""

    @abstractmethod
    async def erase_message(self, key: Key, id_: UUID) -> None:
        """Leave a tombstone of a message: its place, id and fingerprint, which a late retry needs."""

    def shows_whole(self, found: Sequence[Message], segment: Segment, order: Order, *, ends: bool) -> bool:  # noqa: ARG002 - some databases look
        """Whether what one query found of a segment shows that the conversation was not removed meanwhile.

        `ends` says that the segment has no more messages than that.
        """
        return self.is_snapshot

    # --- search -------------------------------------------------------------------------------------------

    @abstractmethod
    async def search(
        self, owner: str, query: Query, below: tuple[Any, ...] | None, size: PageSize, only: Within | None = None
    ) -> Found:
        """The hits of a query, or what may be one by its words, below a place, the last first.

        In one conversation, reads at most all that the owner has with these words, and of a small one at most its own.
        """

    @abstractmethod
    async def index_slice(self) -> bool:
        """Index some messages that are not indexed; False if all are."""

    @abstractmethod
    async def word_index(self) -> WordIndex:
        """By which rule the messages are indexed."""

    @abstractmethod
    async def set_word_index(self, before: WordIndex, after: WordIndex) -> bool:
        """Note how far a rule has come; False if another process did meanwhile."""

    @abstractmethod
    async def keys_above(self, id_: UUID | None, limit: int) -> list[Key]:
        """The conversations of all owners with the next `limit` ids above an id, by id."""

    @abstractmethod
    async def index_again(self, key: Key, after: int) -> int | None:
        """Index anew some messages of a conversation above a seq; return the last seq of them, None without any."""

    # --- removal ------------------------------------------------------------------------------------------

    @abstractmethod
    async def lock_owner(self, owner: str) -> None:
        """Keep others from creating conversations of the owner until the transaction ends, if the database can."""

    @abstractmethod
    async def owners_with_remains(self) -> list[str]:
        """Owners of hidden conversations, whose removal was cut off."""

    @abstractmethod
    async def hide(self, key: Key) -> bool:
        """Make a conversation invisible; say whether there is one, hidden or not. `purge_slice` removes its rows."""

    @abstractmethod
    async def hide_slice(self, owner: str) -> bool:
        """Make some conversations of an owner invisible; False if those were the last."""

    @abstractmethod
    async def purge_slice(self, owner: str) -> Removed | None:
        """Remove some rows of an owner's hidden conversations; None if there are none."""

    @abstractmethod
    async def remove_owner(self, owner: str) -> int | None:
        """Remove the owner and count the rows that are left; None if a conversation was created meanwhile."""


def run[T](work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine that never waits returns: operations of a database that has no I/O to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("the rows of this database must not wait")


def order_of(seqs: Sequence[int]) -> Order:
    """Whether seqs rise or fall."""
    return "desc" if seqs[0] > seqs[-1] else "asc"


def stored_bytes(*texts: str | None) -> int:
    """The size of a message or conversation: the bytes of its content, and of its parts, sources and metadata."""
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts if text)


def bytes_of(message: Message) -> int:
    """The size of a message as it is stored, from its record."""
    values = (message.parts, message.sources, message.metadata)
    return stored_bytes(message.content, *(json_text(value) for value in values if value))


def unique(found: Iterable[Placed]) -> list[Placed]:
    """New messages, each once: an append may name one twice."""
    return list({placed.message.id: placed for placed in found}.values())
