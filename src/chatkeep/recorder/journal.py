"""The journal of a recorder: a local SQLite file that keeps messages until the store has acknowledged them.

Two threads work on it. One writes: what is put into the queue within a few milliseconds is committed
together, and with the commit it has reached the operating system, so that a killed process loses nothing of
it. The other makes the disk catch up (fdatasync), as often as the disk can, and moves the log into the file:
neither makes the writer wait, however slow the disk is.
"""

import atexit
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from uuid import UUID
from weakref import WeakSet

import apsw

from chatkeep.errors import InvalidInput, JournalInUse, StoreUnavailable
from chatkeep.values import clean_text, json_text, now, to_micros

logger = logging.getLogger(__name__)

POLL_SECONDS = (0.003, 0.008)
"""How often the writer looks for something to do, at work and when nothing came for a while. It is never woken:
to wake a thread costs whoever does it 7 to 25 µs, and this half a percent of a core at most."""

LOOK_SECONDS = 0.25
"""How often the writer looks whether another process changed the file, and tidies up."""

SYNC_PAUSE_SECONDS = 0.005
"""The shortest pause between two fdatasync."""

RETRY_SECONDS = (0.05, 1.0)
"""Shortest and longest pause before the writer tries a commit again that failed, as on a full disk."""

MAX_ENTRIES = 4_096
"""Most entries of one commit."""

ROWS = 64
"""Most rows of one INSERT: Python's interpreter lock is given up once for all of them."""

CHECKPOINT_PAGES = 1_000
"""Size of the log from which on it is moved into the file. The log then begins anew, in the same place of the
disk: a log that grows makes the file system's own journal a part of every fdatasync."""

LOG_BYTES = 8 << 20
"""What the log is cut to when it begins anew."""

FREE_PAGES = 256
"""How many pages of the file may be unused before they are given back, so many at a time."""

APPLICATION_ID = 0x636B_6A6C
SCHEMA_VERSION = 1
SCHEMA = f"""
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS entries (
        rid INTEGER PRIMARY KEY AUTOINCREMENT,
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        message TEXT NOT NULL,
        size INTEGER NOT NULL,
        recorded_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS entries_of_conversation ON entries (owner_id, conversation_id, rid);
    CREATE TABLE IF NOT EXISTS dead (
        rid INTEGER PRIMARY KEY,
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        message TEXT NOT NULL,
        size INTEGER NOT NULL,
        recorded_at INTEGER NOT NULL,
        died_at INTEGER NOT NULL,
        error TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {SCHEMA_VERSION};
    COMMIT
"""
SETTINGS = f"""
    PRAGMA busy_timeout = 5000;
    PRAGMA synchronous = NORMAL;
    PRAGMA secure_delete = ON;
    PRAGMA wal_autocheckpoint = 0;
    PRAGMA journal_size_limit = {LOG_BYTES}
"""
COLUMNS = "owner_id, conversation_id, message, size, recorded_at"
MOVE = f"rid, {COLUMNS}"

type Key = tuple[str, UUID]
"""An owner and one of their conversations."""

type Work[T] = Callable[[apsw.Connection], T]


type Entry = tuple[Key, dict[str, Any], int, int]
"""A message on its way into the journal: whose it is; those of its values that were given, whose text may not be valid
Unicode yet; its size; and when it was recorded, in microseconds since 1970. A plain tuple is made five times as fast as
one with names."""


class Job(NamedTuple):
    """Something to do in the writer's next transaction."""

    work: Work[Any]
    done: Future[Any]


class Row(NamedTuple):
    """A message that waits in the journal."""

    rid: int
    message: str
    """JSON."""
    size: int
    recorded_at: int


class Standing(NamedTuple):
    """What is in the journal."""

    entries: int
    size: int
    dead: int
    oldest: int | None
    """When the oldest entry was recorded, in microseconds since 1970."""


class Dead(NamedTuple):
    """A message that the store refused for good."""

    rid: int
    key: Key
    message: str
    recorded_at: int
    died_at: int
    error: str
    """The name of the error's class."""
    reason: str


