"""The port of a conversation store, and `open_store`, which opens one by URL.

Every method takes the owner first and sees that owner's conversations only. Ids are UUIDs, given as UUID
or text. A method that takes a conversation_id raises

- InvalidId      when an id is not a UUID,
- NotFound       when the owner has no such conversation,
- NotYours       instead of NotFound when somebody else has it, unless the store hides that (hide_foreign),
- StoreUnavailable when the database cannot be used now. Repeating the call later is safe.

A page ends at its limit, or before it has more bytes than `StoreOptions.max_page_bytes`, or if a thousand deleted
messages were passed on the way; it is never empty while there is something to return. `next` alone says whether the
list goes on, in rare cases to an empty page, if all that follows is deleted.

A write that returned is durable. A caller that is cancelled while it waits does not know whether its write was
stored, or will be in a moment: retrying with the same ids tells.
"""

import importlib
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlencode
from uuid import UUID

from chatkeep.access import Access
from chatkeep.documents import Documents
from chatkeep.errors import ChatkeepError, InvalidInput
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ErasureReceipt,
    ImportedConversation,
    ImportedMessage,
    ImportReceipt,
    Message,
    MessageChange,
    NewConversation,
    NewMessage,
    Page,
    SearchHit,
)
from chatkeep.options import StoreOptions, is_store_option
from chatkeep.projects import Projects
from chatkeep.providers import Providers
from chatkeep.turns import Turns
from chatkeep.urls import split_url

MAX_LIMIT = 1_000
"""Most items of one page, most messages of one append's result page; the HTTP API allows 200."""

MAX_OFFSET = 10_000
"""Furthest a page may lie from the start of its list; beyond it, cursors are exact and cost nothing."""

Order = Literal["desc", "asc"]
ListOrder = Literal["updated", "id"]


class Observer:
    """Told what a store does: override what is of interest. The methods run on the event loop and must not block."""

    def called(self, operation: str, seconds: float, error: ChatkeepError | None) -> None:
        """A method of the port returned after `seconds`, or raised `error`."""

    def committed(self, items: int) -> None:
        """One commit wrote the changes of `items` calls."""


class Backup(NamedTuple):
    """What a copy of a store holds."""

    revision: str
    owners: int
    conversations: int
    messages: int
    """Rows: also of deleted messages, and of conversations whose removal has begun."""


