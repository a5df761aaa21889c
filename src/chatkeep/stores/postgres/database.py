"""A PostgreSQL database: statements, transactions that are retried if that is safe, and the schema.

What the driver raises becomes one of chatkeep's errors here and nowhere else. Neither those nor the log say
what a value was, or the password of the URL.
"""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import asyncpg

from chatkeep.errors import ChatkeepError, InvalidInput, SchemaMismatch, StoreUnavailable, UnsafeDatabase
from chatkeep.migrations import REVISIONS
from chatkeep.stores.postgres import schema
from chatkeep.stores.postgres.address import probe, written_address
from chatkeep.stores.postgres.citus import has_citus
from chatkeep.stores.postgres.pool import FATAL, Connection, Pool
from chatkeep.stores.revisions import target_revision
from chatkeep.stores.semaphore import InFlight

logger = logging.getLogger(__name__)

type Statements[T] = Callable[[Connection], Awaitable[T]]

LOCK_MILLISECONDS = 100
"""How long a statement outside a transaction waits for a locked row. A batch that fails so is retried item by item in
transactions, which wait longer: one locked row does not delay the rest of its batch."""

COMMAND_SECONDS = 60.0
"""How long one statement may take until its connection is closed."""

BACKOFF_SECONDS = (0.01, 1.0)
"""First and longest delay before a write is retried: exponential backoff with jitter of up to a half."""

RECONNECT_BACKOFF_SECONDS = 0.1
"""The first delay if the database cannot be reached: it does not come back sooner, and each try blocks the event
loop for a third of a millisecond."""

STYLE = {"datestyle": "ISO", "timezone": "UTC"}
"""How every connection writes times as text; poolers know these two, and keep them for each client."""

SESSION = {
    **STYLE,
    "application_name": "chatkeep",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "60s",
    "jit": "off",  # compiling takes longer than any of these statements
    "lock_timeout": f"{LOCK_MILLISECONDS}ms",
}
"""What a connection is opened with. A pooler in transaction mode takes only the style."""


class Database:
    """One database, used by one event loop. Nothing is connected before the first call."""

    def __init__(
        self, url: str, *, pool_size: int, pool_timeout: float, write_timeout: float, pgbouncer: bool | None
    ) -> None:
        self._url = url
        parts = urlsplit(url)
        self.name = f"{parts.hostname or 'localhost'}{parts.path}"
        self._pool_timeout = pool_timeout
        self._write_timeout = write_timeout
        # Neon's pooled addresses are PgBouncer in transaction mode.
        self._pgbouncer = "-pooler." in (parts.hostname or "") if pgbouncer is None else pgbouncer
        self._may_find_pgbouncer = pgbouncer is None
        self._pool = Pool(self._connect, size=pool_size, timeout=pool_timeout)
        self._away = False
        """Whether the last connection attempt failed."""
        self.citus = False
        """Whether the database is a Citus cluster: known with the first connection."""
        self.writing = InFlight()
        """The writes that closing waits for."""

    async def attempt[T](self, work: Statements[T], *, transaction: bool = False) -> T | None:
        """Run `work`, which writes with one statement, or with several in a transaction.

        None if it failed, or its outcome is unknown: the caller goes on with `write`.
        """
        try:
            return await self._statement(work, transaction=transaction)
        except DRIVER_ERRORS:
            return None

    async def _statement[T](self, work: Statements[T], *, transaction: bool = False) -> T:
        """Run one statement that commits by itself and waits for locks only briefly."""
        async with self._pool.connection() as connection:
            if not (self._pgbouncer or transaction):
                return await work(connection)
            return await self._in_transaction(connection, work, LOCK_MILLISECONDS)

    async def read[T](self, work: Statements[T]) -> T:
        """Run `work`, which only reads; once more if the connection turns out to be lost."""
        try:
            return await self._statement(work)
        except DRIVER_ERRORS as error:
            if not is_lost(error):
                raise self._translated(error) from error
        with self.translating():
            return await self._statement(work)

    async def write[T](self, work: Statements[T]) -> T:
        """Run `work` in a transaction, and retry it while that may help, until `write_timeout`.

        A commit may have happened although its answer was lost: `work` finds out by the ids it writes.
        """
        deadline = time.monotonic() + self._write_timeout
        pause = BACKOFF_SECONDS[0]
        with self.translating(), self.writing:
            while True:
                timeout = max(deadline - time.monotonic(), 0.001)
                try:
                    async with self._pool.connection() as connection:
                        return await self._in_transaction(connection, work, int(timeout * 1_000) + 1)
                except DRIVER_ERRORS as error:
                    if not may_pass(error) or time.monotonic() >= deadline:
                        raise
                    if is_lost(error):
                        pause = max(pause, RECONNECT_BACKOFF_SECONDS)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
                pause = min(2 * pause, BACKOFF_SECONDS[1])

    def state(self) -> Mapping[str, int]:
        """How many connections are in use, and how many are idle."""
        return {"connections_used": self._pool.used, "connections_idle": self._pool.idle}

    async def revision(self) -> str | None:
        """The revision of the schema, None without one."""
        return await self.read(schema.read_revision)

    async def migrate(self, revision: str) -> None:
        """Bring the schema to `revision`; of many processes one migrates, and the others wait."""
        target = target_revision(revision, REVISIONS)
        if (await self.revision() or "base") != target:
            await self.write(lambda connection: schema.migrate(connection, target, self.name))

    async def finish(self) -> None:
        """Wait for the writes in flight."""
        await self.writing.drained()

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        await self._pool.aclose()

    # --- connections --------------------------------------------------------------------------------------

    async def _connect(self) -> Connection:
        """A new connection. If the last attempt failed, the address is probed first."""
        address = written_address(self._url) if self._away else None
        if address is not None:
            await probe(address, self._pool_timeout)
        try:
            connection = await self._make_connection()
        except OSError:
            self._away = True
            raise
        self._away = False
        return connection

    async def _make_connection(self) -> Connection:
        try:
            return await self._connect_with(STYLE if self._pgbouncer else SESSION)
        except asyncpg.PostgresError as error:
            # So PgBouncer refuses settings that it would have to keep for one client.
            if "unsupported startup parameter" not in str(error) or not self._may_find_pgbouncer:
                raise
        self._pgbouncer = True
        return await self._connect_with(STYLE)

    async def _connect_with(self, session: dict[str, str]) -> Connection:
        try:
            connection = await asyncpg.connect(
                self._url,
                timeout=self._pool_timeout,
                command_timeout=COMMAND_SECONDS,
                server_settings=session,
                statement_cache_size=0 if self._pgbouncer else 100,
            )
        except ssl.SSLError:
            raise  # that of a certificate is a ValueError, too
        except (ValueError, OverflowError, asyncpg.ClientConfigurationError):
            # The driver's message may hold the URL.
            raise InvalidInput("the URL is not one of a PostgreSQL database", got=self.name) from None
        try:
            await self._check(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _check(self, connection: Connection) -> None:
        """Refuse a database that may lose what it acknowledged, and note whether it is Citus."""
        async with connection.transaction():
            durable = await connection.fetchval("SELECT current_setting('synchronous_commit')")
            self.citus = await has_citus(connection)
        if durable == "off":
            raise UnsafeDatabase(
                "synchronous_commit is off: PostgreSQL would lose messages it acknowledged;"
                " set it to on for this user or database",
                got=self.name,
            )

    async def _in_transaction[T](self, connection: Connection, work: Statements[T], lock_milliseconds: int) -> T:
        begin = f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {lock_milliseconds}"
        try:
            await connection.execute(begin)
            result = await work(connection)
            await connection.execute("COMMIT")
        except (ChatkeepError, asyncpg.PostgresError):
            await _roll_back(connection)
            raise
        return result

    # --- errors -------------------------------------------------------------------------------------------

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise what the driver raises as one of chatkeep's errors."""
        try:
            yield
        except DRIVER_ERRORS as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> ChatkeepError:
        if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedFunctionError):
            return SchemaMismatch("the database has no schema of chatkeep; run `chatkeep db upgrade`", got=self.name)
        state = getattr(error, "sqlstate", None) or type(error).__name__
        logger.error("PostgreSQL failed on %s: %s", self.name, state)
        meaning = next((text for kind, text in MEANINGS if isinstance(error, kind)), "PostgreSQL refused the operation")
        return StoreUnavailable(meaning, got=f"{self.name}: {state}")


DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Everything that the driver raises."""

LOST = (
    *FATAL,
    asyncpg.ReadOnlySQLTransactionError,  # the server is no longer the primary
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # a plain one if a name cannot be resolved, or none of its several addresses answers
)
"""Errors of a connection that was lost, or could not be made."""


RACED = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.ForeignKeyViolationError,  # an owner was removed while a conversation of theirs was created
)
"""Errors of a transaction that conflicted with another one."""


def is_lost(error: Exception) -> bool:
    """Whether a retry on another connection may succeed. Whether the statement was executed is unknown."""
    return isinstance(error, LOST) and not isinstance(error, (TimeoutError, ssl.SSLError))


def may_pass(error: Exception) -> bool:
    """Whether a failed transaction may succeed if it is retried."""
    return is_lost(error) or isinstance(error, RACED)


MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (asyncpg.InvalidAuthorizationSpecificationError, "PostgreSQL does not accept the user or the password"),
    (asyncpg.InvalidCatalogNameError, "there is no such database"),
    (asyncpg.InsufficientPrivilegeError, "the user may not do this in the database"),
    (asyncpg.TooManyConnectionsError, "PostgreSQL has no connection left; try again, or lower pool_size"),
    (asyncpg.LockNotAvailableError, "another writer held the conversation's lock for too long; try again"),
    (asyncpg.DiskFullError, "the disk is full"),
    (asyncpg.SerializationError, "others wrote the same rows again and again; try again"),
    (asyncpg.DeadlockDetectedError, "others wrote the same rows again and again; try again"),
    (TimeoutError, "PostgreSQL did not answer in time"),
    (asyncpg.PostgresConnectionError, "the connection to PostgreSQL was lost"),
    (ssl.SSLError, "TLS with PostgreSQL failed; is its certificate trusted? see sslmode and sslrootcert in the URL"),
    (FileNotFoundError, "PostgreSQL's socket is not there, or a file that the URL names"),
    (OSError, "PostgreSQL cannot be reached"),
)
"""The driver's errors in plain words."""


async def _roll_back(connection: Connection) -> None:
    """Roll back a failed transaction. If that fails, too, the connection is closed, which ends it."""
    try:
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
    except DRIVER_ERRORS:
        connection.terminate()
