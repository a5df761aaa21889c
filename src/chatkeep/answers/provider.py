"""What makes an answer: the interface of a provider."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple
from uuid import UUID

from chatkeep.events import PROVIDER, Event
from chatkeep.model import Message, Status
from chatkeep.store import Store


class ProviderFailed(Exception):
    """The provider cannot make the answer, or the rest of it."""

    def __init__(self, reason: str, kind: str = PROVIDER) -> None:
        """Take the reason, for the person who asked: nothing secret, nothing of internals; and the kind of error."""
        self.reason = reason
        self.kind = kind
        super().__init__(reason)


class Asked(NamedTuple):
    """What an answer is made of."""

    store: Store
    owner: str
    conversation_id: UUID
    question: Message
    answer_id: UUID

    async def history(self) -> AsyncIterator[Message]:
        """Iterate over what was said before, and the question, oldest first; without answers in progress."""
        messages = self.store.messages(self.owner, self.conversation_id, leaf=self.question.id)
        async for message in messages:
            if message.status is not Status.IN_PROGRESS:
                yield message


class Provider(ABC):
    """Makes answers, of any number of turns at a time."""

    model: str
    """The name of what makes them, for statistics."""

    @abstractmethod
    def answer(self, asked: Asked) -> AsyncGenerator[Event]:
        """Make an answer, event by event. It is closed early if the turn is stopped or lost.

        Raises ProviderFailed with a reason that is shown; of every other exception only the log gets to know.
        """
