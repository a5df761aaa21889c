"""When a file is rewritten, so that nothing that was erased is left in it: seldom, however many owners are erased.

Each removal of an owner counts up in the file; a rewrite notes which removals it followed. So an erasure knows whether
the file was rewritten since, by whichever process, and whether it was if that process was killed in between.
"""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, cast

import apsw

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.sqlite.database import SqliteFile, Transaction
from chatkeep.values import to_micros

PAUSE_RATIO = 9.0
"""How many times as long as a rewrite took there is none after it: writes wait for a tenth of the time at most."""

BURST_SECONDS = 9.0
"""Pauses that may be due before the next rewrite waits for one: small files are rewritten at once, again and again."""

MAX_PAUSE_SECONDS = 600.0
"""Longest pause. One that seems longer is of a clock that was set back, and is not heeded."""

LEASE_SECONDS = 60.0
"""How long others leave a rewrite to the process that began one, if that is killed."""

POLL_SECONDS = 0.5
"""How often it is looked whether another process has rewritten the file meanwhile."""

PATIENCE_SECONDS = 60.0
"""How long an erasure waits for the rewrite: most proxies wait as long for an answer."""

NOT_YET = (
    "what was to be erased is removed, but its copies in free space of the file are not overwritten yet, as the file"
    " was rewritten a moment ago; try again in a few minutes, for the receipt"
)

NUMBERS = ("erased", "rewritten", "rewrite_after")
STATE = f"SELECT name, value FROM store_state WHERE name IN ({','.join('?' * len(NUMBERS))})"  # noqa: S608 - constants
SET = "INSERT INTO store_state VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
COUNT = "INSERT INTO store_state VALUES ('erased', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"


class State(NamedTuple):
    """What the file says about its rewrites."""

    erased: int
    """How many removals there were."""
    rewritten: int
    """How many of them the last rewrite followed."""
    after: int
    """When all pauses are over, in microseconds since 1970."""


def count_removal(connection: apsw.Connection) -> None:
    """Note, in the transaction that removes it, that something was removed of which copies may be left."""
    connection.execute(COUNT)


def read_state(connection: apsw.Connection) -> State:
    """What the file says about its rewrites."""
    found = dict(cast("Any", connection.execute(STATE, NUMBERS).fetchall()))
    return State(*(found.get(name) or 0 for name in NUMBERS))


class Rewrites:
    """The rewrites of one file: one at a time, each for all erasures that wait for it."""

    def __init__(
        self,
        file: SqliteFile,
        rewrite: Callable[[], Awaitable[None]],
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """Take the file, what rewrites it, and what begins a task that closing waits for."""
        self._file = file
        self._rewrite = rewrite
        self._begin = begin
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Pause no longer: the store is being closed."""
        self._hurry.set()

    async def cover(self) -> None:
        """Return when a rewrite has followed all removals before this call: at once if there was none since the last.

        Raises StoreUnavailable if that takes longer than PATIENCE_SECONDS. The rewrite takes place all the same.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                erased = (await self._file.read(read_state)).erased
                while (await self._file.read(read_state)).rewritten < erased:
                    await self._join(erased)
        except TimeoutError:
            raise StoreUnavailable(NOT_YET, got=self._file.path) from None

    async def _join(self, erased: int) -> None:
        """Wait for the rewrite that is under way, which may have begun too early, or for the next one."""
        if self._task is None or self._task.done():
            self._task = self._begin(self._run(erased))
        task = self._task
        await asyncio.wait([task])
        error = task.exception()
        if error is not None:
            raise copy.copy(error)  # one exception object cannot be raised in many tasks

    async def _run(self, erased: int) -> None:
        """Rewrite the file when it is time, unless another process has, after so many removals."""
        while (state := await self._file.read(read_state)).rewritten < erased:
            wait = self._pause_left(state)
            if wait > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), min(wait, POLL_SECONDS))
            elif (claimed := await self._file.write(self._claim)) is not None:
                await self._rewrite_after(claimed)

    def _pause_left(self, state: State) -> float:
        """Seconds until the next rewrite may begin."""
        wait = state.after / 1e6 - time.time() - BURST_SECONDS
        return wait if 0 < wait <= MAX_PAUSE_SECONDS and not self._hurry.is_set() else 0

    def _claim(self, transaction: Transaction) -> State | None:
        """Take the next rewrite, so that others leave it to this process; None if another one was faster."""
        state = read_state(transaction.connection)
        if self._pause_left(state):
            return None
        due = to_micros(transaction.moment) + _micros(LEASE_SECONDS + BURST_SECONDS)
        transaction.connection.execute(SET, ("rewrite_after", due))
        return state

    async def _rewrite_after(self, claimed: State) -> None:
        """Rewrite the file, and note which removals that followed, and the pause that is due."""
        began, followed = time.monotonic(), 0
        try:
            await self._rewrite()
            followed = claimed.erased
        finally:
            pause = PAUSE_RATIO * (time.monotonic() - began)
            await self._file.write(partial(_note, followed, claimed.after, pause))


def _note(followed: int, after: int, pause: float, transaction: Transaction) -> None:
    """Note a rewrite, the removals that it followed (0: it failed), and the pause that is due."""
    state, moment = read_state(transaction.connection), to_micros(transaction.moment)
    latest = moment + _micros(MAX_PAUSE_SECONDS + BURST_SECONDS)
    due = min(max(after, moment) + _micros(pause), latest)
    numbers = ("rewritten", max(state.rewritten, followed)), ("rewrite_after", due)
    transaction.connection.executemany(SET, numbers)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
