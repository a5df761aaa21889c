"""A bounded pool of asyncpg connections, which costs next to nothing to use.

asyncpg's own pool makes a task, two timers and a proxy at each use: 70 µs, as long as a statement takes.
"""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg

from chatkeep.errors import ChatkeepError, StoreUnavailable
from chatkeep.stores.semaphore import Semaphore

type Connection = asyncpg.Connection[asyncpg.Record]

FATAL = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # the server is no longer the primary
)
"""Errors after which a connection is of no use: mostly the server closes it, and the driver may not know yet."""

FULL_SECONDS = 0.25
"""How long nobody connects after the server had no connection left, while one in use may be given back."""

CLOSE_SECONDS = 0.5
"""How long idle connections may take to say goodbye to the server."""


class Pool:
    """At most `size` connections, made on demand; the one used last is used next (LIFO)."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, size: int, timeout: float) -> None:
        self.slots = Semaphore(size, timeout)
        self._connect = connect
        self._timeout = timeout
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        self._wanted: dict[asyncio.Future[Connection], None] = {}
        """Those who have a slot, while the server has no connection left for it; the longest waiter first."""
        self._full_until = 0.0
        self._closed = False

    @property
    def used(self) -> int:
        """How many connections are in use, or being made."""
        return self.slots.used

    @property
    def idle(self) -> int:
        """How many connections are open and not in use."""
        return len(self._idle)

    def connection(self) -> "Lease":
        """A connection for the time of an `async with` block.

        Raises StoreUnavailable if all were in use for `timeout` seconds. The connection is closed if the block
        is cancelled, or ends with an error that is not an answer of the server.
        """
        return Lease(self)

    async def take(self) -> Connection:
        """An idle connection, or a new one."""
        self._open()
        connection = self.take_idle() or await self._make()
        try:
            self._open()
        except StoreUnavailable:
            connection.terminate()
            raise
        self._lent.add(connection)
        return connection

    def take_idle(self) -> Connection | None:
        """An idle connection, for whoever keeps it; None without one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def give_back(self, connection: Connection) -> None:
        """Pass the connection on, or keep it for reuse, unless it is closed or left in a transaction."""
        self._lent.discard(connection)
        if connection.is_closed():
            return
        if self._closed or connection.is_in_transaction():
            connection.terminate()
            return
        waiter = next(iter(self._wanted), None)
        if waiter is None:
            self._idle.append(connection)
        else:
            del self._wanted[waiter]
            waiter.set_result(connection)

    async def aclose(self) -> None:
        """Close every connection within a second, those in use at once. Idempotent."""
        self._closed = True
        for connection in tuple(self._lent):
            connection.terminate()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(each.close(timeout=CLOSE_SECONDS) for each in idle), return_exceptions=True)

    def _open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def _make(self) -> Connection:
        """A new connection; while the server has none left, one that somebody gives back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while True:
            if loop.time() >= self._full_until or not self._lent:
                try:
                    return await self._connect()
                except asyncpg.TooManyConnectionsError:
                    if loop.time() >= deadline:
                        raise
                    self._full_until = loop.time() + FULL_SECONDS
            given = await self._given_back(FULL_SECONDS)
            if given is not None:
                return given

    async def _given_back(self, seconds: float) -> Connection | None:
        """A connection that was given back within `seconds`."""
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._wanted[waiter] = None
        try:
            await asyncio.wait((waiter,), timeout=seconds)
        except asyncio.CancelledError:
            if waiter.done():
                self.give_back(waiter.result())  # it got one and was cancelled in the same moment
            raise
        finally:
            self._wanted.pop(waiter, None)
        return waiter.result() if waiter.done() else None


class Lease:
    """A connection that is in use; a class, as a generator costs 8 µs more for each statement."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connection:
        await self._pool.slots.acquire()
        try:
            self._connection = await self._pool.take()
        except BaseException:
            self._pool.slots.release()
            raise
        return self._connection

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and (
            isinstance(error, FATAL) or not isinstance(error, (ChatkeepError, asyncpg.PostgresError))
        ):
            self._connection.terminate()
        self._pool.give_back(self._connection)
        self._pool.slots.release()
