"""The memory that the bodies of requests may take: together, and those of one owner."""

import asyncio
from collections import Counter

FREE_BYTES = 64 << 10
"""Size up to which a body needs no share of the memory: what others send never keeps a small one waiting."""

OWNER_SHARE = 8
"""One owner may use one part in this many."""

WAIT_SECONDS = 10.0
"""Longest time that a body waits for memory. The client is not read from meanwhile."""

MAX_WAITING, MAX_WAITING_PER_OWNER = 64, 16
"""Most bodies that wait for memory: each of them holds some, as the server has read a part of it."""


class BodyBudget:
    """Hands out the memory of one process for request bodies."""

    def __init__(self, total: int, largest: int) -> None:
        """Hand out `total` bytes, but always enough for one body of `largest` bytes."""
        self._free = max(total, largest)
        self._share = max(self._free // OWNER_SHARE, largest)
        self._held: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._freed = asyncio.Event()

    async def take(self, owner: str, size: int) -> bool:
        """Take `size` bytes, waiting for them if need be. False: too many wait, or it took WAIT_SECONDS."""
        if not self._fits(owner, size) and not await self._wait(owner, size):
            return False
        self._held[owner] += size
        self._free -= size
        return True

    def give_back(self, owner: str, size: int) -> None:
        """Return bytes that were taken."""
        self._held[owner] -= size
        self._free += size
        self._held += Counter()  # forgets owners that hold nothing
        self._freed.set()
        self._freed = asyncio.Event()

    def _fits(self, owner: str, size: int) -> bool:
        return size <= self._free and self._held[owner] + size <= self._share

    async def _wait(self, owner: str, size: int) -> bool:
        if self._waiting.total() >= MAX_WAITING or self._waiting[owner] >= MAX_WAITING_PER_OWNER:
            return False
        self._waiting[owner] += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not self._fits(owner, size):
                    await self._freed.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting -= Counter([owner])
        return True
