"""The file of a recorder's journal: a local SQLite database of messages that the store has not acknowledged.

An entry waits for its delivery. A dead letter is an entry that the store refused for good. Each has a checksum of all
its values, so that a damaged file never delivers another text, in another place, or to another owner.
"""

import errno
import fcntl
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, cast
from uuid import UUID

import apsw

from chatkeep.errors import InvalidInput, JournalInUse, StoreUnavailable
from chatkeep.values import clean_text, json_text

INSERT_ROWS = 64
"""Most rows of one INSERT. Python's interpreter lock is released once for all of them."""

DELETE_ROWS = 500
"""Most rids that one statement names."""

LOG_BYTES = 8 << 20
"""Size to which the write-ahead log is truncated when it starts over."""

MAX_RID = 1 << 60
PAGE_BYTES = 4_096
APPLICATION_ID = 0x636B_6A6C
SCHEMA_VERSION = 1
SCHEMA = f"""
    PRAGMA page_size = {PAGE_BYTES};
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS entries (
        rid INTEGER PRIMARY KEY AUTOINCREMENT,
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        message TEXT NOT NULL,
        size INTEGER NOT NULL,
        recorded_at INTEGER NOT NULL,
        checksum INTEGER
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
        reason TEXT NOT NULL,
        checksum INTEGER
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
COLUMNS = "rid, owner_id, conversation_id, message, size, recorded_at, checksum"
DEAD_COLUMNS = f"{COLUMNS}, died_at, error, reason"

type ConversationKey = tuple[str, UUID]
"""An owner and the id of one of their conversations."""

type NewEntry = tuple[ConversationKey, dict[str, Any], int, int]
"""A message to be written: its conversation; the values that were given, not yet cleaned; its size; and when it was
recorded, in microseconds since 1970. A plain tuple is made five times as fast as a named one."""


class JournalDamaged(Exception):
    """A journal holds something else than what was written to it."""


class Entry(NamedTuple):
    """A message that waits for its delivery: the values of its columns."""

    rid: int
    """Its place in the order of recording."""
    owner_id: str
    conversation_id: bytes
    message: str
    """The message as JSON."""
    size: int
    recorded_at: int
    """In microseconds since 1970."""
    checksum: int | None
    """Of the values before it; None if an older version wrote the entry."""

    @property
    def key(self) -> ConversationKey:
        """The conversation."""
        return self.owner_id, UUID(bytes=self.conversation_id)

    @property
    def is_whole(self) -> bool:
        """Whether the values are those that were written."""
        try:
            return self.checksum == checksum_of(*self[:-1])
        except (AttributeError, TypeError):  # a value of another type
            return False

    def sealed(self) -> Self:
        """Return the entry with its checksum. Raises JournalDamaged if its values cannot be those of an entry."""
        try:
            return self._replace(checksum=checksum_of(*self[:-1]))
        except (AttributeError, TypeError) as error:
            raise JournalDamaged("an entry has values of other types") from error


def checksum_of(rid: int, owner: str, conversation_id: bytes, message: str, size: int, recorded_at: int) -> int:
    """Return the CRC-32 of an entry."""
    values = (rid, size, recorded_at, conversation_id, owner.encode(), message.encode())
    return zlib.crc32(b"%d %d %d %b%b\0%b" % values)


class Standing(NamedTuple):
    """What a journal holds."""

    entries: int
    size: int
    dead: int
    oldest: int | None
    """When the oldest entry was recorded, in microseconds since 1970."""


class Dead(NamedTuple):
    """A message that the store refused for good."""

    entry: Entry
    died_at: int
    error: str
    """The name of the error's class."""
    reason: str


# --- the file ------------------------------------------------------------------------------------------------

NOT_A_JOURNAL = "the file is not a recorder's journal; name another one"
NEWER = "the journal was written by a newer version of chatkeep; upgrade chatkeep"
NOT_WRITABLE = "the journal cannot be opened: {}; name a file in a folder of the local disk that can be written"
NOT_NOW = "the journal cannot be opened: {}"

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
REFUSED = (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError)
"""Errors of a file that may not be written."""

DAMAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.SQLError,
)
"""Errors of a file that holds something else than what was written to it; SQLError if a table is missing."""

READ_ERRORS = (apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_CORRUPTFS)

MARKS = (APPLICATION_ID.to_bytes(4), b"entries_of_conversation")
"""What the first page of a journal has."""

FIRST_ODD_VERSION = 1_000
"""No version of the schema will have such a number."""


