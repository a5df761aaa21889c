"""The store for programs without an event loop: Flask, Streamlit, notebooks, scripts.

    from chatkeep import NewConversation, NewMessage
    from chatkeep.sync import open_store

    with open_store("sqlite:///chat.db") as store:
        conversation = store.create_conversation("ada", NewConversation(title="Tea"))
        store.append("ada", conversation.id, [NewMessage(role="user", content="How hot?")])
        page = store.history("ada", conversation.id)

Every method is that of `chatkeep.Store`, with its arguments, result, errors and deadline; only `aclose` is `close`. It
runs on an event loop in a thread of the store's own, while the calling thread waits. A store is for all threads of a
process: what they append at the same time shares commits. A thread with a running event loop, such as a notebook's,
may call it, too; that loop waits.

A call that is interrupted, by Ctrl-C for example, is cancelled: its write is stored or not, and retrying with the same
ids tells.
"""

import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping
from inspect import signature
from types import TracebackType
from typing import Any, Concatenate, Protocol, Self, cast, overload
from uuid import UUID

from chatkeep import store as async_store
from chatkeep.access import Access as AsyncAccess
from chatkeep.documents import Documents as AsyncDocuments
from chatkeep.model import Message
from chatkeep.projects import Projects as AsyncProjects
from chatkeep.providers import Providers as AsyncProviders
from chatkeep.store import Observer, Order
from chatkeep.store import Store as AsyncStore
from chatkeep.sync_loop import LoopThread
from chatkeep.turns import Turns as AsyncTurns


class Method[**P, R](Protocol):
    """A method with the parameters `P`, for type checkers."""

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[Concatenate[Any, P], R]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Callable[P, R]: ...


class Port:
    """A port of an asynchronous store, used from other threads."""

    def __init__(self, loop: LoopThread, port: object, store: "Store | None" = None) -> None:
        """Take the loop that the port runs on, and the store that it belongs to, which is to stay open with it."""
        self._loop = loop
        self._port: Any = port
        self._store = store


