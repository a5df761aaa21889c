"""A SQLite file: one thread that writes with group commit, a few that read, and the schema's revision.

APSW only. A process must not open the file with a second SQLite library, Python's sqlite3 included: it does not see
this one's locks, and closing it there drops them, as copying the file does; on Linux those that matter most are
held twice (docs/decisions/0001-one-sqlite-library.md).
"""

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Self, cast

import apsw

from chatkeep.errors import ChatkeepError, SchemaMismatch, StoreUnavailable
from chatkeep.migrations import REVISIONS
from chatkeep.stores.group_commit import GroupCommit
from chatkeep.stores.process import PROCESS, check_process
from chatkeep.stores.revisions import NEEDS_UPGRADE, Schema, target_revision
from chatkeep.stores.sqlite import schema
from chatkeep.stores.sqlite.files import MOVED, OpenFiles, create
from chatkeep.stores.sqlite.reading import Reading
from chatkeep.stores.time_limit import TimeLimit
from chatkeep.values import from_micros, now
from chatkeep.words import index_text

logger = logging.getLogger(__name__)

CHECKPOINT_BYTES = 64 << 20
"""Size of the write-ahead log at which a checkpoint runs although writers wait."""

IDLE_SECONDS = 0.5
"""Seconds without a write after which an idle checkpoint runs."""

TURN_SECONDS = 0.1
"""How long a checkpoint waits for readers of the log, or a VACUUM for the lock, before writes have their turn."""

STEPS = 1_000_000
"""Steps of SQLite's virtual machine, 13 ms of a scan, after which it asks whether to go on. It has to take the GIL to
ask: every 20,000 steps cost nothing on an idle interpreter, and doubled the time of a query on a busy one."""

CLOSE_SECONDS = 0.5
"""How long closing waits for reads in progress, and then again after it has stopped them."""

LOCK_BACKOFF_SECONDS = (0.0002, 0.010)
"""Bounds of the random backoff for a lock that another process holds. SQLite's own busy handler sleeps in steps, and
writers queue up behind each other (p99 18.6 ms against 7.5 ms with four processes,
docs/decisions/0002-sqlite-writes.md)."""

PRAGMAS = (
    "PRAGMA busy_timeout = 0",
    "PRAGMA foreign_keys = ON",
    "PRAGMA fullfsync = ON",  # macOS: fsync alone does not reach the disk there
    "PRAGMA secure_delete = ON",  # what is deleted is overwritten
    "PRAGMA wal_autocheckpoint = 0",  # checkpoints run when idle, or at CHECKPOINT_BYTES
    "PRAGMA cache_size = -65536",
    "PRAGMA temp_store = MEMORY",
)


BLOCKS = (256, 16)
"""Rows of one INSERT, largest block first: a third cheaper a row than one at a time, and SQLite works on 256 rows
without the GIL."""

MICROSECOND = timedelta(microseconds=1)

LAST_MESSAGE = "SELECT rid, created_at FROM messages WHERE rid = (SELECT max(rid) FROM messages)"

type Values = tuple[Any, ...]
"""The values of a statement's parameters, or of a row to insert."""


@dataclass
class Transaction:
    """One write transaction: the connection, the time that its rows get, and the state that its jobs share.

    New messages are deferred rows: written together at the commit, unless a job has to read them before.
    """

    connection: apsw.Connection
    moment: datetime
    last_rid: int
    owners: set[str] = field(default_factory=set)
    """Owners that are known to be in the database."""
    unindexed_from: int | None = None
    """The first message that this transaction noted in store_state as not indexed."""
    deferred_of: set[object] = field(default_factory=set)
    """Conversations with deferred messages."""
    _deferred: dict[str, list[Values]] = field(default_factory=dict)
    _deferred_count: int = 0
    _written: int = 0

    @classmethod
    def begun(cls, connection: apsw.Connection) -> Self:
        """The transaction that has just begun; no message was stored later than its time."""
        last_rid, created_at = connection.execute(LAST_MESSAGE).get or (0, 0)
        return cls(connection, max(now(), from_micros(created_at)), last_rid)

    def defer(self, insert: str, rows: Sequence[Values]) -> None:
        """Defer rows, each of which begins with its rowid, to be written by `insert`, an INSERT up to its VALUES."""
        self._deferred.setdefault(insert, []).extend(rows)
        self._deferred_count += len(rows)

    def flush(self) -> None:
        """Write the deferred rows."""
        before = self.connection.total_changes()
        for insert, rows in self._deferred.items():
            # The full-text index writes what it has at every rowid below the one before: 2.5 times the work.
            _insert(self.connection, insert, sorted(rows, key=itemgetter(0)))
        self._deferred.clear()
        self.deferred_of.clear()
        self._written += self.connection.total_changes() - before

    def mark(self) -> int:
        """A value that changes with every change of a job; flushing deferred rows does not change it."""
        return self.connection.total_changes() - self._written + self._deferred_count

    def next_rid(self) -> int:
        """The rowid of the next message: above every other, as rowids are the order in which messages were stored."""
        self.last_rid += 1
        return self.last_rid


