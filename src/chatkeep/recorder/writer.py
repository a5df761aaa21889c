"""Writes the journal of a recorder, in two threads.

The writer commits everything that was queued within a few milliseconds as one batch. After a commit the batch is with
the operating system: killing the process loses nothing of it. The syncer calls fdatasync as often as the disk allows,
and checkpoints the write-ahead log. It never makes the writer wait, however slow the disk is.
"""

import atexit
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from weakref import WeakSet

import apsw

from chatkeep.errors import StoreUnavailable
from chatkeep.recorder.journal import (
    INSERT_ROWS,
    LOG_BYTES,
    SCHEMA_VERSION,
    ConversationKey,
    NewEntry,
    entry_values,
    insert_entries,
    lock_journal,
    oldest_entry,
    open_journal,
    transaction,
    waiting_conversations,
)

logger = logging.getLogger(__name__)

POLL_SECONDS = (0.003, 0.008)
"""Polling interval of the writer, busy and idle. It is never notified: waking a thread costs the caller 7 to 25 µs,
polling half a percent of a core at most."""

HOUSEKEEPING_SECONDS = 0.25
"""How often the writer checks for changes by another process and frees space; it is idle after as long without work."""

SYNC_INTERVAL_SECONDS = 0.005
"""Shortest pause between two calls of fdatasync."""

COMMIT_BACKOFF_SECONDS = (0.05, 1.0)
"""Shortest and longest pause before a failed commit is retried, as on a full disk."""

COMMIT_ENTRIES = 4_096
"""Most entries of one commit."""

CHECKPOINT_PAGES = 1_000
"""Size of the write-ahead log from which on it is checkpointed. The log then starts over in the same place of the
disk. A log that grows makes the file system's own journal a part of every fdatasync."""

FREE_PAGES = 256
"""Unused pages of the file from which on they are freed, and how many at a time."""

type JournalOperation[T] = Callable[[apsw.Connection], T]


class _Pending(NamedTuple):
    """An operation for the writer's next transaction, and its result."""

    operation: JournalOperation[Any]
    result: Future[Any]