def is_damage(error: Exception) -> bool:
    """Return whether an error says that the file is damaged. Others, such as that of a full disk, may pass."""
    if isinstance(error, apsw.IOError):
        return cast("Any", error).extendedresult in READ_ERRORS
    return isinstance(error, (JournalDamaged, UnicodeDecodeError, *DAMAGE))


def open_journal(path: Path, *, create: bool = False) -> apsw.Connection:
    """Open a journal.

    Raises InvalidInput if there is none, it may not be written, or the file is something else; StoreUnavailable if the
    disk refuses; JournalDamaged.
    """
    with explained(path):
        if create:
            create_private(path)
        elif not path.exists():
            raise InvalidInput("there is no such journal", got=path)
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        keep_log(connection, keep=True)  # of a damaged log, what is behind the damage would be deleted
        try:
            _prepare(connection, path, create=create)
            connection.execute(SETTINGS).fetchall()
        except BaseException:
            connection.close()
            raise
    return connection


def keep_log(connection: apsw.Connection, *, keep: bool) -> None:
    """Keep the log when the connection is closed, or have it copied to the file then, and deleted."""
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(keep))


def create_private(path: Path) -> None:
    """Create a file that only its user can read, as messages are private, and its folder, unless they are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what it means that a journal cannot be opened: see open_journal."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise JournalDamaged("a name of its tables is no text") from error
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise StoreUnavailable(NOT_NOW.format(error.strerror), got=path) from error
        raise InvalidInput(NOT_WRITABLE.format(error.strerror), got=path) from error
    except REFUSED as error:
        if isinstance(error, apsw.ReadOnlyError) and os.access(path, os.W_OK):
            raise JournalDamaged("its header is overwritten") from error
        raise InvalidInput(NOT_WRITABLE.format(error), got=path) from error
    except apsw.Error as error:
        if not is_damage(error):
            raise StoreUnavailable(NOT_NOW.format(error), got=path) from error
        if isinstance(error, apsw.NotADBError) and not _was_journal(path):
            raise InvalidInput(NOT_A_JOURNAL, got=path) from None
        raise JournalDamaged(str(error)) from error


def _was_journal(path: Path) -> bool:
    """Return whether a file that is no database was a journal: a recorder has locked it, or its first page says so."""
    return lock_path(path).exists() or has_marks(path)


def has_marks(path: Path) -> bool:
    """Return whether the first page of a file has what that of a journal has."""
    with path.open("rb") as file:
        first = file.read(PAGE_BYTES)
    return any(mark in first for mark in MARKS)


def _prepare(connection: apsw.Connection, path: Path, *, create: bool) -> None:
    """Make the tables of a new journal, and the checksums of one that an older version made."""
    application, version = connection.pragma("application_id"), cast("int", connection.pragma("user_version"))
    if application != APPLICATION_ID and connection.execute("SELECT count(*) FROM sqlite_schema").get:
        raise JournalDamaged("its header is overwritten") if has_marks(path) else InvalidInput(NOT_A_JOURNAL, got=path)
    if application != APPLICATION_ID:
        if create:
            connection.execute(SCHEMA).fetchall()
    elif SCHEMA_VERSION < version < FIRST_ODD_VERSION:
        raise InvalidInput(NEWER, got=path)
    elif version != SCHEMA_VERSION:
        raise JournalDamaged("its header is overwritten")
    else:
        _add_checksums(connection)


def _add_checksums(connection: apsw.Connection) -> None:
    """Add the checksums that older versions did not write."""
    for table, columns in (("entries", COLUMNS), ("dead", DEAD_COLUMNS)):
        names = {column[1] for column in connection.execute(f"PRAGMA table_info({table})")}
        known = set(columns.split(", "))
        if names == known:
            continue
        if names != known - {"checksum"}:  # damage that hides the checksums must not have them made again
            raise JournalDamaged(f"its table {table} has other columns")
        with transaction(connection):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN checksum INTEGER")
            values = COLUMNS.removesuffix(", checksum")
            connection.create_scalar_function("sealed", lambda *row: Entry._make((*row, None)).sealed().checksum)
            connection.execute(f"UPDATE {table} SET checksum = sealed({values})")  # noqa: S608 - constants


def lock_path(path: Path) -> Path:
    """Return the file that a recorder locks. It is another one than the journal, which SQLite locks."""
    return path.with_name(f"{path.name}.lock")


def lock_journal(path: Path) -> IO[str]:
    """Lock a journal until the process ends. Raises JournalInUse if another recorder has it, InvalidInput."""
    with explained(path):
        create_private(lock_path(path))
        lock = lock_path(path).open("r+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise JournalInUse(
            f"another recorder (process {holder}) uses this journal; give each recorder a file of its own", got=path
        ) from None
    with suppress(OSError):  # a full disk: it only says who has it
        os.ftruncate(lock.fileno(), 0)
        os.pwrite(lock.fileno(), b"%d\n" % os.getpid(), 0)
    return lock


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """Commit at the end of the block; roll back if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


