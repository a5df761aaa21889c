"""What a store needs of its database: connections, transactions, the schema; and what every method begins with."""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar
from uuid import UUID

from chatkeep.access import Access
from chatkeep.errors import StoreUnavailable
from chatkeep.ids import valid_id
from chatkeep.model import Message, NewMessage, Page
from chatkeep.options import StoreOptions
from chatkeep.stores.fairness import FairSemaphore
from chatkeep.stores.imports import Imports
from chatkeep.stores.locks import KeyedLocks
from chatkeep.stores.long_texts import HasContent, LongTexts
from chatkeep.stores.process import PROCESS, check_process
from chatkeep.stores.revisions import Schema
from chatkeep.stores.rows import Key, Rows, Work
from chatkeep.stores.time_limit import TimeLimit
from chatkeep.values import valid_owner

logger = logging.getLogger(__name__)

SMALL_PAGE_BYTES = 2 << 20
"""Bytes of a page that is read without waiting for the owner's turn to read much. Others waited 2 s while 64 clients of
one owner read pages of 8 MiB."""


class DatabaseStore[R: Rows](Imports[R]):
    """A store on a database, used from one event loop."""

    revisions: ClassVar[Sequence[str]]
    """Every revision of the schema, oldest first."""

    _access: Access

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._reads, self._writes = TimeLimit(options.read_timeout), TimeLimit(options.write_timeout)
        self._texts = LongTexts()
        self._heavy = FairSemaphore(self._most_heavy_reads())
        """Who may read much at a time."""
        self._large_appends = FairSemaphore(2)
        self._changes: KeyedLocks[str] = KeyedLocks()
        """One owner's changes are made one at a time: to merge a mebibyte of metadata takes a database's writer some
        50 ms, for a request of a few bytes, and the others' writes come between."""
        self._erasures: KeyedLocks[str] = KeyedLocks()
        self._background: set[asyncio.Task[Any]] = set()
        self._forks = PROCESS.forks
        self._closed = False

    @property
    def access(self) -> Access:
        check_process(self._forks)
        return self._access

    # --- what a database brings ---------------------------------------------------------------------------

    @abstractmethod
    async def _read[T](self, work: Work[R, T]) -> T:
        """Run `work`, which only reads."""

    async def _read_much[T](self, owner: str, work: Work[R, T]) -> T:
        """Run `work`, which may read much, when it is the owner's turn."""
        with self._reads.of_call():
            async with self._heavy.of(owner):
                return await self._read(work)

    async def _read_page[P: Page[Any]](
        self, owner: str, limit: int, read: Callable[[R, int], Coroutine[Any, Any, P]], *, much: bool = False
    ) -> P:
        """Read a page, given how many bytes it may have; if that is large, when it is the owner's turn to read much."""
        most = self._options.max_page_bytes
        small = min(most, SMALL_PAGE_BYTES)
        if not much:
            page = await self._read(lambda rows: read(rows, small))
            if page.next is None or len(page.items) == limit or small == most:
                return page
        return await self._read_much(owner, lambda rows: read(rows, most))

    def _most_heavy_reads(self) -> int:
        """How many may read much at a time: half of the connections, so that the others are free for short calls."""
        return self._options.pool_size // 2

    @abstractmethod
    async def _write[T](self, work: Work[R, T], *, atomic: bool = True) -> T:
        """Run `work` in a transaction, again while that may help.

        With atomic=False its steps may be seen one by one, and may be cut off and repeated: a database that
        saves by it does without the transaction.
        """

    async def _write_to[T](self, key: Key, work: Work[R, T]) -> T:  # noqa: ARG002 - some databases lock it
        """Run `work`, which changes one conversation, in a transaction."""
        return await self._write(work)

    async def _write_texts[T](self, key: Key, texts: Sequence[HasContent], work: Work[R, T]) -> T:  # noqa: ARG002 - some databases find their words before
        """Run `work`, which stores these texts in one conversation, in a transaction."""
        return await self._write_to(key, work)

    async def _append(
        self, key: Key, messages: Sequence[NewMessage], fingerprints: Sequence[bytes], expected_seq: int | None
    ) -> list[Message]:
        """Append what was checked, by the fastest path that the database has."""
        return await self._write_to(key, lambda rows: self._append_to(rows, key, messages, fingerprints, expected_seq))

    @abstractmethod
    async def _rename(self, old: str, new: str) -> int:
        """Give the conversations of one owner to another, to be indexed anew, and count them. Raises Conflict."""

    @abstractmethod
    async def _migrate(self, revision: str) -> None:
        """Bring the schema to `revision`."""

    @abstractmethod
    async def _schema(self) -> Schema:
        """The schema that the database has."""

    async def _probe(self) -> Schema:
        """The schema, read without waiting for what others do, if the database has a way to."""
        return await self._schema()

    @abstractmethod
    async def _finish(self) -> None:
        """Finish the writes that were taken. It is cancelled if that takes too long."""

    @abstractmethod
    async def _close(self) -> None:
        """Close every connection within a second, whatever it is doing. Idempotent."""

    def _stored_owner(self, owner: str) -> str:
        """The owner as the database stores it."""
        return owner

    def _shown_owner(self, stored: str) -> str:
        """The inverse of `_stored_owner`."""
        return stored

    async def _scrub(self) -> None:
        """Leave no copy of what was erased, if the database would."""

    # --- what every method begins with --------------------------------------------------------------------

    def _open(self) -> None:
        check_process(self._forks)
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _owner(self, owner: str) -> str:
        """The owner as the database stores it. Raises InvalidInput, or StoreUnavailable if the store is closed."""
        self._open()
        return self._stored_owner(valid_owner(owner))

    def _key(self, owner: str, conversation_id: UUID | str) -> Key:
        return self._owner(owner), valid_id(conversation_id)

    async def _in_background[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in a task that outlives a cancelled caller: a removal that began is finished."""
        task, caller = self._begin(work), asyncio.current_task()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise StoreUnavailable("the store was closed before this was done; try again") from None
            task.add_done_callback(_log_failure)
            raise

    def _begin[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Say why something failed of which nobody waits for the end any more."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.warning("a removal failed after its caller had left: %s", error)
