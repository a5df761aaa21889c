"""A MongoDB database: its client, transactions that are retried if that is safe, and its errors.

What the driver raises becomes one of chatkeep's errors here and nowhere else. Neither those nor the log say
what a value was, or the password of the URL.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    InvalidName,
    InvalidURI,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern

from chatkeep.errors import ChatkeepError, InvalidInput, StoreUnavailable, UnsafeDatabase
from chatkeep.stores.semaphore import InFlight, Semaphore
from chatkeep.stores.time_limit import TimeLimit

logger = logging.getLogger(__name__)

type Document = dict[str, Any]
type Collection = AsyncCollection[Document]
type Operations[T] = Callable[["View"], Awaitable[T]]

BACKOFF_SECONDS = (0.002, 0.1)
"""Bounds of the first and of the longest delay before a write is retried: exponential backoff with full jitter."""

PATIENCE_SECONDS, ABORT_SECONDS = 0.3, 60
"""How long a caller waits until a transaction is aborted, and after how long MongoDB does that by itself."""

CLOSE_SECONDS, CLOSE_ATTEMPTS = 0.6, 3
"""How long closing may take, and in how many attempts."""

MAX_DOCUMENT_BYTES = 16 << 20
"""MongoDB's limit for one document."""

TOO_LARGE = "MongoDB stores at most 16 MB in one document: a message with its words, or a conversation"

NO_TRANSACTIONS = (
    "this MongoDB server has no transactions; a replica set of one node has: start it with"
    " `mongod --replSet rs0`, and then, once, `mongosh --eval 'rs.initiate()'`"
)

WEAK = (
    "with these settings MongoDB could lose or hide what it acknowledged: leave w, journal, readConcernLevel and"
    " readPreference out of the URL, or add durability=relaxed to it"
)

OWN = ("w", "journal", "readconcernlevel", "serverselectiontimeoutms", "appname")
"""Driver options that are set here unless the URL sets them."""

DUPLICATE_KEY, ILLEGAL_OPERATION, TOO_LARGE_CODE = 11000, 20, 10334


@dataclass(frozen=True, slots=True)
class View:
    """The collections, in the transaction of `session`, or outside of any without one."""

    database: AsyncDatabase[Document]
    conversations: Collection
    messages: Collection
    users: Collection
    turns: Collection
    turn_events: Collection
    projects: Collection
    documents: Collection
    chunks: Collection
    vectors: Collection
    llm_providers: Collection
    api_keys: Collection
    requests: Collection
    erasures: Collection
    schema: Collection
    sharded: bool
    """Whether the server is a mongos."""
    session: AsyncClientSession | None = None

    @classmethod
    def of(cls, database: AsyncDatabase[Document], *, sharded: bool = False) -> "View":
        """The collections outside of a transaction."""
        return cls(
            database,
            conversations=database["conversations"],
            messages=database["messages"],
            users=database["users"],
            turns=database["turns"],
            turn_events=database["turn_events"],
            projects=database["projects"],
            documents=database["documents"],
            chunks=database["chunks"],
            vectors=database["vectors"],
            llm_providers=database["llm_providers"],
            api_keys=database["api_keys"],
            requests=database["requests"],
            erasures=database["erasures"],
            schema=database["chatkeep_schema"],
            sharded=sharded,
        )

    def one(self, owner: str, identity: object) -> Document:
        """The filter of one document: its `_id` alone, which needs no plan; mongos finds its shard by the owner."""
        return {"_id": identity, "owner_id": owner} if self.sharded else {"_id": identity}

    def some(self, identities: Iterable[Document]) -> Document:
        """The same for several documents, of any owners."""
        ids = list(identities)
        owners = {"owner_id": {"$in": list({each["o"] for each in ids})}} if self.sharded else {}
        return {"_id": {"$in": ids}, **owners}