class Journal:
    """One journal file, which belongs to one recorder.

    `on_written` is called by the writer's thread with the conversations that have something new to deliver.
    Raises JournalInUse when another recorder has the file, InvalidInput when it is something else.
    """

    def __init__(self, path: Path, on_written: Callable[[set[Key]], None]) -> None:
        self.path = path
        self.failure: str | None = None
        """Why the journal cannot be written at the moment."""
        self.sync_lag = self.highest_sync_lag = 0.0
        """Seconds from a commit to the disk: of the last commits, and the most so far."""
        self.written = 0
        """How many entries were committed since it was opened."""
        self.sync_failures = 0
        """How often the disk refused what was committed."""
        self._on_written = on_written
        self._queue: deque[Entry | Job] = deque()
        self.put: Callable[[Entry], None] = self._queue.append
        """Takes an entry into the next commit; returns at once."""
        self._closing = False
        self._lock = _locked(path)
        try:
            self._connection = open_journal(path, create=True)
            self._checkpointer = open_journal(path)
            self._log = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT, 0o600)
        except BaseException:
            self._lock.close()
            raise
        self._log_pages = 0
        self._connection.set_wal_hook(self._note_log)
        self._version = self._data_version()
        self._oldest = oldest_entry(self._connection)
        self._dirty = threading.Condition()
        self._dirty_since: float | None = None
        """When the first commit was that the disk may not have."""
        self._writer = threading.Thread(target=self._write_forever, name="chatkeep-journal", daemon=True)
        self._syncer = threading.Thread(target=self._sync_forever, name="chatkeep-journal-sync", daemon=True)
        self._writer.start()
        self._syncer.start()
        _open.add(self)
        atexit.register(self.close)  # a program may end without closing: what was put is written all the same

    def oldest_age(self) -> float:
        """Seconds since the oldest entry was recorded, as of a quarter of a second ago; 0 without any."""
        return max(0.0, time.time() - self._oldest / 1e6) if self._oldest is not None else 0.0

    def ask[T](self, work: Work[T]) -> "Future[T]":
        """Let the writer do `work` after everything that was put before, and commit it.

        The result is there when it is committed. An exception that is not the database's ends only this work.
        """
        done: Future[T] = Future()
        self._queue.append(Job(work, done))
        return done

    def close(self) -> None:
        """Write and sync what was put, and give the file up. Idempotent; blocks for the disk."""
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
        looked = busy = time.monotonic()
        while not self._closing or self._queue:  # in this order: nothing is put any more once it closes
            self._pause(idle=time.monotonic() - busy > LOOK_SECONDS)
            entries, jobs = self._take()
            if entries or jobs:
                self._commit_all(entries, jobs)
                busy = time.monotonic()
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                self._look_around()

    def _pause(self, *, idle: bool) -> None:
        if not self._closing:
            time.sleep(POLL_SECONDS[1] if idle else POLL_SECONDS[0])

    def _take(self) -> tuple[list[Entry], list[Job]]:
        """What has come in the last few milliseconds."""
        entries: list[Entry] = []
        jobs: list[Job] = []
        while self._queue and len(entries) < MAX_ENTRIES:
            one = self._queue.popleft()
            if isinstance(one, Job):
                jobs.append(one)
            else:
                entries.append(one)
        return entries, jobs

    def _commit_all(self, entries: Sequence[Entry], jobs: Sequence[Job]) -> None:
        try:
            self._commit(entries, jobs)
        except Exception:
            # A fault of chatkeep's own. The thread has to go on: without it nothing would be saved any more.
            logger.exception("%d messages are lost: the journal's thread failed", len(entries))

    def _commit(self, entries: Sequence[Entry], jobs: Sequence[Job]) -> None:
        """Write everything in one transaction; again and again while the disk refuses it."""
        rows = [_row(entry) for entry in entries]
        pause = RETRY_SECONDS[0]
        while True:
            try:
                outcomes = self._transaction(rows, jobs)
                break
            except apsw.Error as error:
                self._note_failure(error)
                if self._closing:
                    self._give_up(len(entries), jobs)
                    return
            time.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS[1])
        self.written += len(entries)
        self._note_success()
        for done, outcome in outcomes:
            _settle(done, outcome)
        if entries:
            self._on_written({key for key, *_ in entries})

    def _transaction(self, rows: Sequence[tuple[Any, ...]], jobs: Sequence[Job]) -> list[tuple[Future[Any], Any]]:
        if not jobs and len(rows) <= ROWS:
            insert(self._connection, rows)  # a transaction of its own: Python's lock is given up once, not three times
            return []
        with _transaction(self._connection):
            insert(self._connection, rows)
            return [(job.done, _outcome(job.work, self._connection)) for job in jobs]

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

    def _give_up(self, entries: int, jobs: Iterable[Job]) -> None:
        if entries:
            logger.error("%d messages are lost: %s could not be written until the recorder closed", entries, self.path)
        for job in jobs:
            job.done.set_exception(StoreUnavailable("the journal cannot be written", got=self.failure))

    def _look_around(self) -> None:
        """See whether somebody else moved dead letters back, how old the oldest entry is, and give space back."""
        try:
            self._oldest = oldest_entry(self._connection)
            version = self._data_version()
            if version != self._version:
                self._version = version
                self._on_written(set(keys(self._connection)))
            self._shrink()
        except apsw.Error as error:
            self._note_failure(error)

    def _data_version(self) -> int:
        return cast("int", self._connection.pragma("data_version"))

    def _shrink(self) -> None:
        """Give pages back that are not used, some at a time, and what the log has grown by."""
        if self._log_pages == 0 and os.fstat(self._log).st_size > LOG_BYTES:
            self._connection.pragma("user_version", SCHEMA_VERSION)  # a write, which begins the log anew
        if cast("int", self._connection.pragma("freelist_count")) > FREE_PAGES:
            self._connection.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()

    # --- the other thread: the disk -----------------------------------------------------------------------

    def _sync_forever(self) -> None:
        while self._writer.is_alive() or self._dirty_since is not None:
            with self._dirty:
                if self._dirty_since is None:
                    self._dirty.wait(LOOK_SECONDS)
                since, self._dirty_since = self._dirty_since, None
            try:
                self._sync(since)
                # In passing where nothing comes, else when there is enough.
                if self._log_pages >= (1 if since is None else CHECKPOINT_PAGES):
                    self._checkpoint()
            except (OSError, apsw.Error) as error:
                # What a failed fdatasync left behind, another one does not promise either: it is said, and counted.
                self.sync_failures += 1
                logger.error("the journal %s cannot be synced: %s", self.path, error)  # noqa: TRY400 - says it all
            time.sleep(SYNC_PAUSE_SECONDS)

    def _checkpoint(self) -> None:
        self._log_pages = 0
        # Busy where it looks at the log in the moment of a commit, after which there is a next time.
        with suppress(apsw.BusyError):
            self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _sync(self, since: float | None) -> None:
        if since is not None:
            _to_disk(self._log)
            self.sync_lag = time.monotonic() - since
            self.highest_sync_lag = max(self.highest_sync_lag, self.sync_lag)


