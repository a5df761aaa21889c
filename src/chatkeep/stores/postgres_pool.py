"""A bounded pool of asyncpg connections, which costs next to nothing to use.

asyncpg's own pool makes a task, two timers and a proxy at each use: 70 µs, as long as a statement takes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

from chatkeep.errors import ChatkeepError, StoreUnavailable

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
        self._connect = connect
        self._size = size
        self._patience = patience
        self._permits = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self.used = 0

    @property
    def idle(self) -> int:
        """How many connections wait to be used."""
        return len(self._idle)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for the time of a block.

        Raises StoreUnavailable when all were in use for `patience` seconds. A block that is cancelled, or
        ends with an error that is not the server's answer, takes its connection with it.
        """
        await self._wait()
        self.used += 1
        try:
            connection = self._take() or await self._connect()
            try:
                yield connection
            except BaseException as error:
                if isinstance(error, FATAL) or not isinstance(error, (ChatkeepError, asyncpg.PostgresError)):
                    connection.terminate()
                raise
            finally:
                self._give_back(connection)
        finally:
            self.used -= 1
            self._permits.release()

    async def aclose(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            await self._idle.pop().close(timeout=self._patience)

    async def _wait(self) -> None:
        if not self._permits.locked():
            await self._permits.acquire()
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._permits.acquire()
        except TimeoutError:
            raise StoreUnavailable(
                f"all {self._size} connections were in use for {self._patience:g} s;"
                " try again, or open the store with a larger pool_size"
            ) from None

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def _give_back(self, connection: Connection) -> None:
        if connection.is_closed():
            return
        if connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)
