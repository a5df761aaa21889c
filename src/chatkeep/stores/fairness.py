"""A semaphore that no owner can take for itself."""

import asyncio
from collections import Counter, deque


class FairSemaphore:
    """At most `size` holders at a time, and at most half of them of one owner; owners who wait take turns.

        async with semaphore.of(owner):
            ...

    It has no time limit of its own: who waits is under that of the call, `TimeLimit`.
    """

    def __init__(self, size: int) -> None:
        """Take the number of holders, at least 1."""
        self._size = size
        self._of_one = max(1, size // 2)
        self._used = 0
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Who waits, by owner; the owner whose turn is next comes first."""

    def of(self, owner: str) -> "_Slot":
        """A slot of an owner, for the time of an `async with` block."""
        return _Slot(self, owner)

    async def acquire(self, owner: str) -> None:
        """Take a slot, as soon as it is the owner's turn."""
        if self._is_free(owner):
            self._take(owner)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._forget(owner, waiter)
            else:
                self.release(owner)  # it got its slot and was cancelled in the same moment
            raise

    def release(self, owner: str) -> None:
        """Give the slot to the next owner that may have it."""
        self._used -= 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        while self._used < self._size and (following := self._next_owner()) is not None:
            self._serve(following)

    def _is_free(self, owner: str) -> bool:
        return self._used < self._size and self._held[owner] < self._of_one

    def _take(self, owner: str) -> None:
        self._used += 1
        self._held[owner] += 1

    def _next_owner(self) -> str | None:
        return next((owner for owner in self._waiting if self._is_free(owner)), None)

    def _serve(self, owner: str) -> None:
        """Give a slot to the owner's longest waiter, unless that was cancelled, and the next turn to other owners."""
        waiters = self._waiting.pop(owner)
        waiter = waiters.popleft()
        if waiters:
            self._waiting[owner] = waiters
        if not waiter.done():
            self._take(owner)
            waiter.set_result(None)

    def _forget(self, owner: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiting.get(owner, deque())
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(owner, None)


class _Slot:
    """A slot for `async with`."""

    __slots__ = ("_owner", "_semaphore")

    def __init__(self, semaphore: FairSemaphore, owner: str) -> None:
        self._semaphore = semaphore
        self._owner = owner

    async def __aenter__(self) -> None:
        await self._semaphore.acquire(self._owner)

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release(self._owner)