class Store(ABC):
    """Conversations and their messages, by owner."""

    observer: Observer | None = None
    """Told of every call of a method of the port and of every group commit. Set it before the first call."""

    driver_options: ClassVar[bool] = False
    """Whether unknown options in a URL's query are passed to the database's driver."""

    newest_revision: ClassVar[str]
    """What `schema_revision` is after `migrate`."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Have the observer told of the methods of the port that `cls` defines."""
        super().__init_subclass__(**arguments)
        for name in OBSERVED & vars(cls).keys():
            setattr(cls, name, _observed(name, vars(cls)[name]))

    def __init__(self, url: str, options: StoreOptions) -> None:  # noqa: ARG002 - adapters use it
        """Take the URL without the options, and the options; do not connect yet. Raises InvalidInput."""
        self._options = options

    @property
    @abstractmethod
    def access(self) -> Access:
        """API keys and replies to retried requests, in the same database."""

    @property
    @abstractmethod
    def turns(self) -> Turns:
        """Questions and the answers that are being made of them, in the same database."""

    @property
    @abstractmethod
    def providers(self) -> Providers:
        """What answers questions, in the same database."""

    @property
    @abstractmethod
    def projects(self) -> Projects:
        """What conversations and documents belong to, in the same database."""

    @property
    @abstractmethod
    def documents(self) -> Documents:
        """Texts that a search finds, in the same database."""

    @abstractmethod
    async def create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        """Store an empty conversation and return it.

        Idempotent by id: the same id with the same values returns the stored conversation as it is now.
        Raises Conflict when the owner used the id for other values, NotFound if there is no such project. An id that
        another owner uses is free.
        """

    @abstractmethod
    async def get_or_create_conversation(self, owner: str, new: NewConversation) -> Conversation:
        """Return the conversation that `new` names, the most recently updated one, or create `new`.

        With an external_id that is the conversation with this external_id; a new one gets an id that is made of it,
        as an import without a source makes it. Else it is one in `new.context_id` and `new.project_id`; conversations
        without a context, and without a project, are a scope of their own. Concurrent callers, on any number of
        processes, create one conversation. The other values of `new` are used if it is created, and ignored otherwise.
        Raises NotFound if there is no such project, InvalidInput for an id beside an external_id.
        """

    @abstractmethod
    async def get_conversation(self, owner: str, conversation_id: UUID | str) -> Conversation:
        """Return one conversation."""

    @abstractmethod
    async def find_conversation(self, owner: str, external_id: str) -> Conversation:
        """Return the most recently updated conversation with an external_id, or the one whose id is made of it.

        Raises NotFound if there is none.
        """

    @abstractmethod
    async def list_conversations(
        self,
        owner: str,
        *,
        context_id: str | None = None,
        project_id: UUID | str | None = None,
        external_id: str | None = None,
        labels: Sequence[str] = (),
        updated_after: datetime | None = None,
        updated_before: datetime | None = None,
        order: ListOrder = "updated",
        limit: int = 10,
        cursor: str | None = None,
        offset: int = 0,
        total: bool = False,
    ) -> Page[Conversation]:
        """Return a page of the owner's conversations: of one context, one project, with one external_id, if these are
        named; with all of `labels`, where "!archived" stands for those without that label; and updated after or before
        a time, exclusive.

        order="updated": most recently updated first. With the cursor nothing is returned twice; a
        conversation that is updated while you page moves to the front and may be missed.
        order="id": by id, stable. `cursor` is the `next` of the page before, with the other arguments
        unchanged. limit is 1 to 1,000, offset 0 to 10,000 and not together with a cursor. `total` counts
        the whole list, which costs more than the page. Raises InvalidInput, also for a list by time in another order
        than "updated".
        """

    @abstractmethod
    async def update_conversation(
        self, owner: str, conversation_id: UUID | str, change: ConversationChange
    ) -> Conversation:
        """Change title, context_id, labels, metadata or head, and return the conversation.

        Omitted fields keep their value; labels are replaced.

        Metadata is merged (RFC 7396) in the same transaction: concurrent changes of different keys both apply.
        Moving the head makes history follow another path, and the next message continue there.
        Does not move updated_at. Raises NotFound when head_id names no message of the conversation, InvalidInput
        when the metadata would be larger than the store allows.
        """

    @abstractmethod
    async def delete_conversation(self, owner: str, conversation_id: UUID | str) -> bool:
        """Remove a conversation with everything in it, and return whether there was one.

        It is invisible to every reader at once, even if removing a large one takes time: a call that finds it half
        removed finishes the removal and returns True. Replies that were kept for its creation go, too.
        Raises NotYours as described above, never NotFound.
        """

    @abstractmethod
    async def append(
        self,
        owner: str,
        conversation_id: UUID | str,
        messages: Sequence[NewMessage] | NewMessage,
        *,
        expected_seq: int | None = None,
    ) -> list[Message]:
        """Append messages in order and return them as they are stored, one for each that was given.

        `messages` is a list or tuple of NewMessage; one NewMessage alone is a list of one.

        Atomic: all or none. Their seqs are consecutive, in the order of commits, whoever else appends. Each
        follows the head unless it names a parent, and becomes the head.

        Idempotent by message id within the conversation: what is known already, with the same values, is
        returned as it is now; the rest is stored. Raises Conflict, and stores nothing, when an id is known
        with other values, or when new messages are given and expected_seq is not the conversation's last
        seq. Raises NotFound when a parent is not in the conversation, InvalidInput for an empty list, for
        anything but NewMessages, and for content or metadata above the store's limits. Makes a title from the first
        user message if the conversation has none.
        """

    @abstractmethod
    async def import_conversation(
        self,
        owner: str,
        conversation: ImportedConversation,
        messages: Sequence[ImportedMessage] = (),
        *,
        update: bool = False,
    ) -> ImportReceipt:
        """Store a conversation from another system, or from a store's export, with all its messages in order.

        Atomic and idempotent by id. Of a conversation that is there, only new messages are stored, and the receipt
        names what differs: `title`, `context_id`, `project_id`, `external_id`, `labels`, `metadata`, `deletions`,
        `head`. With `update` title, context_id, labels, metadata, deletions and head are taken over. A project of a new
        conversation is made if there is none. Without it the thread that is visible goes on with new messages
        that follow it, and never moves otherwise.

        Raises Conflict if a message is there with other content, NotFound if a parent is not among the messages or
        stored, InvalidInput for metadata above the store's limits.
        """

    @abstractmethod
    async def export_conversation(self, owner: str, conversation_id: UUID | str) -> tuple[ImportedConversation, int]:
        """Return a conversation as `import_conversation` takes it, and its last seq.

        With its messages up to that seq (`export_messages`), which cannot change but by deletion, it is as it was at
        this call, whoever else writes.
        """

    @abstractmethod
    async def export_messages(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[ImportedMessage]:
        """Return messages as `import_conversation` takes them, as `log` returns them."""

    @abstractmethod
    async def history(
        self,
        owner: str,
        conversation_id: UUID | str,
        *,
        limit: int = 50,
        before: int | None = None,
        after: int | None = None,
        order: Order = "desc",
        leaf: UUID | str | None = None,
        cursor: str | None = None,
        offset: int = 0,
        total: bool = False,
    ) -> Page[Message]:
        """Return a page of the path that ends with `leaf`, or with the head: always oldest first.

        order="desc" begins with the newest `limit` messages and pages back; order="asc" begins with the
        oldest and pages forward. `before` and `after` are seqs, exclusive. The cursor keeps the path of the
        first page, even if the head moves meanwhile: nothing is missed or returned twice. Deleted messages are
        left out and not counted. `total` is the length of the whole path. limit is 1 to 1,000, offset 0 to
        10,000 and not together with a cursor. Raises InvalidInput, NotFound for an unknown leaf.
        """

    async def messages(
        self,
        owner: str,
        conversation_id: UUID | str,
        *,
        before: int | None = None,
        after: int | None = None,
        order: Order = "asc",
        leaf: UUID | str | None = None,
        page: int = 200,
    ) -> AsyncIterator[Message]:
        """Iterate over the messages of the path that ends with `leaf`, or with the head, however many there are.

        order="asc" begins with the oldest, order="desc" with the newest. They are read in pages of `page`, 1 to 1,000:
        a long loop holds no connection. The path is that of the first page, as in `history`, which says the rest.
        """
        bounds: dict[str, Any] = {"before": before, "after": after, "order": order, "leaf": leaf, "limit": page}
        cursor: str | None = None
        while True:
            found = await self.history(owner, conversation_id, cursor=cursor, **bounds)
            for message in found.items if order == "asc" else reversed(found.items):
                yield message
            if (cursor := found.next) is None:
                return

    @abstractmethod
    async def log(
        self, owner: str, conversation_id: UUID | str, *, after: int = 0, limit: int = 1_000
    ) -> list[Message]:
        """Return what was appended after seq `after`, on all branches, by seq: after + 1, after + 2, …

        At most `limit` messages, 1 to 1,000, and fewer if they are large: only an empty list says that there are no
        more. Deleted messages are tombstones: status `deleted`, no content, so that seqs stay dense. A reader that has
        seen seq n has seen every seq below it.
        """

    @abstractmethod
    async def get_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> Message:
        """Return one message. Raises NotFound also for a deleted one."""

    @abstractmethod
    async def siblings(
        self,
        owner: str,
        conversation_id: UUID | str,
        message_id: UUID | str,
        *,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Message]:
        """Return a page of the messages that follow the same parent as this one, itself included, by seq.

        Deleted ones are left out. limit is 1 to 1,000; siblings that are appended while you page come last. Raises
        InvalidInput, NotFound when the message is not there.
        """

    @abstractmethod
    async def update_message(
        self, owner: str, conversation_id: UUID | str, message_id: UUID | str, change: MessageChange
    ) -> Message:
        """Change the metadata of a message, such as feedback, and return the message.

        Merged (RFC 7396) in one transaction: concurrent changes of different keys both apply. Nothing else of a
        message changes, nor does the conversation's updated_at; a late retry of its append is known as before. Raises
        NotFound also for a deleted message, InvalidInput when the metadata would be larger than the store allows.
        """

    @abstractmethod
    async def delete_message(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        """Erase a message's content, parts, sources and metadata, and return whether there was one.

        A tombstone stays: seqs remain dense, messages that follow it keep their parent, and a late retry of its
        append is not a new message. A title of the conversation that was made from it goes, too. Does not move
        updated_at.
        """

    @abstractmethod
    async def search_messages(
        self,
        owner: str,
        query: str,
        *,
        conversation_id: UUID | str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page[SearchHit]:
        """Return the owner's messages that hold every word of `query`, the last created_at first.

        With `conversation_id` only those of one conversation, on all its branches. Raises NotFound or NotYours.

        Messages of one moment are ordered by conversation and seq, the highest first. The order is the same on all
        databases, and after a restore.

        Words in double quotes (also „ “ ” « ») must be adjacent, in this order; a quote that is not closed
        reaches to the end. A minus before a word or a quote excludes the messages that hold it: `tea -mint`.

        Words are compared without regard to case, accents, Arabic and Hebrew vowel signs, invisible characters and
        Unicode form; in scripts written without spaces (Chinese, Japanese, Thai …) any part of a sentence is found.
        The first 200,000 characters of a message are searched. SQLite indexes imported messages in the background;
        all others are found at once. limit is 1 to 1,000. Raises InvalidInput for a query without a word that is
        wanted, or if the store was opened with search=off.
        """

    @abstractmethod
    async def erase_owner(self, owner: str) -> ErasureReceipt:
        """Remove everything of an owner from the database, and return a receipt. Idempotent.

        Ends in bounded time, also if others go on to create conversations for the owner: what was stored before the
        call is gone then, and the receipt's `remaining` counts what MongoDB stored meanwhile; on the other databases
        it is 0.

        SQLite rewrites the file, so that no copy stays in it: seconds per gigabyte, while other writers wait.

        It begins with a trace that stays, `access.erased_at`, also if nothing was there, or if it is cut off: recorders
        refuse by it what they had recorded before.
        """

    @abstractmethod
    async def rename_owner(self, owner: str, new_owner: str) -> int:
        """Give everything that an owner has to another owner, API keys too; return how many conversations that were.

        Idempotent; of an owner who is not there nothing is made. Raises Conflict if both have a conversation with the
        same id, or a project with the same id that has documents. Journals of recorders keep the old name, and so does
        a trace of an erasure: to erase an owner who was renamed, erase both names.
        """

    @abstractmethod
    async def migrate(self, revision: str = "head") -> None:
        """Bring the schema to `revision` ("head": the newest, "base": none at all), and the search index up to date.

        Safe to call from many processes at once. Raises SchemaMismatch if the database is newer than
        this version of chatkeep.
        """

    async def _migrate_at_opening(self) -> None:
        """Bring the schema to the newest revision, and go on with the search index in the background.

        `open_store` calls it, so that a program does not wait for an index of all messages.
        """
        await self.migrate()

    @abstractmethod
    async def schema_revision(self) -> str | None:
        """Return the revision of the database's schema, None without one."""

    def state(self) -> Mapping[str, int]:
        """Return gauges by name, such as how many connections are in use."""
        return {}

    async def distribute(self) -> list[str]:
        """Distribute the tables of a cluster by owner, and return those that were distributed now.

        Idempotent. Raises InvalidInput if the database is not a cluster.
        """
        raise InvalidInput("only PostgreSQL with Citus and MongoDB behind mongos can be distributed")

    async def backup(
        self,
        path: Path,  # noqa: ARG002 - a store that can be copied uses all three
        *,
        verify: bool = True,  # noqa: ARG002
        progress: Callable[[int, int], None] = lambda _done, _all: None,  # noqa: ARG002
    ) -> Backup:
        """Copy the whole store, of any schema revision, into the SQLite file `path`, and return what the copy holds.

        The copy is the store of one moment, which lies within the call; others write meanwhile. It is on the disk and
        complete, or `path` is as it was: an existing file is replaced at the end. With `verify` it is read before that.
        Only its user may read it. `progress` is called in another thread, with the bytes that are copied and all bytes.
        Takes as long as it takes; cancel it to stop it.
        Raises InvalidInput if `path` cannot be written, is in use as a store or is this one, or for another database.
        """
        raise InvalidInput(
            "only a SQLite store can be copied into a file; for PostgreSQL use pg_dump, for MongoDB mongodump"
            " (docs/backup.md)"
        )

    @abstractmethod
    async def ping(self) -> None:
        """Return if the database answers and its schema is at the newest revision; raise otherwise."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish the accepted writes, for at most `write_timeout` seconds, refuse new ones, and close. Idempotent."""

    def _committed(self, items: int) -> None:
        """What a group commit is given, to tell the observer."""
        if self.observer is not None:
            self.observer.committed(items)


PORTS = (Store, Turns, Providers, Projects, Documents)
NAMED = {"access", "turns", "providers", "projects", "documents"}
OBSERVED = frozenset[str]().union(*(port.__abstractmethods__ for port in PORTS)) - NAMED - {"aclose"}
"""The methods of which an observer is told."""

type Method = Callable[..., Awaitable[Any]]


def _observed(operation: str, method: Method) -> Method:
    """The method of a store that tells the store's observer how long it took."""

    async def observe(store: Store, observer: Observer, *arguments: Any, **options: Any) -> Any:
        began, raised = time.perf_counter(), None
        try:
            return await method(store, *arguments, **options)
        except ChatkeepError as error:
            raised = error
            raise
        finally:
            observer.called(operation, time.perf_counter() - began, raised)

    @wraps(method)
    def observed(self: Store, *arguments: Any, **options: Any) -> Awaitable[Any]:
        if self.observer is None:
            return method(self, *arguments, **options)
        return observe(self, self.observer, *arguments, **options)

    return inspect.markcoroutinefunction(observed)


class OpeningStore:
    """What `open_store` returns: await it for the store, or use it in `async with`, which closes the store."""

    def __init__(self, store: Store, *, migrate: bool) -> None:
        self._store = store
        self._migrate = migrate

    def __await__(self) -> Generator[object, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._store.aclose()

    async def _open(self) -> Store:
        try:
            if self._migrate:
                await self._store._migrate_at_opening()
        except BaseException:
            await self._store.aclose()
            raise
        return self._store


ADAPTERS = {
    "memory": "chatkeep.stores.memory.store:MemoryStore",
    "sqlite": "chatkeep.stores.sqlite.store:SqliteStore",
    "postgresql": "chatkeep.stores.postgres.store:PostgresStore",
    "postgres": "chatkeep.stores.postgres.store:PostgresStore",
    "mongodb": "chatkeep.stores.mongo.store:MongoStore",
    "mongodb+srv": "chatkeep.stores.mongo.store:MongoStore",
}
"""The store of each URL scheme, imported on first use. urls.py has the same schemes."""

EXTRAS = {"asyncpg": "postgres", "pymongo": "mongodb", "bson": "mongodb"}
"""The extra of this package that installs a module."""


def open_store(url: str, *, migrate: bool = True, **options: str | float) -> OpeningStore:
    """Open the store that `url` names.

        async with open_store("sqlite:///chat.db") as store:
            ...

    URLs are `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql://user:password@host/database`,
    `mongodb://user:password@host/database` and `memory://`. Options are the fields of `StoreOptions`, given as
    keywords or in the URL (`?search=off`); a keyword wins. A missing SQLite file is created, and the
    schema is brought to the newest revision unless migrate=False. Raises InvalidInput for a URL or an
    option that is not known, SchemaMismatch for a database newer than this version, UnsafeDatabase for one
    that could lose what it acknowledged, StoreUnavailable for one that cannot be opened.
    """
    parts = split_url(url)
    adapter = _adapter(parts.scheme)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    for_driver = {k: v for k, v in query.items() if adapter.driver_options and not is_store_option(k)}
    given = {k: v for k, v in query.items() if k not in for_driver}
    # Not urlunsplit, which makes sqlite://a of sqlite:////a before Python 3.12.4.
    cleaned = url.partition("?")[0] + (f"?{urlencode(for_driver)}" if for_driver else "")
    return OpeningStore(adapter(cleaned, StoreOptions.of({**given, **options})), migrate=migrate)


def _adapter(scheme: str) -> type[Store]:
    module, name = ADAPTERS[scheme].split(":")
    try:
        return cast("type[Store]", getattr(importlib.import_module(module), name))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        raise InvalidInput(f"{scheme}:// needs {error.name}: pip install 'chatkeep[{extra}]'") from None


def file_path(url: str) -> str:
    """Return the path of a URL that names a file. Raises InvalidInput if it names a host."""
    return unquote(split_url(url).path.removeprefix("/"))
