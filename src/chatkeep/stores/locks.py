"""Locks by key: serialises writers of one conversation in this process."""

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks[Key]:
    """A lock for each key, kept while it is held or waited for."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: Key) -> asyncio.Lock:
        """The lock of a key, for `async with`."""
        return self._locks.setdefault(key, asyncio.Lock())

    def __contains__(self, key: Key) -> bool:
        """Whether the lock of a key is held or waited for."""
        return key in self._locks