# --- the file -------------------------------------------------------------------------------------------------


def open_journal(path: Path, *, create: bool = False) -> apsw.Connection:
    """Open a journal. Raises InvalidInput when there is none, or the file is something else."""
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # it holds what people said: for its owner only
    elif not path.exists():
        raise InvalidInput("there is no such journal", got=path)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        _check_kind(connection, path)
        if create:
            connection.execute(SCHEMA).fetchall()
        connection.execute(SETTINGS).fetchall()
    except apsw.NotADBError:
        connection.close()
        raise InvalidInput("the file is not a recorder's journal; name another one", got=path) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _check_kind(connection: apsw.Connection, path: Path) -> None:
    application, version = connection.pragma("application_id"), connection.pragma("user_version")
    if application != APPLICATION_ID and connection.pragma("page_count") != 0:
        raise InvalidInput("the file is not a recorder's journal; name another one", got=path)
    if cast("int", version) > SCHEMA_VERSION:
        raise InvalidInput("the journal was written by a newer version of chatkeep; upgrade chatkeep", got=path)


_open: WeakSet[Journal] = WeakSet()


def _let_go() -> None:
    """A child that was forked keeps no lock: the parent's would outlive the parent with it."""
    for journal in _open:
        journal._lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _locked(path: Path) -> IO[str]:
    """Take the journal's lock, which ends with the process. The file itself cannot hold it: SQLite has its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock").open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise JournalInUse(
            f"another recorder (process {holder}) uses this journal; give each recorder a file of its own", got=path
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _to_disk(file: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone does not reach the disk there
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(file)


def _outcome(work: Work[Any], connection: apsw.Connection) -> Any:
    try:
        return work(connection)
    except apsw.Error:
        raise
    except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
        return error


def _settle(done: "Future[Any]", outcome: Any) -> None:
    if not done.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


# --- what is in it --------------------------------------------------------------------------------------------


def _row(entry: Entry) -> tuple[Any, ...]:
    (owner, conversation_id), said, size, recorded_at = entry
    message = json_text({**said, "content": clean_text(said["content"])})
    return owner, conversation_id.bytes, message, size, recorded_at


def insert(connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add entries."""
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        connection.execute(_insert(len(part)), [value for row in part for value in row])


@cache
def _insert(rows: int) -> str:
    return f"INSERT INTO entries ({COLUMNS}) VALUES {','.join(['(?,?,?,?,?)'] * rows)}"  # noqa: S608 - constants


