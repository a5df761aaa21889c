"""The methods of the port, and a call of each."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import uuid4

from chatkeep.events import TurnEvent, text
from chatkeep.model import (
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    MessageChange,
    NewConversation,
    Role,
    Status,
)
from chatkeep.store import Order, Store
from chatkeep.testing.messages import user
from chatkeep.turns import Ending, TurnKey, TurnPlace, TurnWrite
from chatkeep.values import now

type Call = Callable[[Store, str, Any, Any], Awaitable[object]]
"""Calls a method with an owner, a conversation's id and a message's id."""


METHODS = sorted(name for name in Store.__abstractmethods__ if name not in ("access", "turns"))
"""The methods of the port; `access` and `turns` are ports of their own."""


CONVERSATION_CALLS: Mapping[str, Call] = {
    "get_conversation": lambda store, owner, c, _: store.get_conversation(owner, c),
    "update_conversation": lambda store, owner, c, _: store.update_conversation(
        owner,
        c,
        ConversationChange(
            title="taken over", context_id="taken", labels=("taken",), metadata={"taken": True}, head_id=None
        ),
    ),
    "delete_conversation": lambda store, owner, c, _: store.delete_conversation(owner, c),
    "append": lambda store, owner, c, _: store.append(owner, c, [user("let me in")]),
    "history": lambda store, owner, c, m: store.history(owner, c, leaf=m),
    "log": lambda store, owner, c, _: store.log(owner, c),
    "export_conversation": lambda store, owner, c, _: store.export_conversation(owner, c),
    "export_messages": lambda store, owner, c, _: store.export_messages(owner, c),
    "get_message": lambda store, owner, c, m: store.get_message(owner, c, m),
    "siblings": lambda store, owner, c, m: store.siblings(owner, c, m),
    "update_message": lambda store, owner, c, m: store.update_message(
        owner, c, m, MessageChange(metadata={"taken": True})
    ),
    "delete_message": lambda store, owner, c, m: store.delete_message(owner, c, m),
}
"""A call of every method that takes a conversation's id. A test compares the names with the port's."""


OWNER_CALLS: Mapping[str, Call] = {
    "create_conversation": lambda store, owner, *_: store.create_conversation(owner, NewConversation()),
    "get_or_create_conversation": lambda store, owner, *_: store.get_or_create_conversation(owner, NewConversation()),
    "find_conversation": lambda store, owner, *_: store.find_conversation(owner, "tea"),
    "import_conversation": lambda store, owner, *_: store.import_conversation(
        owner, ImportedConversation(), [ImportedMessage(role=Role.USER, content="tea")]
    ),
    "list_conversations": lambda store, owner, *_: store.list_conversations(owner),
    "search_messages": lambda store, owner, *_: store.search_messages(owner, "tea"),
    "erase_owner": lambda store, owner, *_: store.erase_owner(owner),
    "rename_owner": lambda store, owner, *_: store.rename_owner(owner, "somebody else"),
}
"""A call of every other method that takes an owner."""


ORDERS: tuple[Order, ...] = ("desc", "asc")
"""Both orders of a history."""


STORE_CALLS = frozenset({"migrate", "schema_revision", "ping", "aclose"})
"""The methods that concern the store as a whole."""


MESSAGE_CALLS = ("delete_message", "get_message", "history", "siblings", "update_message")
"""The methods that take a message's id, too."""


TURN_CALLS: Mapping[str, Call] = {
    "start_turn": lambda store, owner, c, _: store.turns.start_turn(owner, c, user("let me in"), worker=uuid4()),
    "start_turn again": lambda store, owner, c, m: store.turns.start_turn(owner, c, m, worker=uuid4()),
    "finish_turn": lambda store, owner, c, m: store.turns.finish_turn(
        owner, c, m, Ending(Status.COMPLETE, "taken over"), worker=uuid4()
    ),
    "stop_turn": lambda store, owner, c, m: store.turns.stop_turn(owner, c, m),
    "expire_turn": lambda store, owner, c, m: store.turns.expire_turn(owner, c, m),
}
"""Calls of every method of `Turns` that takes a conversation's id; of `start_turn` with both kinds of questions."""


OTHER_TURN_CALLS: Mapping[str, Call] = {
    "append_turn_events": lambda store, owner, c, m: store.turns.append_turn_events(
        uuid4(), [TurnWrite(TurnKey(owner, c, m), [TurnEvent(1, *text("let me in"))])]
    ),
    "turn_events": lambda store, owner, c, m: store.turns.turn_events([TurnPlace(TurnKey(owner, c, m))]),
    "answer_stats": lambda store, owner, *_: store.turns.answer_stats(
        owner, after=now() - timedelta(days=1), before=now() + timedelta(days=1)
    ),
    "expire_turns": lambda store, *_: store.turns.expire_turns(),
}
"""A call of every other method of `Turns`."""
