"""The port of turns: a question, and the answer that is being made of it.

A store has one as `store.turns`. A turn begins in one transaction, which appends the question and the row of its answer
(`in_progress`) and takes a lease. Whoever holds the lease stores events as they happen, which extends it, and at last
the whole answer. If the holder is gone, the lease expires, and anybody closes the turn: the answer is `interrupted`
then, and has every event that was stored.

The id of an answer is made of the question's id and the attempt, so that no retry and no crash makes two. Every write
names the turn and its worker: of two processes that take a turn for theirs only the one with the lease writes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import Enum, auto
from typing import NamedTuple
from uuid import UUID, uuid5

from pydantic import Field

from chatkeep.events import Folded, TurnEvent
from chatkeep.model import Message, NewMessage, Record, Source, Status
from chatkeep.parts import Part

LEASE = timedelta(seconds=15)
"""How long a turn outlives the last sign of life of its worker."""

GRACE = timedelta(seconds=30)
"""How long after its lease a turn stays open that another worker can go on with."""

MAX_RUNNING = 4
"""Answers of one owner that may be in progress at a time."""

FIRST = "1"
"""The attempt that the question itself asks for."""

MAX_STATS_DAYS = 366
"""Longest range of statistics."""


def answer_id(question_id: UUID, attempt: str = FIRST) -> UUID:
    """Return the id of the answer to a question that an attempt makes."""
    return uuid5(question_id, attempt)


class TurnKey(NamedTuple):
    """A turn, by the id of its answer."""

    owner: str
    conversation_id: UUID
    message_id: UUID


class Turn(NamedTuple):
    """What `start_turn` returns."""

    question: Message
    answer: Message
    """As it is now."""
    is_mine: bool
    """Whether the worker has the lease: then it makes the answer, unless it does so already. It may have been given by
    a call whose reply was lost."""
    is_new: bool = False
    """Whether this call made its process begin the answer; only `TurnRunner.ask` knows."""


class ResumedTurn(NamedTuple):
    """A turn that a worker has taken over from another one, which is gone."""

    question: Message
    events: Sequence[TurnEvent]
    """All that happened so far; `chatkeep.events.state_of` has what to go on with."""


class TurnWrite(NamedTuple):
    """Events of a turn to be stored; without any, only its lease is extended."""

    key: TurnKey
    events: Sequence[TurnEvent] = ()


class TurnState(Enum):
    """What became of a write to a turn."""

    RUNNING = auto()
    """The events are stored."""
    STOPPING = auto()
    """The events are stored, and somebody asked to stop."""
    BUSY = auto()
    """Nothing is stored, since another process has locked the turn: repeat it."""
    LOST = auto()
    """Nothing is stored: the worker has no lease of this turn any more."""


class Ending(NamedTuple):
    """How an answer ended, and the whole of it."""

    status: Status
    content: str = ""
    parts: tuple[Part, ...] | None = None
    sources: tuple[Source, ...] = ()
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    duration_ms: int | None = None

    @classmethod
    def of(cls, folded: Folded, status: Status, duration_ms: int | None = None) -> "Ending":
        """Return the end of an answer of which these were the events."""
        return cls(status, *folded[:6], duration_ms)


class TurnPlace(NamedTuple):
    """A turn, and the number of the last event that the reader has."""

    key: TurnKey
    after: int = 0


class TurnProgress(NamedTuple):
    """What a reader of a turn did not have."""

    events: Sequence[TurnEvent]
    """The next events, of a mebibyte at most or one alone."""
    is_running: bool
    """Whether the turn runs. Else the message has the whole answer, and there are no events any more."""
    has_expired: bool = False
    """Whether its lease has expired: `expire_turn` closes it."""


class AnswerStats(Record):
    """The answers of a day, in UTC, or of all days of a range."""

    day: date | None = Field(description="Null: all days.")
    answers: int
    failed: int = Field(description="Of these.")
    interrupted: int = Field(description="Of these.")
    input_tokens: int
    output_tokens: int
    p50_ms: int | None = Field(description="Half of the answers took at most so many milliseconds, within a tenth.")
    p95_ms: int | None
    p99_ms: int | None


class Turns(ABC):
    """Turns of conversations. Methods raise as those of `Store` do: NotFound and NotYours, for one."""

    @abstractmethod
    async def start_turn(
        self,
        owner: str,
        conversation_id: UUID | str,
        question: NewMessage | UUID,
        *,
        worker: UUID,
        attempt: str | None = None,
        lease: timedelta = LEASE,
        max_running: int = MAX_RUNNING,
    ) -> Turn:
        """Begin a turn, or return the one that there is. Idempotent by the question's id and the attempt.

        A new question is appended with its answer, in one transaction. A question that was asked before returns its
        turn, whether that runs or ended, in whatever status: an answer is made once. The id of a message that is there
        answers it again, as a sibling: while it is being answered that turn is returned; `attempt`, without which
        one is made up, returns what the same attempt made before. Turns of this conversation whose lease has expired
        are closed first.

        Raises TurnInProgress while another question of the conversation is answered, TooManyTurns if the owner has
        `max_running` answers in progress, Conflict if the id is used for other content, InvalidInput if the question is
        not a user's, NotFound if the answer was deleted.
        """

    @abstractmethod
    async def append_turn_events(
        self, worker: UUID, writes: Sequence[TurnWrite], *, lease: timedelta = LEASE
    ) -> Mapping[TurnKey, TurnState]:
        """Store events of a worker's turns in one transaction, and extend the leases.

        Numbers go on without a gap. Idempotent: events that are there, by their numbers, stay. Turns that the worker
        has lost do not keep the others from being stored.
        """

    @abstractmethod
    async def finish_turn(
        self, owner: str, conversation_id: UUID | str, message_id: UUID | str, ending: Ending, *, worker: UUID
    ) -> Message:
        """Store the whole answer, remove the events and the lease, and return the message. Moves updated_at.

        Idempotent. Raises TurnLost if the worker has no lease of the turn any more; the message has what whoever closed
        it found.
        """

    @abstractmethod
    async def turn_events(self, places: Sequence[TurnPlace]) -> Sequence[TurnProgress]:
        """Return what happened after each of these places, in their order.

        A turn that is not there has no events and does not run.
        """

    @abstractmethod
    async def stop_turn(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        """Ask the worker of a turn to stop, and return whether the turn runs. Closes it if its lease has expired.

        Idempotent; the worker hears it with its next write.
        """

    @abstractmethod
    async def expire_turn(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        """Close a turn whose lease has expired, as interrupted, with the events that are stored; return whether it was.

        So it is with an answer in progress that has no lease, which a restored copy may have. A turn that can
        be gone on with (`chatkeep.events.state_of`) stays open for GRACE, for a worker that does. Idempotent.
        """

    @abstractmethod
    async def resume_turn(
        self,
        owner: str,
        conversation_id: UUID | str,
        message_id: UUID | str,
        *,
        worker: UUID,
        lease: timedelta = LEASE,
    ) -> ResumedTurn | None:
        """Take over a turn whose lease has expired and that can be gone on with; None if it is not such a turn.

        Of several workers one gets it. Nobody gets one whose question was deleted.
        """

    @abstractmethod
    async def expired_turns(self) -> Sequence[TurnKey]:
        """Return some turns of all owners whose leases have expired, those first that expired first.

        Names no owner, as `expire_turns`.
        """

    @abstractmethod
    async def expire_turns(self) -> int:
        """Close turns of all owners whose leases have expired, and return how many were closed.

        This and `expired_turns` name no owner: nobody may come back to a conversation whose process died.
        """

    @abstractmethod
    async def answer_stats(self, owner: str, *, after: datetime, before: datetime) -> list[AnswerStats]:
        """Return what the owner's answers with a model took, for each day with one and at last for all of them.

        Those that were begun from `after`, inclusive, to `before`, exclusive, at most 366 days later. Raises
        InvalidInput for another range.
        """