class JournalWriter:
    """Writes one journal file for one recorder.

    The writer's thread calls `on_written` with the conversations that have new entries. Raises JournalInUse if another
    recorder has the file, InvalidInput if it is not a journal.
    """

    def __init__(self, path: Path, on_written: Callable[[set[ConversationKey]], None]) -> None:
        self.path = path
        self.failure: str | None = None
        """Why the last commit failed; None if it did not."""
        self.sync_lag = self.highest_sync_lag = 0.0
        """Seconds from a commit to the disk: of the last commits, and the highest so far."""
        self.written = 0
        """Entries that were committed since the journal was opened."""
        self.sync_failures = 0
        """How often fdatasync failed."""
        self.forked = False
        """Whether this is a forked child, which has none of the threads: a flag costs `record` less than os.getpid."""
        self._on_written = on_written
        self._queue: deque[NewEntry | _Pending] = deque()
        self.put: Callable[[NewEntry], None] = self._queue.append
        """Queues an entry for the next commit; returns at once."""
        self._closing = False
        self._lock, self._connection, self._checkpointer, self._log = _opened(path)
        self._log_pages = 0
        self._connection.set_wal_hook(self._note_log)
        self._version = self._data_version()
        self._oldest = oldest_entry(self._connection)
        self._dirty = threading.Condition()
        self._dirty_since: float | None = None
        """When the first commit was made that is not synced; None if all are."""
        self._writer = threading.Thread(target=self._write_forever, name="chatkeep-journal", daemon=True)
        self._syncer = threading.Thread(target=self._sync_forever, name="chatkeep-journal-sync", daemon=True)
        self._start()

    def _start(self) -> None:
        self._writer.start()
        self._syncer.start()
        _open_writers.add(self)
        atexit.register(self.close)  # a program may end without closing: what was queued is written all the same

    def oldest_age(self) -> float:
        """Return the age of the oldest entry in seconds, as of a quarter of a second ago; 0 without entries."""
        return max(0.0, time.time() - self._oldest / 1e6) if self._oldest is not None else 0.0

    def submit[T](self, operation: JournalOperation[T]) -> "Future[T]":
        """Run `operation` in the writer's thread, after everything that was queued before it, and commit.

        The result is set after the commit. An exception that is not the database's fails this operation only.
        """
        result: Future[T] = Future()
        self._queue.append(_Pending(operation, result))
        return result

    def close(self) -> None:
        """Write and sync what was queued, and close the files. Idempotent; blocks on the disk."""
        if self._closing:
            return
        self._closing = True
        atexit.unregister(self.close)
        self._writer.join()
        with self._dirty:
            self._dirty.notify()
        self._syncer.join()
        self._checkpointer.close()
        self._connection.close()
        os.close(self._log)
        self._lock.close()

    # --- the writer's thread ------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        checked = busy = time.monotonic()
        while not self._closing or self._queue:  # in this order: nothing is queued once it is closing
            self._pause(idle=time.monotonic() - busy > HOUSEKEEPING_SECONDS)
            entries, operations = self._take_batch()
            if entries or operations:
                self._commit_all(entries, operations)
                busy = time.monotonic()
            if time.monotonic() - checked > HOUSEKEEPING_SECONDS:
                checked = time.monotonic()
                self._keep_house()

    def _pause(self, *, idle: bool) -> None:
        if not self._closing:
            time.sleep(POLL_SECONDS[1] if idle else POLL_SECONDS[0])

    def _take_batch(self) -> tuple[list[NewEntry], list[_Pending]]:
        """Return what was queued since the last batch."""
        entries: list[NewEntry] = []
        operations: list[_Pending] = []
        while self._queue and len(entries) < COMMIT_ENTRIES:
            one = self._queue.popleft()
            if isinstance(one, _Pending):
                operations.append(one)
            else:
                entries.append(one)
        return entries, operations

    def _commit_all(self, entries: Sequence[NewEntry], operations: Sequence[_Pending]) -> None:
        try:
            self._commit(entries, operations)
        except Exception:
            # A bug in chatkeep. The thread has to survive it: without the thread nothing is saved any more.
            logger.exception("%d messages are lost: the journal's thread failed", len(entries))

    def _commit(self, entries: Sequence[NewEntry], operations: Sequence[_Pending]) -> None:
        """Write a batch in one transaction. Retries while the disk refuses it."""
        rows = [entry_values(entry) for entry in entries]
        pause = COMMIT_BACKOFF_SECONDS[0]
        while True:
            try:
                outcomes = self._transaction(rows, operations)
                break
            except apsw.Error as error:
                self._note_failure(error)
                if self._closing:
                    self._give_up(len(entries), operations)
                    return
            time.sleep(pause)
            pause = min(2 * pause, COMMIT_BACKOFF_SECONDS[1])
        self.written += len(entries)
        self._note_success()
        for result, outcome in outcomes:
            _settle(result, outcome)
        if entries:
            self._on_written({key for key, *_ in entries})

    def _transaction(
        self, rows: Sequence[tuple[Any, ...]], operations: Sequence[_Pending]
    ) -> list[tuple[Future[Any], Any]]:
        if not operations and len(rows) <= INSERT_ROWS:
            insert_entries(self._connection, rows)  # autocommit: Python's lock is released once, not three times
            return []
        with transaction(self._connection):
            insert_entries(self._connection, rows)
            return [(one.result, _outcome(one.operation, self._connection)) for one in operations]

    def _note_log(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _note_failure(self, error: apsw.Error) -> None:
        if self.failure is None:
            logger.error("the journal %s cannot be written: %s; trying again", self.path, type(error).__name__)
        self.failure = f"{type(error).__name__}: {error}"

    def _note_success(self) -> None:
        if self.failure is not None:
            logger.warning("the journal %s can be written again", self.path)
        self.failure = None
        with self._dirty:
            if self._dirty_since is None:
                self._dirty_since = time.monotonic()
            self._dirty.notify()

    def _give_up(self, entries: int, operations: Iterable[_Pending]) -> None:
        if entries:
            logger.error("%d messages are lost: %s could not be written until the recorder closed", entries, self.path)
        for one in operations:
            one.result.set_exception(StoreUnavailable("the journal cannot be written", got=self.failure))

    def _keep_house(self) -> None:
        """Note the oldest entry, deliver dead letters that another process moved back, and free space."""
        try:
            self._oldest = oldest_entry(self._connection)
            version = self._data_version()
            if version != self._version:
                self._version = version
                self._on_written(set(waiting_conversations(self._connection)))
            self._shrink()
        except apsw.Error as error:
            self._note_failure(error)

    def _data_version(self) -> int:
        return cast("int", self._connection.pragma("data_version"))

    def _shrink(self) -> None:
        """Truncate a log that has grown, and free some unused pages."""
        if self._log_pages == 0 and os.fstat(self._log).st_size > LOG_BYTES:
            self._connection.pragma("user_version", SCHEMA_VERSION)  # a write: with it the log starts over
        if cast("int", self._connection.pragma("freelist_count")) > FREE_PAGES:
            self._connection.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()

    # --- the syncer's thread ------------------------------------------------------------------------------

    def _sync_forever(self) -> None:
        while self._writer.is_alive() or self._dirty_since is not None:
            with self._dirty:
                if self._dirty_since is None:
                    self._dirty.wait(HOUSEKEEPING_SECONDS)
                since, self._dirty_since = self._dirty_since, None
            try:
                self._sync(since)
                # When idle, checkpoint any log; else a large one only.
                if self._log_pages >= (1 if since is None else CHECKPOINT_PAGES):
                    self._checkpoint()
            except (OSError, apsw.Error) as error:
                # A second fdatasync cannot make up for one that failed: the failure is counted and logged.
                self.sync_failures += 1
                logger.error("the journal %s cannot be synced: %s", self.path, error)  # noqa: TRY400 - says it all
            time.sleep(SYNC_INTERVAL_SECONDS)

    def _checkpoint(self) -> None:
        self._log_pages = 0
        # Busy if it reads the log at the moment of a commit; the next checkpoint makes up for it.
        with suppress(apsw.BusyError):
            self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _sync(self, since: float | None) -> None:
        if since is not None:
            _fdatasync(self._log)
            self.sync_lag = time.monotonic() - since
            self.highest_sync_lag = max(self.highest_sync_lag, self.sync_lag)


def _opened(path: Path) -> tuple[IO[str], apsw.Connection, apsw.Connection, int]:
    """Return the lock of a journal, connections for the writer and the syncer, and its log as a file descriptor."""
    lock = lock_journal(path)
    try:
        connection = open_journal(path, create=True)
        checkpointer = open_journal(path)
        log = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT, 0o600)
    except BaseException:
        lock.close()
        raise
    return lock, connection, checkpointer, log


_open_writers: WeakSet[JournalWriter] = WeakSet()


def _leave_to_parent() -> None:
    """Release the locks in a forked child, which may live longer than the parent, and never close the files there."""
    for writer in _open_writers:
        writer._lock.close()
        writer.forked = writer._closing = True
        atexit.unregister(writer.close)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _fdatasync(file: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone does not reach the disk there
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(file)


def _outcome(operation: JournalOperation[Any], connection: apsw.Connection) -> Any:
    try:
        return operation(connection)
    except apsw.Error:
        raise
    except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
        return error


def _settle(result: "Future[Any]", outcome: Any) -> None:
    if not result.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        result.set_exception(outcome)
    else:
        result.set_result(outcome)