def oldest(connection: apsw.Connection, key: Key, limit: int, max_size: int) -> tuple[list[Row], bool]:
    """The oldest entries of a conversation, in order: up to a number and a size, at least one; are there more?"""
    found = connection.execute(
        "SELECT rid, message, size, recorded_at FROM entries"
        " WHERE owner_id = ? AND conversation_id = ? ORDER BY rid LIMIT ?",
        (key[0], key[1].bytes, limit + 1),
    )
    rows: list[Row] = []
    for row in map(Row._make, found.fetchall()):
        max_size -= row.size
        if len(rows) == limit or (rows and max_size < 0):
            return rows, True
        rows.append(row)
    return rows, False


def keys(connection: apsw.Connection) -> list[Key]:
    """The conversations that have entries."""
    found: list[Any] = connection.execute("SELECT DISTINCT owner_id, conversation_id FROM entries").fetchall()
    return [(owner, UUID(bytes=id_)) for owner, id_ in found]


def remove(connection: apsw.Connection, rids: Sequence[int]) -> None:
    """Forget entries that were delivered."""
    connection.execute(f"DELETE FROM entries WHERE rid IN ({','.join('?' * len(rids))})", rids)  # noqa: S608


def bury(connection: apsw.Connection, rid: int, error: str, reason: str) -> None:
    """Move an entry to the dead letters."""
    connection.execute(
        f"INSERT INTO dead ({MOVE}, died_at, error, reason)"  # noqa: S608 - constants
        f" SELECT {MOVE}, ?, ?, ? FROM entries WHERE rid = ?",
        (to_micros(now()), error, reason, rid),
    )
    remove(connection, [rid])


def trim(connection: apsw.Connection, excess: int, kept: Iterable[int]) -> tuple[int, int]:
    """Remove the oldest entries but `kept`, until `excess` bytes are free; how many they were, and how large."""
    spared, rids, freed = set(kept), list[int](), 0
    for rid, size in connection.execute("SELECT rid, size FROM entries ORDER BY rid"):
        if freed >= excess:
            break
        if rid not in spared:
            rids.append(rid)
            freed += size
    for start in range(0, len(rids), 500):
        remove(connection, rids[start : start + 500])
    return len(rids), freed


def newest_rid(connection: apsw.Connection) -> int:
    """The rid of the entry that was added last, delivered or not."""
    return cast("int", connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").get)


def has_entries_up_to(connection: apsw.Connection, rid: int) -> bool:
    """Whether entries up to this one still wait."""
    return cast("int", connection.execute("SELECT EXISTS (SELECT 1 FROM entries WHERE rid <= ?)", (rid,)).get) > 0


def standing(connection: apsw.Connection) -> Standing:
    """How much is in the journal."""
    found: Any = connection.execute("SELECT count(*), coalesce(sum(size), 0), (SELECT count(*) FROM dead) FROM entries")
    entries, size, dead = found.fetchone()
    return Standing(entries, size, dead, oldest_entry(connection))


def oldest_entry(connection: apsw.Connection) -> int | None:
    """When the oldest entry was recorded."""
    return cast("int | None", connection.execute("SELECT recorded_at FROM entries ORDER BY rid LIMIT 1").get)


def dead_letters(connection: apsw.Connection) -> list[Dead]:
    """The messages that the store refused for good, in order."""
    found: Any = connection.execute(
        "SELECT rid, owner_id, conversation_id, message, recorded_at, died_at, error, reason FROM dead ORDER BY rid"
    ).fetchall()
    return [Dead(rid, (owner, UUID(bytes=id_)), *rest) for rid, owner, id_, *rest in found]


def revive(connection: apsw.Connection, rids: Sequence[int] | None) -> int:
    """Move dead letters, or all, back to the entries, at their old places; say how many.

    A recorder that is at work has not counted them: they get the size 0, and it does not discount them.
    """
    where, values = _those(rids)
    back = "rid, owner_id, conversation_id, message, 0, recorded_at"
    with _transaction(connection):
        connection.execute(f"INSERT INTO entries ({MOVE}) SELECT {back} FROM dead {where}", values)  # noqa: S608
        return _delete_dead(connection, where, values)


def drop(connection: apsw.Connection, rids: Sequence[int] | None) -> int:
    """Delete dead letters, or all; say how many."""
    with _transaction(connection):
        return _delete_dead(connection, *_those(rids))


def _those(rids: Sequence[int] | None) -> tuple[str, Sequence[int]]:
    return ("", ()) if rids is None else (f"WHERE rid IN ({','.join('?' * len(rids))})", rids)


def _delete_dead(connection: apsw.Connection, where: str, values: Sequence[int]) -> int:
    connection.execute(f"DELETE FROM dead {where}", values)  # noqa: S608 - constants and places
    return connection.changes()
