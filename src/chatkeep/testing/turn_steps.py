"""The steps of a turn, as the tests of turns take them."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from chatkeep.events import Event, Folded, TurnEvent, fold, text
from chatkeep.model import Message, NewMessage, Status
from chatkeep.store import Store
from chatkeep.testing.messages import user
from chatkeep.turns import LEASE, Ending, ResumedTurn, Turn, TurnKey, TurnPlace, TurnProgress, TurnState, TurnWrite

AT_ONCE = timedelta(milliseconds=1)
"""A lease that expires before anybody looks."""


def pieces(content: str) -> list[Event]:
    """Return a text as events, a word each."""
    return [text(piece) for piece in content.replace(" ", " \0").split("\0")]


def counted(events: Iterable[Event], after: int = 0) -> list[TurnEvent]:
    """Return events with their numbers, which follow `after`."""
    return [TurnEvent(n, *event) for n, event in enumerate(events, after + 1)]


@dataclass
class Running:
    """A turn that a test has begun, and what its worker does."""

    store: Store
    turn: Turn
    key: TurnKey
    worker: UUID
    events: list[TurnEvent] = field(default_factory=list)
    """What the worker has written, or tried to."""

    @property
    def answer_id(self) -> UUID:
        """The id of the answer."""
        return self.key.message_id

    @property
    def folded(self) -> Folded:
        """What the events add up to."""
        return fold(self.events)

    def ending(self, status: Status = Status.COMPLETE) -> Ending:
        """The end of the turn with these events."""
        return Ending.of(self.folded, status, 1_234)

    async def write(self, *events: Event, lease: timedelta = LEASE) -> TurnState:
        """Write the next events."""
        new = counted(events, len(self.events))
        self.events += new
        return await self.repeat(new, lease=lease)

    async def repeat(self, events: Sequence[TurnEvent], *, lease: timedelta = LEASE) -> TurnState:
        """Write events with the numbers that they have, again while another process has the turn locked."""
        state = TurnState.BUSY
        while state is TurnState.BUSY:
            states = await self.store.turns.append_turn_events(self.worker, [TurnWrite(self.key, events)], lease=lease)
            state = states[self.key]
        return state

    async def finish(self, ending: Ending | None = None, *, worker: UUID | None = None) -> Message:
        """Finish the turn, with what was written if nothing else is said."""
        return await self.store.turns.finish_turn(
            *self.key, self.ending() if ending is None else ending, worker=worker or self.worker
        )

    async def stop(self) -> bool:
        """Ask the worker to stop."""
        return await self.store.turns.stop_turn(*self.key)

    async def resume(self, *, lease: timedelta = LEASE) -> ResumedTurn | None:
        """Take the turn over from a worker that is gone, if that can be done."""
        return await self.store.turns.resume_turn(*self.key, worker=self.worker, lease=lease)

    async def expire(self) -> bool:
        """Close the turn if its lease has expired."""
        return await self.store.turns.expire_turn(*self.key)

    async def wait_until_expired(self) -> None:
        """Wait until the lease has expired, by the store's clock."""
        while not (await self.progress()).has_expired:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)

    async def progress(self, after: int = 0) -> TurnProgress:
        """What a reader has not read yet, as much as the store returns at once."""
        (found,) = await self.store.turns.turn_events([TurnPlace(self.key, after)])
        return found._replace(events=list(found.events))

    async def read(self, after: int = 0) -> list[TurnEvent]:
        """All events after a number."""
        found: list[TurnEvent] = []
        while events := (await self.progress(found[-1].n if found else after)).events:
            found += events
        return found

    async def message(self) -> Message:
        """The answer as it is now."""
        return await self.store.get_message(*self.key)


async def begin(
    store: Store, owner: str, conversation_id: UUID, question: NewMessage | UUID | str = "sage?", **arguments: Any
) -> Running:
    """Begin a turn, which must not have been there, as a worker of its own unless one is named."""
    asked = user(question) if isinstance(question, str) else question
    worker = arguments.pop("worker", None) or uuid4()
    turn = await store.turns.start_turn(owner, conversation_id, asked, worker=worker, **arguments)
    assert turn.is_mine
    return Running(store, turn, TurnKey(owner, conversation_id, turn.answer.id), worker)


async def gone(running: Running) -> None:
    """Check that nothing is left of a turn, for its worker and for readers."""
    assert await running.progress() == TurnProgress([], is_running=False)
    assert await running.write(text("late")) is TurnState.LOST