class Database:
    """One database, used by one event loop. Nothing is connected before the first call."""

    def __init__(
        self, url: str, *, pool_size: int, pool_timeout: float, reads: TimeLimit, writes: TimeLimit, relaxed: bool
    ) -> None:
        self._url = url
        parts = urlsplit(url)
        name = unquote(parts.path.removeprefix("/"))
        self.name = f"{parts.netloc.rpartition('@')[2]}/{name}"
        if not name:
            raise InvalidInput("a MongoDB URL names a database: mongodb://host/database", got=self.name)
        self._database_name = name
        timeout = int(min(pool_timeout, writes.seconds) * 1_000)
        values = ("majority", True, "majority", timeout, "chatkeep")
        given = {key.lower(): value for key, value in parse_qsl(parts.query, keep_blank_values=True)}
        if given.get("w") == "0":  # with which the driver takes no journal
            given["journal"] = ""
        self._settings: dict[str, Any] = {k: v for k, v in zip(OWN, values, strict=True) if k not in given}
        # Not the driver's queue: a transaction takes a connection for each of its operations, and would queue
        # behind those that wait for it. Whoever holds a slot finds a free connection.
        self.slots = Semaphore(pool_size, pool_timeout)
        self._settings["maxPoolSize"] = pool_size
        self._reads, self.writes = reads, writes
        self._relaxed = relaxed
        self._client: AsyncMongoClient[Document] | None = None
        self._view: View | None = None
        self._opening = asyncio.Lock()
        self._aborts: set[asyncio.Task[None]] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self.writing = InFlight()
        """The writes that closing waits for."""

    @property
    def sharded(self) -> bool:
        """Whether the server is a mongos: known with the first call."""
        return self._view is not None and self._view.sharded

    async def view(self) -> View:
        """The collections outside of a transaction; the first call connects, and checks the server."""
        if self._view is None:
            async with self._opening:
                self._view = self._view or await self._open()
        return self._view

    async def read[T](self, work: Operations[T]) -> T:
        """Run `work`, which only reads; once more if the connection turns out to be lost."""
        with self._reads.of_call(), self.translating():
            view = await self.view()
            try:
                async with self.slots:
                    return await work(view)
            except AutoReconnect as error:
                if isinstance(error, ServerSelectionTimeoutError):
                    raise
            async with self.slots:
                return await work(view)

    async def write_one[T](self, work: Operations[T]) -> T:
        """Run `work`, which writes without a transaction, and retry it while that may help, until `write_timeout`."""
        with self.writes.of_call():
            return await self.change(work, atomic=False)

    async def change[T](self, work: Operations[T], *, atomic: bool) -> T:
        """The same for what takes longer the more there is, such as making an index: only retries have an end.

        If the server hangs, the driver's monitor notices, and fails the operation after half a minute.
        """
        with self.translating(), self.writing:
            if atomic:
                return await self._repeat(lambda view, deadline: self._transaction(view, work, deadline), may_pass)
            return await self._repeat(lambda view, _: work(view), is_lost)

    async def write[T](self, work: Operations[T]) -> T:
        """Run `work` in a transaction, and retry it while that may help, until `write_timeout`.

        A commit may have happened although its answer was lost: `work` finds out by the ids it writes.
        """
        with self.writes.of_call():
            return await self.change(work, atomic=True)

    async def attempt[T](self, work: Operations[T]) -> T | None:
        """The same, but None if MongoDB refuses what is written: the caller goes on with `write`, item by item."""
        with self.writes.of_call(), self.translating(), self.writing:
            try:
                return await self._repeat(lambda view, deadline: self._transaction(view, work, deadline), met_another)
            except (OperationFailure, DocumentTooLarge) as error:
                if met_another(error):
                    raise
                return None

    async def attempt_often[T](self, work: Operations[T], *, conflicts: int) -> T | None:
        """As `write`, but None after so many conflicts with others: the caller goes on with less at a time."""
        left = conflicts

        def worth_it(error: Exception) -> bool:
            nonlocal left
            left -= not is_lost(error)
            return left > 0 and may_pass(error)

        with self.writes.of_call(), self.translating(), self.writing:
            try:
                return await self._repeat(lambda view, deadline: self._transaction(view, work, deadline), worth_it)
            except PyMongoError as error:
                if left > 0 or not may_pass(error):
                    raise
                return None

    async def finish(self) -> None:
        """Wait for the writes in flight."""
        await self.writing.drained()

    async def aclose(self) -> None:
        """Close every connection, within a second, also if it is cancelled. Idempotent."""
        if self._client is not None:
            _begin(_close(self._client), self._closings)
        try:
            if self._closings:
                await asyncio.wait(self._closings)
        finally:
            for task in self._aborts:
                task.cancel()
        if self._aborts:
            await asyncio.wait(self._aborts)

    async def _repeat[T](self, work: Callable[[View, float], Awaitable[T]], worth_it: Callable[[Exception], bool]) -> T:
        deadline, longest = time.monotonic() + self.writes.seconds, BACKOFF_SECONDS[0]
        while True:
            try:
                view = await self.view()
                async with self.slots:
                    return await work(view, deadline)
            except DRIVER_ERRORS as error:
                if not worth_it(error) or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 - not a secret
            longest = min(2 * longest, BACKOFF_SECONDS[1])

    async def _transaction[T](self, view: View, work: Operations[T], deadline: float) -> T:
        session = view.database.client.start_session()
        try:
            await session.start_transaction(read_concern=ReadConcern("snapshot"))
            result = await work(replace(view, session=session))
            await _commit(session, deadline)
        finally:
            await self._end(session)
        return result

    async def _end(self, session: AsyncClientSession) -> None:
        """End a session, and abort its transaction, for which even who was cancelled waits for a moment.

        A server that hangs is told later, when it goes on: until then others could not write what it wrote.
        """
        if session.in_transaction:
            await asyncio.wait([_begin(_abort(session), self._aborts)], timeout=PATIENCE_SECONDS)
        else:
            await session.end_session()

    # --- opening ------------------------------------------------------------------------------------------

    async def _open(self) -> View:
        """Connect, and refuse a server that would lose what it acknowledged, or that has no transactions."""
        client = self._connect()
        try:
            hello = await client.admin.command("hello")
            view = View.of(client[self._database_name], sharded=hello.get("msg") == "isdbgrid")
            await self._try_transaction(view)
        except BaseException:
            self._client = None
            _begin(_close(client), self._closings)
            raise
        return view

    def _connect(self) -> AsyncMongoClient[Document]:
        try:
            client: AsyncMongoClient[Document] = AsyncMongoClient(self._url, **self._settings)
            View.of(client[self._database_name])
        except (ConfigurationError, InvalidURI, InvalidName, ValueError, TypeError):
            # The driver's message may hold the URL.
            raise InvalidInput("the URL is not one of a MongoDB database", got=self.name) from None
        self._client = client
        if not client.write_concern.acknowledged:
            raise InvalidInput("with w=0 MongoDB acknowledges nothing; leave it out of the URL", got=self.name)
        written = client.write_concern.document
        safe = written.get("w") == "majority" and written.get("j") is True
        seen = client.read_concern.level in ("majority", "linearizable", "snapshot")
        if not self._relaxed and not (safe and seen and client.read_preference == ReadPreference.PRIMARY):
            raise InvalidInput(WEAK, got=self.name)
        return client

    async def _try_transaction(self, view: View) -> None:
        # Tried, not read from `hello`: not every server of MongoDB's protocol says whether it has transactions.
        try:
            await self._transaction(view, _read_something, time.monotonic() + self.writes.seconds)
        except OperationFailure as error:
            if error.code != ILLEGAL_OPERATION:
                raise
            raise UnsafeDatabase(NO_TRANSACTIONS, got=self.name) from None

    # --- errors -------------------------------------------------------------------------------------------

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise what the driver raises as one of chatkeep's errors."""
        try:
            yield
        except DRIVER_ERRORS as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> ChatkeepError:
        code = error.code if isinstance(error, OperationFailure) else None
        if isinstance(error, DocumentTooLarge) or code == TOO_LARGE_CODE:
            return InvalidInput(TOO_LARGE)
        state = type(error).__name__ if code is None else f"code {code}"
        logger.error("MongoDB failed on %s: %s", self.name, state)
        meaning = next((text for kind, text in MEANINGS if isinstance(error, kind)), "MongoDB refused the operation")
        return StoreUnavailable(MEANINGS_OF_CODES.get(code, meaning), got=f"{self.name}: {state}")


