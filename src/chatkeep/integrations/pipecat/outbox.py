"""Messages on their way to the recorder."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from chatkeep.integrations.pipecat.speech import Utterance, times_of
from chatkeep.model import Role, Status
from chatkeep.recorder.log import say

if TYPE_CHECKING:
    from chatkeep.recorder import Recorder

logger = logging.getLogger(__package__)

LONGEST_WAIT = 1.0
"""Longest time in seconds that a message waits for the end of its speech: words are reported as they begin."""


@dataclass(slots=True)
class Message:
    """A message that is not recorded yet."""

    role: Role
    content: str
    at: datetime | None
    """When it was said, if its speech is not known."""
    status: Status = Status.COMPLETE
    speech: list[Utterance] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] | None = None
    is_incomplete: bool = False
    """Whether a frame that is still to come says more about it."""
    is_overdue: bool = False
    """Whether it has waited long enough."""

    @property
    def is_being_spoken(self) -> bool:
        """Whether its speech has not ended."""
        return bool(self.speech) and self.speech[-1].stopped_at is None


class Outbox:
    """Passes messages to the recorder, in the order in which they were put.

    A message that is incomplete or still being spoken waits, but not longer than LONGEST_WAIT; for the end of its
    speech, not longer than until the next message either.
    """

    def __init__(self, recorder: "Recorder", owner: str, conversation_id: UUID) -> None:
        self._recorder = recorder
        self._owner = owner
        self._conversation_id = conversation_id
        self._waiting: deque[Message] = deque()
        self.is_closed = False
        self._noted: set[str] = set()

    def put(self, message: Message, *, longest_wait: float | None = None) -> None:
        """Record a message after those that wait. `longest_wait` is in seconds, LONGEST_WAIT without one."""
        self._waiting.append(message)
        self.settle()
        if self._waiting:
            seconds = LONGEST_WAIT if longest_wait is None else longest_wait
            asyncio.get_running_loop().call_later(seconds, self._give_up, message)

    def settle(self) -> None:
        """Record the messages that have no more to wait for. Call it when something about one has changed."""
        while self._waiting and not self._waits(self._waiting[0]):
            self._record(self._waiting.popleft())

    def flush(self) -> None:
        """Record what waits, without what it waits for."""
        for message in self._waiting:
            message.is_overdue = True
        self.settle()

    def close(self) -> None:
        """Record what waits: the pipeline has ended. Later messages do not wait."""
        self.is_closed = True
        self.flush()

    def note_once(self, what: str, level: int = logging.WARNING) -> None:
        """Log what is not recorded, once for a conversation."""
        if what not in self._noted:
            self._noted.add(what)
            say(logger, level, "not recorded in %s: %s", self._conversation_id, what)

    def _waits(self, first: Message) -> bool:
        if self.is_closed or first.is_overdue:
            return False
        return first.is_incomplete or (first.is_being_spoken and len(self._waiting) == 1)

    def _give_up(self, message: Message) -> None:
        message.is_overdue = True
        self.settle()

    def _record(self, message: Message) -> None:
        times = times_of(message.speech)
        try:
            self._recorder.record(
                self._owner,
                self._conversation_id,
                message.role,
                message.content,
                sent_at=message.speech[0].started_at if message.speech else message.at,
                metadata={**({"speech": times} if times else {}), **message.metadata},
                status=message.status,
                parts=message.parts,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the conversation goes on
            what = "a message of the %s in %s is not recorded"
            say(logger, logging.ERROR, what, message.role, self._conversation_id, error=error)