# --- entries -------------------------------------------------------------------------------------------------


def new_entry(rid: int, new: NewEntry) -> Entry:
    """Return the entry of a message that was recorded."""
    (owner, conversation_id), given, size, recorded_at = new
    message = json_text({**given, "content": clean_text(given["content"])})
    values = rid, owner, conversation_id.bytes, message, size, recorded_at
    return Entry(*values, checksum_of(*values))


def insert_entries(connection: apsw.Connection, entries: Sequence[Entry]) -> None:
    """Insert entries."""
    for start in range(0, len(entries), INSERT_ROWS):
        part = entries[start : start + INSERT_ROWS]
        connection.execute(_insert(len(part)), [value for entry in part for value in entry])


@cache
def _insert(rows: int) -> str:
    return f"INSERT INTO entries ({COLUMNS}) VALUES {','.join(['(?,?,?,?,?,?,?)'] * rows)}"  # noqa: S608 - constants


def entries_of(
    connection: apsw.Connection, key: ConversationKey, gone: Collection[int], limit: int, first: int
) -> list[Entry]:
    """Return a conversation's oldest entries, from `first` on, but those that are `gone`. Raises JournalDamaged."""
    found = connection.execute(
        f"SELECT {COLUMNS} FROM entries WHERE owner_id = ? AND conversation_id = ? AND rid >= ? ORDER BY rid LIMIT ?",  # noqa: S608
        (key[0], key[1].bytes, first, limit + len(gone)),
    )
    # Row by row, as there may be far more that are gone than wait.
    entries = list(islice((entry for entry in map(Entry._make, found) if entry.rid not in gone), limit))
    found.close()
    columns = (key[0], key[1].bytes)
    if not all(entry.is_whole and entry[1:3] == columns for entry in entries):  # a UUID takes as long as the checksum
        raise JournalDamaged("an entry is not what was written")
    return entries


def waiting_conversations(connection: apsw.Connection) -> list[ConversationKey]:
    """Return the conversations that have entries. Raises JournalDamaged."""
    found: list[Any] = connection.execute("SELECT DISTINCT owner_id, conversation_id FROM entries").fetchall()
    try:
        return [(owner, UUID(bytes=id_)) for owner, id_ in found]
    except (TypeError, ValueError) as error:
        raise JournalDamaged("the id of a conversation is none") from error


def delete_entries(connection: apsw.Connection, rids: Sequence[int]) -> None:
    """Delete entries."""
    for start in range(0, len(rids), DELETE_ROWS):
        part = rids[start : start + DELETE_ROWS]
        connection.execute(f"DELETE FROM entries WHERE rid IN ({','.join('?' * len(part))})", part)  # noqa: S608


def entries_among(connection: apsw.Connection, rids: Sequence[int]) -> dict[int, int]:
    """Return those of some rids that the file has, with the sizes of their entries."""
    found = dict[int, int]()
    for start in range(0, len(rids), DELETE_ROWS):
        part = rids[start : start + DELETE_ROWS]
        those = f"SELECT rid, size FROM entries WHERE rid IN ({','.join('?' * len(part))})"  # noqa: S608
        found.update(cast("Iterator[tuple[int, int]]", connection.execute(those, part)))
    return found


def sizes(connection: apsw.Connection) -> Iterator[tuple[int, int]]:
    """Return the rid and the size of each entry, the oldest first."""
    return cast("Iterator[tuple[int, int]]", connection.execute("SELECT rid, size FROM entries ORDER BY rid"))


def newest_rid(connection: apsw.Connection) -> int:
    """Return the rid of the newest entry, delivered or not. Raises JournalDamaged if it cannot be that."""
    found: Any = connection.execute(
        "SELECT coalesce((SELECT max(seq) FROM sqlite_sequence), 0), coalesce((SELECT max(rid) FROM entries), 0),"
        " coalesce((SELECT max(rid) FROM dead), 0)"
    ).fetchone()
    if max(found) > MAX_RID:
        raise JournalDamaged("the number of an entry is out of range")
    return cast("int", max(found))


