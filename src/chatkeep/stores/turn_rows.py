"""The rows of turns and of their events, in one transaction of a database. Owners come as the database stores them."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from chatkeep.events import TurnEvent
from chatkeep.model import Status
from chatkeep.turns import Ending, TurnKey, TurnPlace, TurnProgress, TurnState, TurnWrite

PROGRESS_BYTES = 1 << 20
"""Most bytes of the events of one turn, as JSON, that are read at a time; one event alone may be larger."""

ALL_PROGRESS_BYTES = 16 << 20
"""The same of many turns together, about: each has at least one event."""

ALL_BYTES = 1 << 62
"""As many bytes as there are."""


class TurnRow(NamedTuple):
    """The lease of a turn."""

    message_id: UUID
    parent_id: UUID
    """The question."""
    worker: UUID
    has_expired: bool
    """By the database's clock."""
    is_overdue: bool = False
    """Whether it has expired longer than GRACE ago."""


class AnswerCount(NamedTuple):
    """Answers of a day that took about equally long."""

    day: int
    """Days since 1970, in UTC."""
    duration_ms: int | None
    """Rounded down to two digits (`two_digits`)."""
    status: Status
    answers: int
    input_tokens: int
    output_tokens: int


def two_digits(milliseconds: int) -> int:
    """Return a duration rounded down to its first two digits: so there are few different ones."""
    unit = int("1".ljust(len(str(milliseconds)) - 1, "0"))
    return milliseconds // unit * unit


class TurnRows(ABC):
    """The rows of turns in one transaction."""

    __slots__ = ()

    @abstractmethod
    async def lock_turns(self, owner: str) -> int:
        """Keep others from beginning turns of the owner until the transaction ends; count those that have a lease."""

    @abstractmethod
    async def turns_of(self, key: tuple[str, UUID]) -> list[TurnRow]:
        """The turns of a conversation that is locked, locked against their workers."""

    @abstractmethod
    async def turn(self, key: TurnKey) -> TurnRow | None:
        """A turn, locked against its worker."""

    @abstractmethod
    async def begin_turn(self, key: TurnKey, parent_id: UUID, worker: UUID, lease: timedelta) -> None:
        """Store the lease of a turn."""

    @abstractmethod
    async def take_turn(self, key: TurnKey, worker: UUID, lease: timedelta) -> None:
        """Give a turn that is locked to another worker, with a new lease."""

    @abstractmethod
    async def store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> dict[TurnKey, TurnState]:
        """Store events of turns that this worker has, and extend their leases if a third of the time is over.

        An event that is there, by its number, stays. Locks only the leases. Those that another process has locked may
        be left out as BUSY.
        """

    @abstractmethod
    async def events_of(self, places: Sequence[TurnPlace], max_bytes: int) -> list[TurnProgress]:
        """For each turn, in their order, the events after a number, and the state of its lease at the same moment."""

    @abstractmethod
    async def ask_to_stop(self, key: TurnKey) -> bool:
        """Note that a turn is to stop; say whether it is there."""

    @abstractmethod
    async def set_answer(self, key: TurnKey, ending: Ending) -> None:
        """Give a message that is in progress its content and everything else, index its words, and move updated_at.

        So may a message be that was cut off, whose words are indexed: an import has the rest of it.
        """

    @abstractmethod
    async def end_turn(self, key: TurnKey) -> None:
        """Remove a turn with its events."""

    @abstractmethod
    async def expired_turns(self, limit: int) -> list[TurnKey]:
        """Some turns of all owners whose leases have expired, those first that expired first."""

    @abstractmethod
    async def answers_of(self, owner: str, after: datetime, before: datetime) -> Collection[AnswerCount]:
        """How many of the owner's messages with a model were made, from `after` and before `before`, by day, duration
        and status; from an index of such messages."""


def by_key(writes: Sequence[TurnWrite]) -> Mapping[TurnKey, Sequence[TurnEvent]]:
    """The events of each turn."""
    return {write.key: write.events for write in writes}
