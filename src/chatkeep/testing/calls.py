"""The methods of the port, and a call of each."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from chatkeep.model import (
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    MessageChange,
    NewConversation,
    Role,
)
from chatkeep.store import Order, Store
from chatkeep.testing.messages import user

type Call = Callable[[Store, str, Any, Any], Awaitable[object]]
"""Calls a method with an owner, a conversation's id and a message's id."""


METHODS = sorted(name for name in Store.__abstractmethods__ if name != "access")
"""The methods of the port; `access` is a port of its own."""


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
