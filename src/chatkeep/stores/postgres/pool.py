"""A bounded pool of asyncpg connections, which costs next to nothing to use.

asyncpg's own pool makes a task, two timers and a proxy at each use: 70 µs, as long as a statement takes.
"""

from collections.abc import Awaitable, Callable

import asyncpg

from chatkeep.errors import ChatkeepError
from chatkeep.stores.permits import Permits

type Connection = asyncpg.Connection[asyncpg.Record]


FATAL = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
"""Answers with which the server ends the connection, although the driver may not have seen it end yet."""


class Pool:
    """At most `size` connections, made when they are needed; the one used last is used next."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, size: int, patience: float) -> None:
        self.permits = Permits(size, patience)
        self._connect = connect
        self._patience = patience
        self._idle: list[Connection] = []

    @property
    def used(self) -> int:
        """How many connections are in use, or being made."""
        return self.permits.used

    @property
    def idle(self) -> int:
        """How many connections wait to be used."""
        return len(self._idle)

    def connection(self) -> "Lease":
        """A connection for the time of an `async with` block.

        Raises StoreUnavailable when all were in use for `patience` seconds. A block that is cancelled, or
        ends with an error that is not the server's answer, takes its connection with it.
        """
        return Lease(self)

    async def take(self) -> Connection:
        """One that waits to be used, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    def give_back(self, connection: Connection) -> None:
        """Keep it for whoever comes next, unless it is of no use any more."""
        if connection.is_closed():
            return
        if connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)

    async def aclose(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            await self._idle.pop().close(timeout=self._patience)


class Lease:
    """The use of a connection; a class, as a generator takes 8 µs more of each statement."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connection:
        await self._pool.permits.acquire()
        try:
            self._connection = await self._pool.take()
        except BaseException:
            self._pool.permits.release()
            raise
        return self._connection

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and (
            isinstance(error, FATAL) or not isinstance(error, (ChatkeepError, asyncpg.PostgresError))
        ):
            self._connection.terminate()
        self._pool.give_back(self._connection)
        self._pool.permits.release()
