"""A synchronous store as an asynchronous one: what the contract says of a store is tested of both."""

import abc
import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any

from chatkeep import Message, Store, sync
from chatkeep.access import Access
from chatkeep.documents import Documents
from chatkeep.projects import Projects
from chatkeep.providers import Providers
from chatkeep.store import Observer
from chatkeep.turns import Turns

THREADS = 64
"""Most calls of one store at a time."""


class ThreadedPort:
    """A port of a synchronous store, each call of which is made in a thread."""

    def __init__(self, threads: ThreadPoolExecutor, port: Any) -> None:
        self._threads = threads
        self._sync = port

    async def in_thread[T](self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call `function` in a thread, and wait for its end even if cancelled: nothing can interrupt a thread."""
        call = asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments, **options))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait([call])
            call.exception()  # which nobody else looks at
            raise


def threaded[C: type](port: type) -> Callable[[C], C]:
    """Give a class the abstract methods of a port, each of which calls that of the synchronous port in a thread."""

    def complete(cls: C) -> C:
        for name in port.__abstractmethods__ & cls.__abstractmethods__:  # type: ignore[attr-defined]
            setattr(cls, name, _method(getattr(port, name)))
        abc.update_abstractmethods(cls)
        return cls

    return complete


def _method(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method, updated=())
    async def call(self: ThreadedPort, *arguments: Any, **options: Any) -> Any:
        return await self.in_thread(getattr(self._sync, method.__name__), *arguments, **options)

    return call


@threaded(Access)
class ThreadedAccess(ThreadedPort, Access):
    """The synchronous port of API keys."""


@threaded(Turns)
class ThreadedTurns(ThreadedPort, Turns):
    """The synchronous port of turns."""


@threaded(Providers)
class ThreadedProviders(ThreadedPort, Providers):
    """The synchronous port of providers."""


@threaded(Projects)
class ThreadedProjects(ThreadedPort, Projects):
    """The synchronous port of projects."""


@threaded(Documents)
class ThreadedDocuments(ThreadedPort, Documents):
    """The synchronous port of documents."""


@threaded(Store)
class ThreadedStore(ThreadedPort, Store):
    """The synchronous store."""

    @property
    def observer(self) -> Observer | None:
        """The observer of the synchronous store."""
        observer: Observer | None = self._sync.observer
        return observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._sync.observer = observer

    @property
    def access(self) -> Access:
        """API keys."""
        return ThreadedAccess(self._threads, self._sync.access)  # type: ignore[abstract]

    @property
    def turns(self) -> Turns:
        """Turns."""
        return ThreadedTurns(self._threads, self._sync.turns)  # type: ignore[abstract]

    @property
    def providers(self) -> Providers:
        """Providers."""
        return ThreadedProviders(self._threads, self._sync.providers)  # type: ignore[abstract]

    @property
    def projects(self) -> Projects:
        """Projects."""
        return ThreadedProjects(self._threads, self._sync.projects)  # type: ignore[abstract]

    @property
    def documents(self) -> Documents:
        """Documents."""
        return ThreadedDocuments(self._threads, self._sync.documents)  # type: ignore[abstract]

    async def messages(self, *arguments: Any, **options: Any) -> AsyncIterator[Message]:
        """Iterate over the messages of a path."""
        iterator = self._sync.messages(*arguments, **options)
        while (message := await self.in_thread(next, iterator, None)) is not None:
            yield message

    async def aclose(self) -> None:
        """Close the store."""
        await asyncio.to_thread(self._sync.close)


@asynccontextmanager
async def open_threaded(url: str, **options: Any) -> AsyncIterator[Store]:
    """Open a synchronous store in a thread, and use it from others."""
    with ThreadPoolExecutor(THREADS) as threads:
        store = ThreadedStore(threads, await asyncio.to_thread(lambda: sync.open_store(url, **options)))  # type: ignore[abstract]
        try:
            yield store
        finally:
            await store.aclose()


assert not inspect.isabstract(ThreadedStore)
