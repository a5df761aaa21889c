"""A PostgreSQL database: statements, transactions that are retried if that is safe, and the schema.

What the driver raises becomes one of chatkeep's errors here and nowhere else. Neither those nor the log say
what a value was, or the password of the URL.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import asyncpg

from chatkeep.errors import ChatkeepError, SchemaMismatch, StoreUnavailable
from chatkeep.migrations import REVISIONS
from chatkeep.options import StoreOptions
from chatkeep.stores.postgres import schema
from chatkeep.stores.postgres.failures import DRIVER_ERRORS, is_lost, may_pass, meaning_of
from chatkeep.stores.postgres.pool import Connection, Pool
from chatkeep.stores.postgres.sessions import LOCK_MILLISECONDS, Sessions
from chatkeep.stores.revisions import NEEDS_UPGRADE, Schema, target_revision
from chatkeep.stores.semaphore import InFlight
from chatkeep.stores.time_limit import GRACE_SECONDS, TimeLimit

logger = logging.getLogger(__name__)

type Statements[T] = Callable[[Connection], Awaitable[T]]

type Mark = tuple[str, str]
"""A transaction, and the run of the server that knows it."""

BACKOFF_SECONDS = (0.01, 1.0)
"""First and longest delay before a write is retried: exponential backoff with jitter of up to a half."""

RECONNECT_BACKOFF_SECONDS = 0.1
"""The first delay if the database cannot be reached: it does not come back sooner, and each try blocks the event
loop for a third of a millisecond."""

# After a crash, and on a replica that took over, another transaction may get the number of one that was lost. Both
# have another start time, or, if only a process of the server crashed, statistics that were reset then.
SERVER_RUN = "concat_ws(' ', pg_postmaster_start_time(), pg_stat_get_bgwriter_stat_reset_time())"
MARK = f"SELECT pg_current_xact_id_if_assigned()::text, {SERVER_RUN}"
FATE = f"SELECT pg_xact_status($1::text::xid8) WHERE {SERVER_RUN} = $2"


NO_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError)
"""What the database says if it has no schema, or an older one."""


class Database:
    """One database, used by one event loop. Nothing is connected before the first call."""

    def __init__(self, url: str, options: StoreOptions, *, reads: TimeLimit, writes: TimeLimit) -> None:
        """Take the limits of what reads and of what writes: they may be those that the caller is under already."""
        parts = urlsplit(url)
        self.name = f"{parts.netloc.rpartition('@')[2] or 'localhost'}{parts.path}"
        self._reads = reads
        self._writes = writes
        self._slow = TimeLimit(schema.MIGRATION_SECONDS)
        self._sessions = Sessions(
            url,
            self.name,
            timeout=options.pool_timeout,
            statement_seconds=max(options.read_timeout, options.write_timeout) + GRACE_SECONDS,
            pgbouncer=options.pgbouncer,
            durable=options.durability == "full",
        )
        self._pool = Pool(self._sessions.open, size=options.pool_size, timeout=options.pool_timeout)
        self._probes = Pool(self._open_probe, size=1, timeout=options.pool_timeout)
        self.writing = InFlight()
        """The writes that closing waits for."""

    @property
    def citus(self) -> bool:
        """Whether the database is a Citus cluster: known with the first connection."""
        return self._sessions.citus

    async def attempt[T](self, work: Statements[T], *, transaction: bool = False) -> T | None:
        """Run `work`, which writes with one statement, or with several in a transaction.

        None if it failed, or its outcome is unknown: the caller goes on with `write`.
        """
        with self._writes.of_call():
            try:
                return await self._statement(work, LOCK_MILLISECONDS if transaction else None)
            except DRIVER_ERRORS:
                return None

    async def _statement[T](
        self, work: Statements[T], lock_milliseconds: int | None = None, *, pool: Pool | None = None
    ) -> T:
        """Run statements that commit by themselves and wait for locks only briefly, or else in a transaction."""
        async with (pool or self._pool).connection() as connection:
            if lock_milliseconds is None and not self._sessions.pooled:
                return await work(connection)
            return await self._in_transaction(connection, work, lock_milliseconds or LOCK_MILLISECONDS)

    async def read[T](self, work: Statements[T], *, pool: Pool | None = None) -> T:
        """Run `work`, which only reads; once more if the connection turns out to be lost, or a table is locked."""
        with self._reads.of_call():
            try:
                return await self._statement(work, pool=pool)
            except DRIVER_ERRORS as error:
                if not (is_lost(error) or isinstance(error, asyncpg.LockNotAvailableError)):
                    raise self._translated(error) from error
            with self._translating(reading=True):
                remaining = int(self._reads.seconds * 1_000) - LOCK_MILLISECONDS
                return await self._statement(work, max(remaining, 1), pool=pool)

    async def write[T](
        self, work: Statements[T], *, slow: bool = False, repeatable: bool = False, patient: bool = False
    ) -> T:
        """Run `work` in a transaction, and retry it while that may help, until `write_timeout`, or an hour if `slow`.

        If it is `patient`, also if it gave up to wait for a lock.

        If the answer to a commit is lost, the server is asked what became of it. If it does not know, or if `work` is
        `repeatable`, that is run again: it returns the same then, by the ids that it writes.
        """
        limit, work = (self._slow, _unhurried(work)) if slow else (self._writes, work)
        run = self._transaction if repeatable else self._committed
        with self._translating(), self.writing, limit.of_call():
            deadline = time.monotonic() + limit.seconds
            return await self._repeated(lambda milliseconds: run(work, milliseconds), deadline, patient=patient)

    async def _repeated[T](self, run: Callable[[int], Awaitable[T]], deadline: float, *, patient: bool) -> T:
        """What `run` returns, which is given how many milliseconds to wait for locks."""
        pause = BACKOFF_SECONDS[0]
        while True:
            remaining = max(deadline - time.monotonic(), 0.001)
            try:
                return await run(int(min(remaining, self._writes.seconds) * 1_000) + 1)
            except DRIVER_ERRORS as error:
                is_waiting = patient and isinstance(error, asyncpg.LockNotAvailableError)
                if not (is_waiting or may_pass(error)) or time.monotonic() >= deadline:
                    raise
                if is_lost(error):
                    pause = max(pause, RECONNECT_BACKOFF_SECONDS)
            jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
            await asyncio.sleep(min(jittered, max(deadline - time.monotonic(), 0)))
            pause = min(2 * pause, BACKOFF_SECONDS[1])

    async def _committed[T](self, work: Statements[T], lock_milliseconds: int) -> T:
        """Run `work` in one transaction, and return its result also if only the answer to the commit was lost."""
        done: list[tuple[T, Mark | None]] = []

        async def marked(connection: Connection) -> None:
            done.append((await work(connection), await _mark(connection)))

        try:
            await self._transaction(marked, lock_milliseconds)
        except DRIVER_ERRORS as error:
            mark = done[0][1] if done else None
            if mark is None or not is_lost(error) or not await self._was_committed(mark):
                raise
        return done[0][0]

    async def _was_committed(self, mark: Mark) -> bool:
        """Whether a transaction was committed; False also if nobody knows. The call's limit ends the asking."""
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                fate = await self._statement(lambda connection: connection.fetchval(FATE, *mark))
            except DRIVER_ERRORS as error:
                if not is_lost(error):
                    raise
                pause = max(pause, RECONNECT_BACKOFF_SECONDS)
            else:
                if fate != "in progress":
                    return bool(fate == "committed")
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS[1])

    async def _transaction[T](self, work: Statements[T], lock_milliseconds: int) -> T:
        async with self._pool.connection() as connection:
            return await self._in_transaction(connection, work, lock_milliseconds)

    async def _in_transaction[T](self, connection: Connection, work: Statements[T], lock_milliseconds: int) -> T:
        try:
            await connection.execute(self._sessions.begin(lock_milliseconds))
            result = await work(connection)
            await connection.execute("COMMIT")
        except (ChatkeepError, asyncpg.PostgresError):
            await _roll_back(connection)
            raise
        return result

    def state(self) -> Mapping[str, int]:
        """How many connections are in use, and how many are idle."""
        pools = self._pool, self._probes
        return {
            "connections_used": sum(pool.used for pool in pools),
            "connections_idle": sum(pool.idle for pool in pools),
        }

    async def schema(self) -> Schema:
        """The schema that the database has."""
        return await self.read(schema.read_schema)

    async def probe(self) -> Schema:
        """The same, over a connection of its own: whether the server answers does not depend on others' calls."""
        return await self.read(schema.read_schema, pool=self._probes)

    async def _open_probe(self) -> Connection:
        """A connection to probe with: one of the others, if the server has no more left."""
        try:
            return await self._sessions.open()
        except asyncpg.TooManyConnectionsError:
            idle = self._pool.take_idle()
            if idle is None:
                raise
            return idle

    async def migrate(self, revision: str) -> None:
        """Bring the schema to `revision`, step by step; of many processes one makes each step, and the others wait."""
        target = target_revision(revision, REVISIONS)
        for before, step in schema.steps_to(await self.schema(), target, self.name):
            index = schema.index_of(step)
            if index and not self._sessions.pooled:
                await self._build(before, step, *index)
            else:
                execute = partial(schema.execute, before=before, step=step, target=target)
                await self.write(execute, slow=True, patient=True)

    async def _build(self, before: str | None, step: str, index: str, table: str) -> None:
        """Build an index while others write, over a connection of its own, without a transaction."""
        with self._translating(), self._slow.of_call():
            connection = await self._sessions.open()
            try:
                await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
                await schema.build(connection, before, step, index, table)
            finally:
                await connection.close()

    async def finish(self) -> None:
        """Wait for the writes in flight."""
        await self.writing.drained()

    async def aclose(self) -> None:
        """Close every connection, also those in use, within a second. Idempotent."""
        await asyncio.gather(self._pool.aclose(), self._probes.aclose(), self._sessions.aclose())

    # --- errors -------------------------------------------------------------------------------------------

    @contextmanager
    def _translating(self, *, reading: bool = False) -> Iterator[None]:
        """Raise what the driver raises as one of chatkeep's errors."""
        try:
            yield
        except DRIVER_ERRORS as error:
            raise self._translated(error, reading=reading) from error

    def _translated(self, error: Exception, *, reading: bool = False) -> ChatkeepError:
        if isinstance(error, NO_SCHEMA):
            return SchemaMismatch(NEEDS_UPGRADE, got=self.name)
        state = getattr(error, "sqlstate", None) or type(error).__name__
        logger.error("PostgreSQL failed on %s: %s", self.name, state)
        return StoreUnavailable(meaning_of(error, reading=reading), got=f"{self.name}: {state}")


def _unhurried[T](work: Statements[T]) -> Statements[T]:
    """`work` whose statements may take as long as the call may."""

    async def unhurried(connection: Connection) -> T:
        await connection.execute("SET LOCAL statement_timeout = 0")
        return await work(connection)

    return unhurried


async def _mark(connection: Connection) -> Mark | None:
    """The transaction that is open; None if it changed nothing."""
    number, server_run = await connection.fetchrow(MARK)  # type: ignore[misc]
    return None if number is None else (number, server_run)


async def _roll_back(connection: Connection) -> None:
    """Roll back a failed transaction. If that fails, too, the connection is closed, which ends it."""
    try:
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
    except DRIVER_ERRORS:
        connection.terminate()