def blocking[**P, R](method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Method[P, R]:
    """Return a method of `Port` that waits for a port's, with its name, parameters and docstring."""
    name = method.__name__

    def call(self: Port, /, *arguments: P.args, **options: P.kwargs) -> R:
        result: R = self._loop.call(getattr(self._port, name), *arguments, **options)
        return result

    vars(call)["__signature__"] = signature(method)
    return cast("Method[P, R]", described_by(method)(call))


def described_by[F: Callable[..., Any]](method: Callable[..., Any]) -> Callable[[F], F]:
    """Give a function the name and docstring of a port's method.

    Without `__wrapped__`, by which some take a function for the coroutine function that it wraps.
    """

    def describe(function: F) -> F:
        function.__name__, function.__qualname__ = method.__name__, method.__qualname__
        function.__doc__ = method.__doc__
        return function

    return describe


class Access(Port):
    """API keys and replies, as `chatkeep.access.Access`."""

    create_key = blocking(AsyncAccess.create_key)
    find_key = blocking(AsyncAccess.find_key)
    list_keys = blocking(AsyncAccess.list_keys)
    revoke_key = blocking(AsyncAccess.revoke_key)
    key_used = blocking(AsyncAccess.key_used)
    list_owners = blocking(AsyncAccess.list_owners)
    begin_request = blocking(AsyncAccess.begin_request)
    finish_request = blocking(AsyncAccess.finish_request)
    abandon_request = blocking(AsyncAccess.abandon_request)
    forget_replies = blocking(AsyncAccess.forget_replies)
    forget_expired = blocking(AsyncAccess.forget_expired)
    forget_owner = blocking(AsyncAccess.forget_owner)
    note_erasure = blocking(AsyncAccess.note_erasure)
    erased_at = blocking(AsyncAccess.erased_at)
    rename_owner = blocking(AsyncAccess.rename_owner)


class Turns(Port):
    """Turns of conversations, as `chatkeep.turns.Turns`."""

    start_turn = blocking(AsyncTurns.start_turn)
    append_turn_events = blocking(AsyncTurns.append_turn_events)
    finish_turn = blocking(AsyncTurns.finish_turn)
    turn_events = blocking(AsyncTurns.turn_events)
    stop_turn = blocking(AsyncTurns.stop_turn)
    expire_turn = blocking(AsyncTurns.expire_turn)
    resume_turn = blocking(AsyncTurns.resume_turn)
    expired_turns = blocking(AsyncTurns.expired_turns)
    expire_turns = blocking(AsyncTurns.expire_turns)
    answer_stats = blocking(AsyncTurns.answer_stats)


class Providers(Port):
    """The providers of an installation, as `chatkeep.providers.Providers`."""

    create_provider = blocking(AsyncProviders.create_provider)
    get_provider = blocking(AsyncProviders.get_provider)
    list_providers = blocking(AsyncProviders.list_providers)
    update_provider = blocking(AsyncProviders.update_provider)
    delete_provider = blocking(AsyncProviders.delete_provider)


class Projects(Port):
    """Projects, as `chatkeep.projects.Projects`."""

    create_project = blocking(AsyncProjects.create_project)
    get_project = blocking(AsyncProjects.get_project)
    list_projects = blocking(AsyncProjects.list_projects)
    update_project = blocking(AsyncProjects.update_project)
    delete_project = blocking(AsyncProjects.delete_project)


class Documents(Port):
    """Documents of projects, as `chatkeep.documents.Documents`."""

    store_document = blocking(AsyncDocuments.store_document)
    get_document = blocking(AsyncDocuments.get_document)
    list_documents = blocking(AsyncDocuments.list_documents)
    delete_document = blocking(AsyncDocuments.delete_document)
    document_chunks = blocking(AsyncDocuments.document_chunks)
    contents = blocking(AsyncDocuments.contents)
    index_entries = blocking(AsyncDocuments.index_entries)
    chunks = blocking(AsyncDocuments.chunks)
    nearest_chunks = blocking(AsyncDocuments.nearest_chunks)
    claim_embedding = blocking(AsyncDocuments.claim_embedding)
    count_vectors = blocking(AsyncDocuments.count_vectors)
    without_vectors = blocking(AsyncDocuments.without_vectors)
    add_vectors = blocking(AsyncDocuments.add_vectors)
    use_space = blocking(AsyncDocuments.use_space)


class Store(Port):
    """Conversations and their messages, by owner, as `chatkeep.Store`. Use it in `with`, or call `close`."""

    def __init__(self, loop: LoopThread, port: AsyncStore) -> None:
        super().__init__(loop, port)
        weakref.finalize(self, loop.abandon, port.aclose).atexit = False

    create_conversation = blocking(AsyncStore.create_conversation)
    get_or_create_conversation = blocking(AsyncStore.get_or_create_conversation)
    get_conversation = blocking(AsyncStore.get_conversation)
    find_conversation = blocking(AsyncStore.find_conversation)
    list_conversations = blocking(AsyncStore.list_conversations)
    update_conversation = blocking(AsyncStore.update_conversation)
    delete_conversation = blocking(AsyncStore.delete_conversation)
    append = blocking(AsyncStore.append)
    import_conversation = blocking(AsyncStore.import_conversation)
    export_conversation = blocking(AsyncStore.export_conversation)
    export_messages = blocking(AsyncStore.export_messages)
    history = blocking(AsyncStore.history)
    log = blocking(AsyncStore.log)
    get_message = blocking(AsyncStore.get_message)
    siblings = blocking(AsyncStore.siblings)
    update_message = blocking(AsyncStore.update_message)
    delete_message = blocking(AsyncStore.delete_message)
    search_messages = blocking(AsyncStore.search_messages)
    erase_owner = blocking(AsyncStore.erase_owner)
    rename_owner = blocking(AsyncStore.rename_owner)
    migrate = blocking(AsyncStore.migrate)
    schema_revision = blocking(AsyncStore.schema_revision)
    distribute = blocking(AsyncStore.distribute)
    backup = blocking(AsyncStore.backup)
    ping = blocking(AsyncStore.ping)

    @described_by(AsyncStore.messages)
    def messages(
        self,
        owner: str,
        conversation_id: UUID | str,
        *,
        before: int | None = None,
        after: int | None = None,
        order: Order = "asc",
        leaf: UUID | str | None = None,
        page: int = 200,
    ) -> Iterator[Message]:
        cursor: str | None = None
        while True:
            found = self.history(
                owner, conversation_id, limit=page, before=before, after=after, order=order, leaf=leaf, cursor=cursor
            )
            yield from found.items if order == "asc" else reversed(found.items)
            if (cursor := found.next) is None:
                return

    @described_by(AsyncStore.state)
    def state(self) -> Mapping[str, int]:
        async def state() -> Mapping[str, int]:
            gauges: Mapping[str, int] = self._port.state()
            return gauges

        return self._loop.call(state)

    @property
    def observer(self) -> Observer | None:
        """Told of every call of a method of the port and of every group commit. Set it before the first call.

        It is told on the store's event loop, and cannot use the store there.
        """
        observer: Observer | None = self._port.observer
        return observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._port.observer = observer

    @property
    def newest_revision(self) -> str:
        """What `schema_revision` is after `migrate`."""
        revision: str = self._port.newest_revision
        return revision

    @property
    def access(self) -> Access:
        """API keys and replies to retried requests, in the same database."""
        return Access(self._loop, self._port.access, self)

    @property
    def turns(self) -> Turns:
        """Questions and the answers that are being made of them, in the same database."""
        return Turns(self._loop, self._port.turns, self)

    @property
    def providers(self) -> Providers:
        """What answers questions, in the same database."""
        return Providers(self._loop, self._port.providers, self)

    @property
    def projects(self) -> Projects:
        """What conversations and documents belong to, in the same database."""
        return Projects(self._loop, self._port.projects, self)

    @property
    def documents(self) -> Documents:
        """Texts that a search finds, in the same database."""
        return Documents(self._loop, self._port.documents, self)

    def close(self) -> None:
        """Finish the accepted writes, for at most `write_timeout` seconds, refuse new ones, and close. Idempotent.

        Does nothing in a forked child, whose parent has the store, nor while the interpreter exits.
        """
        self._loop.close(self._port.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_store(url: str, *, migrate: bool = True, **options: str | float) -> Store:
    """Open the store that `url` names, at once.

        with open_store("sqlite:///chat.db") as store:
            ...

    Without `with`, call `close` at the end. Arguments and errors are those of `chatkeep.open_store`.
    """
    loop = LoopThread()

    async def opened() -> AsyncStore:
        return await async_store.open_store(url, migrate=migrate, **options)

    try:
        return Store(loop, loop.call(opened))
    except BaseException:
        loop.stop()
        raise
