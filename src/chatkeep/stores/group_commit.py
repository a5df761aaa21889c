"""Group commit: writes that arrive while a commit is under way go into the next one together.

The cost of a durable write is the wait for the disk, which concurrent writers share: the first is committed alone,
those that arrive meanwhile next, in one transaction, and each gets a result of its own.
"""

import asyncio
import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.time_limit import TimeLimit

MAX_BATCH_ITEMS = 256
MAX_BATCH_BYTES = 1 << 20
MAX_QUEUE_ITEMS = 10_000
MAX_QUEUE_BYTES = 64 << 20


@dataclass(slots=True)
class _Entry[Item]:
    item: Item
    size: int
    key: object
    future: asyncio.Future[object]
    limit: TimeLimit | None
    last_tick: int = 0

    @property
    def is_done(self) -> bool:
        return self.future.done()

    def expire(self) -> None:
        """End the caller's wait."""
        if self.limit is not None:
            self.future.set_exception(self.limit.exceeded())


class GroupCommit[Item]:
    """Passes submitted items to `flush`, in order and in batches, from tasks of its own.

    `flush` returns an outcome for each item: its result, or the exception that it ended with. A caller that is
    cancelled, or whose time is over, withdraws its item if that is still queued, and affects no other.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[object]]],
        *,
        flushers: int = 1,
        committed: Callable[[int], None] = lambda _: None,
        limit: TimeLimit | None = None,
    ) -> None:
        """Take what flushes a batch, in how many tasks, what is told the size of every batch, and how long a caller
        waits, if nothing else limits that."""
        self._limit = limit
        self._flush = flush
        self._committed = committed
        self._flushers = flushers
        self._idle = flushers
        self._in_flight: set[object] = set()
        self._ended = asyncio.Event()
        self._queue: deque[_Entry[Item]] = deque()
        self._queued_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def submit(self, item: Item, *, size: int = 0, key: object = None) -> object:
        """Return the item's outcome when its batch was committed, or raise it.

        Items of one `key`, unless it is None, are never in two batches at the same time.
        Raises StoreUnavailable, without queueing the item, if 10,000 items or 64 MiB are queued already.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if len(self._queue) >= MAX_QUEUE_ITEMS or (self._queued_bytes + size > MAX_QUEUE_BYTES and self._queue):
            raise StoreUnavailable(f"{len(self._queue):,} writes are waiting already; try again later")
        entry = _Entry(item, size, key, asyncio.get_running_loop().create_future(), self._limit)
        if self._limit is not None:
            self._limit.watch(entry)
        self._queue.append(entry)
        self._queued_bytes += size
        if len(self._tasks) < self._flushers:
            task = asyncio.create_task(self._drain(), name="chatkeep-group-commit")
            self._tasks.add(task)
        return await entry.future

    async def passed(self, key: object) -> None:
        """Return when no batch with this key is in flight. One may start right after that."""
        while key in self._in_flight:
            self._ended.clear()
            await self._ended.wait()

    async def aclose(self) -> None:
        """Commit the queue, and refuse new items. If this is cancelled, the queue is refused, too."""
        self._closed = True
        try:
            await asyncio.gather(*self._tasks)
        finally:
            while self._queue:
                _settle(self._queue.popleft().future, StoreUnavailable("the store was closed before this was written"))

    async def _drain(self) -> None:
        # No await between the empty queue and the task's removal: an item submitted in between would wait for a
        # task that has stopped (a lost wake-up).
        try:
            while batch := self._take():
                await self._commit(batch)
                if self._queue and self._flushers == 1:
                    await _let_callers_return()
        finally:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - a coroutine that runs has a task
            self._tasks.discard(task)

    def _take(self) -> list[_Entry[Item]]:
        """The next batch: the queue, divided by the idle tasks.

        All of it for one task would leave the others idle until it is done. An item with the key of a batch
        in flight stays queued.
        """
        batch: list[_Entry[Item]] = []
        left: deque[_Entry[Item]] = deque()
        keys: set[object] = set()
        size, share = 0, math.ceil(len(self._queue) / self._idle)
        while self._queue and len(batch) < MAX_BATCH_ITEMS:
            entry = self._queue.popleft()
            if entry.future.done():  # its caller was cancelled
                self._queued_bytes -= entry.size
            elif entry.key in self._in_flight or (len(batch) >= share and (entry.key is None or entry.key not in keys)):
                left.append(entry)
            elif batch and size + entry.size > MAX_BATCH_BYTES:
                left.append(entry)
                break
            else:
                batch.append(entry)
                size += entry.size
                keys.add(entry.key)
        self._queue.extendleft(reversed(left))
        self._queued_bytes -= size
        self._in_flight |= keys - {None}
        return batch

    async def _commit(self, batch: list[_Entry[Item]]) -> None:
        outcomes: Sequence[object]
        self._idle -= 1
        self._committed(len(batch))
        try:
            outcomes = await self._flush([entry.item for entry in batch])
        except BaseException as error:
            # One exception object cannot be raised in many tasks: each would write its traceback into it.
            outcomes = [
                copy.copy(error) if isinstance(error, Exception) else StoreUnavailable("the store was stopped")
                for _ in batch
            ]
            if not isinstance(error, Exception):
                raise
        finally:
            self._idle += 1
            self._in_flight -= {entry.key for entry in batch}
            self._ended.set()
            for entry, outcome in zip(batch, outcomes, strict=True):
                _settle(entry.future, outcome)
            if self._limit is not None:
                self._limit.forget()


async def _let_callers_return() -> None:
    """Let those whose writes were committed submit their next ones, which then share a batch with what is queued.

    Otherwise callers that write one thing after another stay in the groups in which they began by chance, one of which
    waits while the other is committed. Tasks have their turn first, then threads, whose calls `LoopThread` gathers.
    With more than one flusher no group waits, and the turns of the loop would only cost (5 % on PostgreSQL).
    """
    for _ in range(2):
        await asyncio.sleep(0)


def _settle(future: asyncio.Future[object], outcome: object) -> None:
    if future.done():  # its caller was cancelled while the commit was under way
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
