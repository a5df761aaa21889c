"""The methods of the port, and a call of each."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from chatkeep.documents import ChunkRange, Content, content_id
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
from chatkeep.projects import NewProject, ProjectChange
from chatkeep.providers import LlmProviderChange, NewLlmProvider
from chatkeep.store import Order, Store
from chatkeep.testing.document_steps import SPACE, a_document, passages, sha256_of, vector
from chatkeep.testing.messages import user
from chatkeep.turns import Ending, TurnKey, TurnPlace, TurnWrite
from chatkeep.values import now

type Call = Callable[[Store, str, Any, Any], Awaitable[object]]
"""Calls a method with an owner, a conversation's id and a message's id."""


METHODS = sorted(name for name in Store.__abstractmethods__ if not isinstance(getattr(Store, name), property))
"""The methods of the port. Its properties are ports of their own."""


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
    "resume_turn": lambda store, owner, c, m: store.turns.resume_turn(owner, c, m, worker=uuid4()),
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
    "expired_turns": lambda store, *_: store.turns.expired_turns(),
}
"""A call of every other method of `Turns`."""


NAME_NO_OWNER = frozenset({"expire_turns", "expired_turns"})
"""The methods of `Turns` that name no owner, neither themselves nor in what they are given: nobody may come back to a
conversation whose process died, so that they look at the turns of all owners."""


PROVIDER_CALLS: Mapping[str, Callable[[Store, Any], Awaitable[object]]] = {
    "create_provider": lambda store, id_: store.providers.create_provider(
        NewLlmProvider(id=id_, provider_name="scripted", model_name="small")
    ),
    "get_provider": lambda store, id_: store.providers.get_provider(id_),
    "list_providers": lambda store, _: store.providers.list_providers(),
    "update_provider": lambda store, id_: store.providers.update_provider(id_, LlmProviderChange(model_name="large")),
    "delete_provider": lambda store, id_: store.providers.delete_provider(id_),
}
"""A call of every method of `Providers`, with a provider's id. None names an owner: providers belong to the
installation, and who may change them is for the caller to decide."""


CALLED_WITH = "private saffron"
"""The text of the document with which the calls below are made."""


def _content(document: Any) -> Content:
    """The content of a document with that text."""
    id_ = content_id(document, sha256_of(CALLED_WITH)) if isinstance(document, UUID) else uuid4()
    return Content(document, id_, "saffron.md", None, 3, 1)


def _ranges(document: Any) -> list[ChunkRange]:
    return [ChunkRange(document, _content(document).id, 0, 2)]


PROJECT_CALLS: Mapping[str, Call] = {
    "get_project": lambda store, owner, p, _: store.projects.get_project(owner, p),
    "update_project": lambda store, owner, p, _: store.projects.update_project(
        owner, p, ProjectChange(name="taken over", metadata={"taken": True})
    ),
    "delete_project": lambda store, owner, p, _: store.projects.delete_project(owner, p),
    "store_document": lambda store, owner, p, _: store.documents.store_document(
        owner, p, a_document("saffron.md", "let me in"), passages("let me in", 2)
    ),
    "get_document": lambda store, owner, p, d: store.documents.get_document(owner, p, d),
    "list_documents": lambda store, owner, p, _: store.documents.list_documents(owner, p),
    "delete_document": lambda store, owner, p, d: store.documents.delete_document(owner, p, d),
    "document_chunks": lambda store, owner, p, d: store.documents.document_chunks(owner, p, d),
    "contents": lambda store, owner, p, _: store.documents.contents(owner, p),
    "index_entries": lambda store, owner, p, d: store.documents.index_entries(owner, p, _ranges(d), space=SPACE),
    "chunks": lambda store, owner, p, d: store.documents.chunks(owner, p, _ranges(d)),
    "nearest_chunks": lambda store, owner, p, _: store.documents.nearest_chunks(owner, p, SPACE, vector(1)),
    "claim_embedding": lambda store, owner, p, _: store.documents.claim_embedding(owner, p, uuid4()),
    "count_vectors": lambda store, owner, p, _: store.documents.count_vectors(owner, p, SPACE),
    "without_vectors": lambda store, owner, p, d: store.documents.without_vectors(owner, p, _content(d), "other/2"),
    "add_vectors": lambda store, owner, p, d: store.documents.add_vectors(
        owner, p, _content(d), SPACE, {0: vector(7), 1: vector(7)}
    ),
    "use_space": lambda store, owner, p, _: store.documents.use_space(owner, p, "other/2"),
}
"""A call of every method of `Projects` and `Documents` that takes a project's id, with it and a document's id."""


OTHER_PROJECT_CALLS: Mapping[str, Call] = {
    "create_project": lambda store, owner, *_: store.projects.create_project(owner, NewProject(name="Garden")),
    "list_projects": lambda store, owner, *_: store.projects.list_projects(owner),
}
"""A call of every other method of `Projects`."""


DOCUMENT_CALLS = ("get_document", "delete_document", "document_chunks", "add_vectors", "without_vectors")
"""The methods that look up a document by its id."""
