"""Locks by key: what writes the same conversation takes turns, in this process."""

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks[Key]:
    """A lock for each key, kept while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: Key) -> asyncio.Lock:
        """The lock of a key, for `async with`."""
        return self._locks.setdefault(key, asyncio.Lock())

    def __contains__(self, key: Key) -> bool:
        """Whether somebody holds the lock of a key, or waits for it."""
        return key in self._locks