def oldest_rids(connection: apsw.Connection, up_to: int, limit: int) -> list[int]:
    """Return the rids of the oldest entries up to this one."""
    found = connection.execute("SELECT rid FROM entries WHERE rid <= ? ORDER BY rid LIMIT ?", (up_to, limit))
    return [rid for (rid,) in cast("list[tuple[int]]", found.fetchall())]


def standing(connection: apsw.Connection) -> Standing:
    """Return what the journal holds."""
    found: Any = connection.execute("SELECT count(*), coalesce(sum(size), 0), (SELECT count(*) FROM dead) FROM entries")
    entries, size, dead = found.fetchone()
    return Standing(entries, size, dead, oldest_entry(connection))


def oldest_entry(connection: apsw.Connection) -> int | None:
    """Return when the oldest entry was recorded, in microseconds since 1970; None without entries."""
    return cast("int | None", connection.execute("SELECT recorded_at FROM entries ORDER BY rid LIMIT 1").get)


# --- dead letters --------------------------------------------------------------------------------------------


def insert_dead(connection: apsw.Connection, letters: Iterable[Dead]) -> None:
    """Insert dead letters that are not there yet."""
    connection.executemany(
        f"INSERT OR IGNORE INTO dead ({DEAD_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",  # noqa: S608 - constants
        [(*letter.entry, letter.died_at, letter.error, letter.reason) for letter in letters],
    )


def dead_letters(connection: apsw.Connection) -> list[Dead]:
    """Return the dead letters, in the order of their recording."""
    found: Any = connection.execute(f"SELECT {DEAD_COLUMNS} FROM dead ORDER BY rid").fetchall()  # noqa: S608 - constants
    return [Dead(Entry._make(row[:7]), *row[7:]) for row in found]


def owners_of_dead(connection: apsw.Connection) -> list[str]:
    """Return the owners of dead letters."""
    found: Any = connection.execute("SELECT DISTINCT owner_id FROM dead").fetchall()
    return [owner for (owner,) in found]


def revive(connection: apsw.Connection, rids: Sequence[int] | None) -> int:
    """Move dead letters (None: all) back to their old places among the entries. Return their number."""
    where, values = _those(rids)
    with transaction(connection):
        connection.execute(f"INSERT INTO entries ({COLUMNS}) SELECT {COLUMNS} FROM dead {where}", values)  # noqa: S608
        return _delete_dead(connection, where, values)


def drop(connection: apsw.Connection, rids: Sequence[int] | None) -> int:
    """Delete dead letters (None: all). Return their number."""
    with transaction(connection):
        return _delete_dead(connection, *_those(rids))


def _those(rids: Sequence[int] | None) -> tuple[str, Sequence[int]]:
    return ("", ()) if rids is None else (f"WHERE rid IN ({','.join('?' * len(rids))})", rids)


def _delete_dead(connection: apsw.Connection, where: str, values: Sequence[int]) -> int:
    connection.execute(f"DELETE FROM dead {where}", values)  # noqa: S608 - constants and placeholders
    return connection.changes()


# --- erasure -------------------------------------------------------------------------------------------------


def drop_dead_of(connection: apsw.Connection, owner: str, before: int) -> int:
    """Delete an owner's dead letters that were recorded before a moment, or at it. Return their number."""
    connection.execute("DELETE FROM dead WHERE owner_id = ? AND recorded_at <= ?", (owner, before))
    return connection.changes()


def erase_owner(connection: apsw.Connection, owner: str) -> tuple[int, int]:
    """Delete an owner's entries and dead letters, also from the write-ahead log. Return the number of each.

    Raises StoreUnavailable if the log cannot be emptied, as another process reads it: they are deleted then, and
    calling it again empties the log.
    """
    with transaction(connection):
        connection.execute("DELETE FROM entries WHERE owner_id = ?", (owner,))
        entries = connection.changes()
        connection.execute("DELETE FROM dead WHERE owner_id = ?", (owner,))
        dead = connection.changes()
    _empty_log(connection)
    return entries, dead


def _empty_log(connection: apsw.Connection) -> None:
    """Copy the log to the file, whose deleted content is overwritten, and truncate it."""
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:
        raise StoreUnavailable("the journal's log is in use, and may have copies; repeat the command") from None
