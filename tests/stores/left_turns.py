"""Turns whose worker is gone, and that another one can go on with, for the tests of the rows of a database."""

from datetime import timedelta
from uuid import UUID

from chatkeep import NewConversation, Store
from chatkeep.events import EventKind, TurnEvent
from chatkeep.testing import user
from chatkeep.turns import TurnKey, TurnWrite

STATE = TurnEvent(1, EventKind.STATE, {"\0": "\0"})
AT_ONCE = timedelta(0)


async def left(store: Store, owner: str, worker: UUID) -> TurnKey:
    """A turn whose worker is gone, and whose last event is a state."""
    talk = await store.create_conversation(owner, NewConversation())
    turn = await store.turns.start_turn(owner, talk.id, user("why?"), worker=worker, lease=AT_ONCE)
    key = TurnKey(owner, talk.id, turn.answer.id)
    await store.turns.append_turn_events(worker, [TurnWrite(key, [STATE])], lease=AT_ONCE)
    return key
