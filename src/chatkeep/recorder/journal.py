"""The file of a recorder's journal: a local SQLite database of messages that the store has not acknowledged.

An entry waits for its delivery. A dead letter is an entry that the store refused for good.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from uuid import UUID

import apsw

from chatkeep.errors import InvalidInput, JournalInUse
from chatkeep.values import clean_text, json_text, now, to_micros

INSERT_ROWS = 64
"""Most rows of one INSERT. Python's interpreter lock is released once for all of them."""

LOG_BYTES = 8 << 20
"""Size to which the write-ahead log is truncated when it starts over."""

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

type ConversationKey = tuple[str, UUID]
"""An owner and the id of one of their conversations."""

type NewEntry = tuple[ConversationKey, dict[str, Any], int, int]
"""A message to be written: its conversation; the values that were given, not yet cleaned; its size; and when it was
recorded, in microseconds since 1970. A plain tuple is made five times as fast as a named one."""


class Entry(NamedTuple):
    """A message that waits for its delivery."""

    rid: int
    message: str
    """The message as JSON."""
    size: int
    recorded_at: int


class Standing(NamedTuple):
    """What a journal holds."""

    entries: int
    size: int
    dead: int
    oldest: int | None
    """When the oldest entry was recorded, in microseconds since 1970."""


class Dead(NamedTuple):
    """A message that the store refused for good."""

    rid: int
    key: ConversationKey
    message: str
    recorded_at: int
    died_at: int
    error: str
    """The name of the error's class."""
    reason: str


# --- the file ------------------------------------------------------------------------------------------------


def open_journal(path: Path, *, create: bool = False) -> apsw.Connection:
    """Open a journal. Raises InvalidInput if there is none, or the file is something else."""
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # messages are private: readable by the user only
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


def lock_journal(path: Path) -> IO[str]:
    """Lock a journal until the process ends. The lock has a file of its own, because SQLite locks the journal's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.fdopen(
        os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii"
    )
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


def entry_values(entry: NewEntry) -> tuple[Any, ...]:
    """Return the values of an entry's columns."""
    (owner, conversation_id), given, size, recorded_at = entry
    message = json_text({**given, "content": clean_text(given["content"])})
    return owner, conversation_id.bytes, message, size, recorded_at


def insert_entries(connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert entries, each as the values of its columns."""
    for start in range(0, len(rows), INSERT_ROWS):
        part = rows[start : start + INSERT_ROWS]
        connection.execute(_insert(len(part)), [value for row in part for value in row])


@cache
def _insert(rows: int) -> str:
    return f"INSERT INTO entries ({COLUMNS}) VALUES {','.join(['(?,?,?,?,?)'] * rows)}"  # noqa: S608 - constants


def oldest_entries(
    connection: apsw.Connection, key: ConversationKey, limit: int, max_size: int
) -> tuple[list[Entry], bool]:
    """Return a conversation's oldest entries, at least one, up to a number and a size; and whether there are more."""
    found = connection.execute(
        "SELECT rid, message, size, recorded_at FROM entries"
        " WHERE owner_id = ? AND conversation_id = ? ORDER BY rid LIMIT ?",
        (key[0], key[1].bytes, limit + 1),
    )
    entries: list[Entry] = []
    for entry in map(Entry._make, found.fetchall()):
        max_size -= entry.size
        if len(entries) == limit or (entries and max_size < 0):
            return entries, True
        entries.append(entry)
    return entries, False


def waiting_conversations(connection: apsw.Connection) -> list[ConversationKey]:
    """Return the conversations that have entries."""
    found: list[Any] = connection.execute("SELECT DISTINCT owner_id, conversation_id FROM entries").fetchall()
    return [(owner, UUID(bytes=id_)) for owner, id_ in found]


def delete_entries(connection: apsw.Connection, rids: Sequence[int]) -> None:
    """Delete entries."""
    connection.execute(f"DELETE FROM entries WHERE rid IN ({','.join('?' * len(rids))})", rids)  # noqa: S608


def trim(connection: apsw.Connection, excess: int, kept: Iterable[int]) -> tuple[int, int]:
    """Delete the oldest entries but `kept`, until `excess` bytes are free. Return their number and size."""
    spared, rids, freed = set(kept), list[int](), 0
    for rid, size in connection.execute("SELECT rid, size FROM entries ORDER BY rid"):
        if freed >= excess:
            break
        if rid not in spared:
            rids.append(rid)
            freed += size
    for start in range(0, len(rids), 500):
        delete_entries(connection, rids[start : start + 500])
    return len(rids), freed


def newest_rid(connection: apsw.Connection) -> int:
    """Return the rid of the newest entry, delivered or not."""
    return cast("int", connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").get)


def has_entries_up_to(connection: apsw.Connection, rid: int) -> bool:
    """Return whether entries up to this one still wait."""
    return cast("int", connection.execute("SELECT EXISTS (SELECT 1 FROM entries WHERE rid <= ?)", (rid,)).get) > 0


def standing(connection: apsw.Connection) -> Standing:
    """Return what the journal holds."""
    found: Any = connection.execute("SELECT count(*), coalesce(sum(size), 0), (SELECT count(*) FROM dead) FROM entries")
    entries, size, dead = found.fetchone()
    return Standing(entries, size, dead, oldest_entry(connection))


def oldest_entry(connection: apsw.Connection) -> int | None:
    """Return when the oldest entry was recorded, in microseconds since 1970; None without entries."""
    return cast("int | None", connection.execute("SELECT recorded_at FROM entries ORDER BY rid LIMIT 1").get)


# --- dead letters --------------------------------------------------------------------------------------------


def mark_dead(connection: apsw.Connection, rid: int, error: str, reason: str) -> None:
    """Move an entry to the dead letters."""
    connection.execute(
        f"INSERT INTO dead ({MOVE}, died_at, error, reason)"  # noqa: S608 - constants
        f" SELECT {MOVE}, ?, ?, ? FROM entries WHERE rid = ?",
        (to_micros(now()), error, reason, rid),
    )
    delete_entries(connection, [rid])


def dead_letters(connection: apsw.Connection) -> list[Dead]:
    """Return the dead letters, in the order of their recording."""
    found: Any = connection.execute(
        "SELECT rid, owner_id, conversation_id, message, recorded_at, died_at, error, reason FROM dead ORDER BY rid"
    ).fetchall()
    return [Dead(rid, (owner, UUID(bytes=id_)), *rest) for rid, owner, id_, *rest in found]


def revive(connection: apsw.Connection, rids: Sequence[int] | None) -> int:
    """Move dead letters (None: all) back to their old places among the entries. Return their number.

    Their size becomes 0: a recorder that is running has not counted them again, and must not discount them.
    """
    where, values = _those(rids)
    back = "rid, owner_id, conversation_id, message, 0, recorded_at"
    with transaction(connection):
        connection.execute(f"INSERT INTO entries ({MOVE}) SELECT {back} FROM dead {where}", values)  # noqa: S608
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