def _insert(connection: apsw.Connection, insert: str, rows: Sequence[Values]) -> None:
    done = 0
    for size in BLOCKS:
        while len(rows) - done >= size:
            block = rows[done : done + size]
            connection.execute(_values(insert, len(block[0]), size), tuple(chain.from_iterable(block)))
            done += size
    if done < len(rows):
        connection.executemany(_values(insert, len(rows[0]), 1), rows[done:])


@cache
def _values(insert: str, columns: int, rows: int) -> str:
    row = f"({','.join('?' * columns)})"
    return f"{insert} VALUES {','.join([row] * rows)}"


type Job[T] = Callable[[Transaction], T]
"""A write. It raises before it changes anything, or leaves its changes in the transaction. It flushes deferred
rows (`Transaction.flush`) before it reads them."""


class SqliteFile:
    """One database file, used by one event loop."""

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Literal["full", "normal"],
        reads: TimeLimit,
        writes: TimeLimit,
        readers: int,
        committed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Take the path, what calls may take, the number of reading threads, and what is told of every commit."""
        self.path = path
        self._synchronous = synchronous
        self._reads, self._writes = reads, writes
        self._may_create = False
        self._files = OpenFiles(path)
        self._connections: list[apsw.Connection] = []
        self._of_thread = threading.local()
        self._writer = ThreadPoolExecutor(1, "chatkeep-sqlite-writer")
        self._readers = ThreadPoolExecutor(readers, "chatkeep-sqlite-reader", self._begin_to_read)
        self._prober = ThreadPoolExecutor(1, "chatkeep-sqlite-prober", self._begin_to_read)
        self._reading: set[Reading] = set()
        self._closer = ThreadPoolExecutor(1, "chatkeep-sqlite-closer")
        self._commits: GroupCommit[Job[object]] = GroupCommit(self._flush, committed=committed, limit=writes)
        self._wal_bytes = 0
        self._checkpoint_at = CHECKPOINT_BYTES
        self._commit_count = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._forks = PROCESS.forks
        self._closed = False
        self._closing: asyncio.Future[None] | None = None
        self._stop = threading.Event()

    @property
    def log_bytes(self) -> int:
        """Size of the write-ahead log."""
        return self._wal_bytes

    async def read[T](self, query: Callable[[apsw.Connection], T]) -> T:
        """Run `query` on one snapshot of the database, until its time is over. It must fetch all that it reads."""
        return await self._read_in(self._readers, query)

    async def read_all[T](self, query: Callable[[apsw.Connection], T]) -> T:
        """Run `query` like `read`, for as long as it takes. It is to end when its connection is interrupted."""

        def unlimited(connection: apsw.Connection) -> T:
            self._of_thread.deadline = math.inf
            return query(connection)

        return await self._read_in(self._readers, unlimited, limited=False)

    async def write[T](self, job: Job[T], *, size: int = 0) -> T:
        """Run `job` in a transaction that it may share with others; return when that is committed durably.

        Raises StoreUnavailable after `write_timeout`. The transaction may wait longer for its lock: it began later.
        """
        self._check_open()
        return cast("T", await self._commits.submit(job, size=size))

    async def migrate(self, revision: str) -> None:
        """Bring the schema to `revision`; a missing file is created."""
        self._may_create = True
        await self._in_writer(partial(self._migrate, revision))

    async def schema(self) -> Schema:
        """The schema that the file has. Raises StoreUnavailable if the file was replaced.

        It has a thread of its own: whether the database answers does not depend on how many others read.
        """
        return await self._read_in(self._prober, self._schema)

    async def scrub(self) -> None:
        """VACUUM the file and truncate its log, so that nothing that was deleted is left in either.

        Takes seconds per gigabyte and twice the space, while writers wait. `secure_delete` alone is not
        enough: SQLite leaves copies in the free space of pages that it splits or merges.
        """
        if not await self._in_turns(self._vacuum):
            raise StoreUnavailable(LOCK_HELD, got=self.path)
        if not await self._in_turns(partial(self._checkpoint, "TRUNCATE")):
            logger.warning("what was deleted from %s stays in its log until nobody reads from it", self.path)

    async def finish(self) -> None:
        """Finish the writes that were taken, and refuse others."""
        self._closed = True
        await self._commits.aclose()

    async def aclose(self) -> None:
        """Close every connection within a second, cutting off what takes longer. Idempotent."""
        self._closed = True
        if self._idle_timer:
            self._idle_timer.cancel()
        if self._closing is None:
            self._closing = asyncio.get_running_loop().run_in_executor(self._closer, self._close_when_unused)
        try:
            await asyncio.wait([self._closing], timeout=CLOSE_SECONDS)
        finally:
            self._stop.set()
            for reading in self._reading:
                reading.stop()
        await asyncio.wait([self._closing], timeout=CLOSE_SECONDS)
        self._closer.shutdown(wait=self._closing.done())
        if not self._closing.done():
            logger.warning("%s will be closed when its disk answers", self.path)

    # --- on the event loop --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(CLOSED)
        check_process(self._forks)

    async def _read_in[T](
        self, threads: ThreadPoolExecutor, query: Callable[[apsw.Connection], T], *, limited: bool = True
    ) -> T:
        """Run `query` in one of these threads. It is stopped if the caller is cancelled, or its time is over."""
        self._check_open()
        reading = Reading(time.monotonic() + self._reads.seconds)
        self._reading.add(reading)
        try:
            with self._reads.of_call() if limited else nullcontext():
                return await asyncio.get_running_loop().run_in_executor(threads, self._read, query, reading)
        except BaseException:
            reading.stop()
            raise
        finally:
            self._reading.discard(reading)

    async def _in_writer[T](self, work: Callable[[], T]) -> T:
        """Run `work` in the writer's thread."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._guard, work)

    async def _in_turns(self, work: Callable[[], bool]) -> bool:
        """Run `work`, which waits TURN_SECONDS, until it succeeds or `write_timeout` is over; others write between."""
        deadline = time.monotonic() + self._writes.seconds
        while not await self._in_writer(work):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(TURN_SECONDS)
        return True

    # --- in the threads -----------------------------------------------------------------------------------

    def _close_when_unused(self) -> None:
        """Close the connections when no thread uses one: SQLite does not survive that."""
        for executor in (self._writer, self._readers, self._prober):
            executor.shutdown()
        self._files.let_go()
        while self._connections:
            self._connections.pop().close()
        self._files.closed()

    def _connection(self, deadline: float) -> apsw.Connection:
        """This thread's own connection."""
        connection: apsw.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = self._with_retries(self._connect, deadline)
            self._connections.append(connection)
        return connection

    def _connect(self) -> apsw.Connection:
        if self._may_create:
            create(self.path)
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            for pragma in PRAGMAS:
                connection.execute(pragma)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            if connection.execute("PRAGMA journal_mode = WAL").get != "wal":
                raise StoreUnavailable("SQLite's write-ahead log does not work on this file system", got=self.path)
            schema.read_schema(connection)  # opens the log and the file of its locks
            self._files.opened(connection.filename)
            connection.set_wal_hook(self._note_wal_size)
            if hasattr(self._of_thread, "deadline"):
                connection.set_progress_handler(self._must_stop, STEPS)
            connection.create_scalar_function("index_text", _index_text, 1, deterministic=True)
        except BaseException:
            connection.close()
            raise
        return connection

    def _note_wal_size(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        self._wal_bytes = pages * 4096
        return apsw.SQLITE_OK

    def _begin_to_read(self) -> None:
        """Let statements of this thread end at a deadline. Not for short writes: it costs an append 2 %."""
        self._of_thread.deadline = math.inf

    def _must_stop(self) -> bool:
        """Whether a statement of this thread has run for too long, or the store is closed."""
        return self._stop.is_set() or time.monotonic() >= getattr(self._of_thread, "deadline", math.inf)

    @contextmanager
    def _stoppable(self, connection: apsw.Connection) -> Iterator[None]:
        """Let a long write end when the store is closed."""
        connection.set_progress_handler(self._must_stop, STEPS)
        try:
            yield
        finally:
            connection.set_progress_handler(None)

    def _guard[T](self, work: Callable[[], T]) -> T:
        """Run `work`, and raise SQLite's errors as chatkeep's."""
        try:
            return work()
        except apsw.Error as error:
            raise self._translated(error) from error
        except OSError as error:
            raise StoreUnavailable("the disk does not answer", got=f"{self.path}: {error}") from error

    def _with_retries[T](self, work: Callable[[], T], deadline: float) -> T:
        """Run `work`, and retry it with a random backoff while another process holds the lock."""
        while not self._stop.is_set():
            try:
                return work()
            except apsw.BusyError:
                if time.monotonic() >= deadline:
                    raise
            self._stop.wait(random.uniform(*LOCK_BACKOFF_SECONDS))  # noqa: S311 - not a secret
        raise StoreUnavailable(CLOSED)

    def _read[T](self, query: Callable[[apsw.Connection], T], reading: Reading) -> T:
        return self._guard(partial(self._with_retries, partial(self._read_once, query, reading), reading.deadline))

    def _read_once[T](self, query: Callable[[apsw.Connection], T], reading: Reading) -> T:
        connection = self._connection(reading.deadline)
        self._of_thread.deadline = reading.deadline
        connection.execute("BEGIN")
        try:
            reading.begin(connection)
            return query(connection)
        finally:
            reading.end()
            if connection.in_transaction:
                connection.execute("COMMIT")

    def _schema(self, connection: apsw.Connection) -> Schema:
        self._files.check()
        return schema.read_schema(connection)

    async def _flush(self, jobs: Sequence[Job[object]]) -> Sequence[object]:
        if self._closing is not None:
            raise StoreUnavailable(CLOSED)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._writer, self._guard, partial(self._commit, jobs))
        finally:
            self._commit_count += 1
            if self._idle_timer is None:
                self._watch_idle(loop)

    def _commit(self, jobs: Sequence[Job[object]]) -> Sequence[object]:
        """Commit jobs together; if one fails the transaction, each alone, so that no other fails with it."""
        connection = self._begin(time.monotonic() + self._writes.seconds)
        try:
            outcomes = self._run(connection, jobs)
        except Exception as error:
            self._roll_back(connection)
            if len(jobs) == 1:
                raise
            logger.warning("%d writes failed together (%s) and are repeated one by one", len(jobs), error)
            return [self._commit_alone(job) for job in jobs]
        self._end(connection)
        return outcomes

    def _begin(self, deadline: float) -> apsw.Connection:
        """Begin to write: as soon as there is the lock, until `_end` or `_roll_back`."""
        connection = self._connection(deadline)
        self._with_retries(partial(self._begin_once, connection), deadline)
        return connection

    def _begin_once(self, connection: apsw.Connection) -> None:
        """Begin, or raise BusyError. Callers whose time is over meanwhile are told what for they waited."""
        self._writes.reason = LOCK_HELD
        self._files.begin_write()
        try:
            connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._files.end_write()
            raise
        self._writes.reason = None

    def _run(self, connection: apsw.Connection, jobs: Sequence[Job[object]]) -> list[object]:
        transaction = Transaction.begun(connection)
        outcomes = [self._attempt(transaction, job) for job in jobs]
        transaction.flush()
        return outcomes

    def _commit_alone(self, job: Job[object]) -> object:
        try:
            return self._commit([job])[0]
        except Exception as error:  # noqa: BLE001 - it is the job's outcome, and raised to its caller
            return self._translated(error) if isinstance(error, apsw.Error) else error

    def _end(self, connection: apsw.Connection) -> None:
        """Commit. If that fails, what reached the disk is unknown: callers retry by id, this does not."""
        try:
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        self._files.end_write()
        self._files.check_written()
        if self._wal_bytes > self._checkpoint_at:
            emptied = self._checkpoint("RESTART")
            self._checkpoint_at = CHECKPOINT_BYTES + (0 if emptied else self._wal_bytes)

    def _roll_back(self, connection: apsw.Connection) -> None:
        """Undo what is not committed, and let others write."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        finally:
            self._files.end_write()

    def _attempt(self, transaction: Transaction, job: Job[object]) -> object:
        """Run one job and return its outcome, or the exception with which it refused.

        A job refuses before it changes anything. One that fails later fails the transaction: that raises.
        A savepoint for each job would undo it, too, but costs as much as the message, because the full-text
        index flushes its buffer at each.
        """
        before = transaction.mark()
        transaction.moment += MICROSECOND  # each job has its own, so that rowids are in the order of time
        try:
            return job(transaction)
        except Exception as error:
            if not transaction.connection.in_transaction or transaction.mark() != before:
                raise
            return self._translated(error) if isinstance(error, apsw.Error) else error

    def _watch_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a timer that runs a checkpoint after IDLE_SECONDS without a commit."""
        seen = self._commit_count

        def look() -> None:
            self._idle_timer = None
            if self._closed:
                return
            if seen != self._commit_count:
                self._watch_idle(loop)
            else:
                self._writer.submit(self._checkpoint, "TRUNCATE")

        self._idle_timer = loop.call_later(IDLE_SECONDS, look)

    def _checkpoint(self, mode: Literal["RESTART", "TRUNCATE"]) -> bool:
        """Write the log back and empty it; False if a reader keeps it in use for longer than TURN_SECONDS."""
        deadline = time.monotonic() + TURN_SECONDS
        try:
            while not self._checkpoint_once(mode, deadline):
                if time.monotonic() >= deadline or self._stop.wait(random.uniform(*LOCK_BACKOFF_SECONDS)):  # noqa: S311
                    return False
        except apsw.Error as error:
            # The log stays valid; the next checkpoint writes it back.
            logger.warning("the write-ahead log of %s was not written back: %s", self.path, error)
            return False
        self._wal_bytes = 0
        return True

    def _checkpoint_once(self, mode: Literal["RESTART", "TRUNCATE"], deadline: float) -> bool:
        connection = self._connection(deadline)
        try:
            with self._files.writing():
                ((busy, _, _),) = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except apsw.BusyError:
            return False
        return not busy

    def _vacuum(self) -> bool:
        """Rewrite the file; False if another process holds its lock for longer than TURN_SECONDS."""
        deadline = time.monotonic() + TURN_SECONDS
        connection = self._connection(deadline)
        connection.execute("PRAGMA temp_store = FILE")  # the copy may be larger than the memory
        try:
            self._with_retries(partial(self._vacuum_once, connection), deadline)
        except apsw.BusyError:
            return False
        finally:
            self._writes.reason = None
            connection.execute("PRAGMA temp_store = MEMORY")
        return True

    def _vacuum_once(self, connection: apsw.Connection) -> None:
        self._writes.reason = LOCK_HELD
        with self._files.writing(), self._stoppable(connection):
            self._writes.reason = REWRITING
            connection.execute("VACUUM")

    def _migrate(self, revision: str) -> None:
        deadline, target = time.monotonic() + self._writes.seconds, target_revision(revision, REVISIONS)
        if schema.is_outdated(self._connection(deadline), target, str(self.path)):
            connection = self._begin(deadline)
            try:
                with self._stoppable(connection):
                    schema.migrate(connection, target, str(self.path))
                connection.execute("COMMIT")
            finally:
                self._roll_back(connection)

    def _translated(self, error: apsw.Error) -> ChatkeepError:
        if isinstance(error, apsw.SQLError) and any(sign in str(error) for sign in NO_SCHEMA):
            return SchemaMismatch(NEEDS_UPGRADE, got=self.path)
        if not isinstance(error, apsw.InterruptError):  # that was asked for
            logger.error("SQLite failed on %s: %s: %s", self.path, type(error).__name__, error)
        if isinstance(error, apsw.CantOpenError | apsw.IOError) and self._files.were_moved():
            return StoreUnavailable(MOVED, got=self.path)
        meaning = next((text for kind, text in MEANINGS if isinstance(error, kind)), "SQLite refused the operation")
        return StoreUnavailable(meaning, got=f"{self.path}: {error}")


def _index_text(*values: object) -> str:
    """chatkeep.words.index_text for SQL."""
    return index_text(cast("str", values[0]))


NO_SCHEMA = ("no such table", "no such column", "has no column named")
CLOSED = "the store is closed"
LOCK_HELD = "another process held the database's lock for too long; try again"
REWRITING = "the file was being rewritten, as an owner was erased; try again"

MEANINGS: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.BusyError, LOCK_HELD),
    (apsw.InterruptError, "the query was stopped, as it took longer than read_timeout, or the store was closed"),
    (apsw.LockedError, "the database is locked; try again"),
    (apsw.NotADBError, "the file is not a SQLite database"),
    (apsw.CantOpenError, "the database cannot be opened: is the folder there, and may it be written?"),
    (apsw.FullError, "the disk is full"),
    (apsw.ReadOnlyError, "the database is read-only"),
    (apsw.CorruptError, "the database is damaged; restore a backup"),
    (apsw.IOError, "the disk does not answer"),
)
"""SQLite's errors in plain words."""
