"""What makes an answer: the interface of a provider."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from chatkeep.events import PROVIDER, Event, TurnEvent
from chatkeep.model import Message, Status
from chatkeep.store import Store


class ProviderFailed(Exception):
    """The provider cannot make the answer, or the rest of it."""

    def __init__(self, reason: str, kind: str = PROVIDER) -> None:
        """Take the reason, for the person who asked: nothing secret, nothing of internals; and the kind of error."""
        self.reason = reason
        self.kind = kind
        super().__init__(reason)


def _forget(state: dict[str, Any]) -> None:
    """Remember nothing: nobody goes on with this answer."""


async def _nothing_waits() -> None:
    """Return: nothing is stored of this answer."""


class Asked(NamedTuple):
    """What an answer is made of."""

    store: Store
    owner: str
    conversation_id: UUID
    question: Message
    answer_id: UUID
    so_far: Sequence[TurnEvent] = ()
    """What a process that is gone has made of the answer; `chatkeep.events.state_of` has what it remembered."""
    remember: Callable[[dict[str, Any]], None] = _forget
    """Takes what another process needs to go on with what the provider yields from now on. It is stored among the
    events, after those that were yielded, and holds until a tool is called."""
    all_stored: Callable[[], Awaitable[None]] = _nothing_waits
    """Returns when all that was yielded is stored: wait for it before something happens that must not happen again."""
    is_lost: Callable[[], bool] = bool
    """Whether another process has the turn now, or is to go on with it."""

    async def history(self) -> AsyncIterator[Message]:
        """Iterate over what was said before, and the question, oldest first; without answers in progress."""
        messages = self.store.messages(self.owner, self.conversation_id, leaf=self.question.id)
        async for message in messages:
            if message.status is not Status.IN_PROGRESS:
                yield message


class Provider(ABC):
    """Makes answers, of any number of turns at a time."""

    model: str | None
    """The name of what makes them, for statistics. None: each answer says it itself, by a `usage` event."""

    resumes: bool = False
    """Whether it goes on with answers of processes that are gone: it is given their events, then."""

    @abstractmethod
    def answer(self, asked: Asked) -> AsyncGenerator[Event]:
        """Make an answer, event by event. It is closed early if the turn is stopped or lost.

        Raises ProviderFailed with a reason that is shown; of every other exception only the log gets to know.
        """

    async def prepare(self, store: Store) -> None:  # noqa: B027 - most have nothing to prepare
        """Get ready for the first question: what is slow is done before, beside the loop."""

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to close
        """Close what it is connected to, when no answer is made any more. Idempotent."""