DRIVER_ERRORS = (PyMongoError, BSONError, OSError)
"""Everything that the driver raises."""


def is_duplicate(error: Exception) -> bool:
    """Whether a unique index refused a document."""
    if isinstance(error, BulkWriteError):
        return any(each.get("code") == DUPLICATE_KEY for each in (error.details or {}).get("writeErrors", ()))
    return isinstance(error, DuplicateKeyError)


def is_lost(error: Exception) -> bool:
    """Whether a retry on another connection may succeed. Whether the operation was executed is unknown."""
    return isinstance(error, AutoReconnect)


def met_another(error: Exception) -> bool:
    """Whether a transaction failed by a write conflict, or by a lost connection."""
    return is_lost(error) or (isinstance(error, PyMongoError) and error.has_error_label("TransientTransactionError"))


def may_pass(error: Exception) -> bool:
    """Whether a failed transaction may succeed if it is retried and looks first what exists."""
    return met_another(error) or is_duplicate(error)


MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (
        ServerSelectionTimeoutError,
        "MongoDB cannot be reached, or its replica set has no primary (a new one needs `rs.initiate()`)",
    ),
    (NetworkTimeout, "MongoDB did not answer in time"),
    (AutoReconnect, "the connection to MongoDB was lost"),
    (OSError, "MongoDB cannot be reached"),
)
"""The driver's errors in plain words."""

AGAIN = "others wrote the same conversation, project or provider again and again; try again"

ABORTED = "MongoDB aborted the transaction: others wrote the same, or it took too long; try again"

MEANINGS_OF_CODES: dict[int | None, str] = {
    13: "the user may not do this in the database",
    18: "MongoDB does not accept the user or the password",
    50: "MongoDB did not answer in time",
    112: AGAIN,
    251: ABORTED,
    14031: "the disk is full",
}
"""The same for the codes of the server's errors."""


async def _commit(session: AsyncClientSession, deadline: float) -> None:
    """Commit, and retry while the outcome is unknown: committing again is idempotent."""
    while True:
        try:
            return await session.commit_transaction()
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult") or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS[1]))  # noqa: S311 - not a secret


def _begin(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
    """Begin something that ends by itself, whoever waits for it."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def _abort(session: AsyncClientSession) -> None:
    """Abort a transaction and end its session."""
    with suppress(TimeoutError, *DRIVER_ERRORS):
        async with asyncio.timeout(ABORT_SECONDS):
            await session.end_session()


async def _close(client: AsyncMongoClient[Document]) -> None:
    """Close a client, within a second.

    It tells the server first which sessions and cursors have ended, and tells it only once: if the server hangs,
    the next attempt goes on with the connections.
    """
    for _ in range(CLOSE_ATTEMPTS):
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS / CLOSE_ATTEMPTS):
                await client.close()
                return


async def _read_something(view: View) -> None:
    await view.schema.find_one({"_id": "schema"}, session=view.session)
