"""A FIFO semaphore with one shared timeout, and a counter of what is in flight that closing waits on."""

import asyncio
from collections import deque

from chatkeep.errors import StoreUnavailable


class Semaphore:
    """At most `size` holders at a time; the longest waiter is served next.

    `asyncio.timeout` around a semaphore makes a timer for every waiter: under load that took a twentieth of a
    request. All wait equally long here, so one timer serves all.
    """

    def __init__(self, size: int, timeout: float) -> None:
        """Take the number of holders, and the seconds that a waiter waits."""
        self._size = size
        self._timeout = timeout
        self._waiters: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.used = 0

    async def acquire(self) -> None:
        """Take a slot. Raises StoreUnavailable if none was free for `timeout` seconds."""
        if self.used < self._size:
            self.used += 1
            return
        waiter = self._add_waiter()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                self.release()  # it got its slot and was cancelled in the same moment
            raise

    def release(self) -> None:
        """Give the slot to the longest waiter, or free it."""
        while self._waiters:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.used -= 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def _add_waiter(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append((loop.time() + self._timeout, waiter))
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._expire)
        return waiter

    def _expire(self) -> None:
        """Time out expired waiters and re-arm the timer."""
        loop = asyncio.get_running_loop()
        while self._waiters and (self._waiters[0][0] <= loop.time() or self._waiters[0][1].done()):
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(StoreUnavailable(self._busy))
        self._timer = loop.call_at(self._waiters[0][0], self._expire) if self._waiters else None

    @property
    def _busy(self) -> str:
        return (
            f"all {self._size} connections were in use for {self._timeout:g} s;"
            " try again, or open the store with a larger pool_size"
        )


class InFlight:
    """A counter: `with` counts what is in flight, and `drained` waits until nothing is."""

    def __init__(self) -> None:
        self._count = 0
        self._empty = asyncio.Event()

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._empty.set()

    async def drained(self) -> None:
        """Return when nothing is in flight."""
        while self._count:
            self._empty.clear()
            await self._empty.wait()
