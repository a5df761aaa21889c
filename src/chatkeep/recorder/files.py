"""The files of a journal while a recorder uses it: the database, its write-ahead log, and the lock.

A damaged journal is moved aside as `….recovering`, with its log, and a number if there is one already. When all that
can be read of it is in the new file, it gets the name `….damaged-` and the time. A process that is killed in between
leaves it to the next one.
"""

import errno
import fcntl
import logging
import os
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, cast

import apsw

from chatkeep.errors import InvalidInput
from chatkeep.recorder.backlog import Backlog
from chatkeep.recorder.journal import (
    LOG_BYTES,
    NOT_A_JOURNAL,
    SCHEMA_VERSION,
    JournalDamaged,
    explained,
    has_marks,
    is_damage,
    keep_log,
    lock_journal,
    lock_path,
    newest_rid,
    open_journal,
)
from chatkeep.recorder.log import say
from chatkeep.recorder.salvage import log_pages, newer_entries, salvage
from chatkeep.values import now

logger = logging.getLogger(__name__)

FREE_PAGES = 256
"""Unused pages of the file from which on they are freed, and how many at a time."""

MOST_ASIDE = 9
"""Most files that wait to be read at a time."""


class JournalFiles:
    """The open files of one journal. The writer's thread calls everything but `sync` and `checkpoint`.

    Raises JournalInUse if another recorder has the file, InvalidInput if it is not a journal or may not be written,
    StoreUnavailable if the disk refuses it.
    """

    def __init__(self, path: Path, backlog: Backlog) -> None:
        self.path = path
        self._backlog = backlog
        self._mutex = threading.Lock()
        """Held while files are used by the syncer, opened or closed."""
        self._connection: apsw.Connection | None = None
        self._checkpointer: apsw.Connection | None = None
        self._log: int | None = None
        self._log_pages = self._version = 0
        self._is_proven = True
        """Whether the file was there before, or has been written since it was made."""
        self._damage = "a process was killed while it was being read"
        self._read: list[Path] = []
        """Files that were moved aside, and read."""
        self.salvaged = set[int]()
        """What was read of them, by its number, until all of it is written."""
        self._found = [0, 0, 0]
        """Messages and dead letters that were read, and messages that are lost."""
        self.lock = _locked(path)
        try:
            self._open_or_replace()
        except BaseException:
            self.lock.close()
            raise

    # --- opening and closing ------------------------------------------------------------------------------

    def _open_or_replace(self) -> None:
        with explained(self.path):
            for aside in self._places():
                if _log_of(aside).exists() and not aside.exists() and self.path.exists():
                    self.path.rename(aside)  # a process was killed between two renames
            try:
                self._open()
            except JournalDamaged as error:
                self._move_aside(error)
                self._open()

    def reopen(self) -> None:
        """Open the file, unless it is open."""
        if self._connection is None:
            with explained(self.path), self._mutex:
                self._open()

    def _open(self) -> None:
        connection = open_journal(self.path, create=True)
        try:
            checkpointer = open_journal(self.path)
            self._log = os.open(_log_of(self.path), os.O_RDWR | os.O_CREAT, 0o600)
        except BaseException:
            connection.close()
            raise
        connection.set_wal_hook(self._note_log)
        self._log_pages, self._version = 0, cast("int", connection.pragma("data_version"))
        self._connection, self._checkpointer = connection, checkpointer
        self._backlog.use(connection)

    def _note_log(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages, self._is_proven = pages, True
        return apsw.SQLITE_OK

    def close(self) -> None:
        """Close the files, and release the lock."""
        with self._mutex:
            if self._connection is not None:
                keep_log(self._connection, keep=False)
            self._close()
        self.lock.close()

    def _close(self) -> None:
        self._backlog.use(None)
        for connection in (self._checkpointer, self._connection):
            if connection is not None:
                with suppress(apsw.Error):  # closing may copy the log, which a full disk refuses
                    connection.close(force=True)
        if self._log is not None:
            os.close(self._log)
        self._connection = self._checkpointer = self._log = None

    # --- damage -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise JournalDamaged, or an error of apsw, if the file or its log is damaged."""
        if self._connection is None or self._checkpointer is None:
            return
        beyond = list(islice(log_pages(_log_of(self.path)), _copied(self._checkpointer), None))
        newest_of = {page.number: page.content for page in beyond}
        contents = (page.content for page in beyond)
        if any(newer_entries(contents, newest_rid(self._connection), lambda number: newest_of.get(number, b""))):
            raise JournalDamaged("its log has entries behind its end, as a write was cut off or overwritten")
        found = self._connection.execute("PRAGMA integrity_check(1)").get
        if found != "ok":
            raise JournalDamaged(str(found).splitlines()[0])

    def replace(self, error: Exception) -> bool:
        """Move a damaged file aside, and open another one that has what can be read of it.

        Returns whether there was something to be moved: a new file that cannot be used is no better when it is made
        again.
        """
        if not self._is_proven:
            return False
        with self._mutex:
            self._close()
            try:
                self._move_aside(error)
            except OSError as refused:
                say(
                    logger,
                    logging.ERROR,
                    "the journal %s is damaged, and cannot be moved: %s",
                    self.path,
                    refused.strerror,
                )
                return False
            with suppress(Exception):  # it is tried again with the next write, which says why it fails
                self._open()
        self.recover()
        return True

    def _move_aside(self, error: Exception) -> None:
        """Rename the file and its log."""
        self._damage, self._is_proven = str(error), False
        free = [place for place in self._places() if not place.exists() and not _log_of(place).exists()]
        if not free:
            raise FileExistsError(errno.EEXIST, f"{MOST_ASIDE} damaged files wait to be read")
        aside = free[0]
        with suppress(FileNotFoundError):
            _log_of(self.path).rename(_log_of(aside))  # first: see _open_or_replace
        self.path.rename(aside)
        self.path.with_name(f"{self.path.name}-shm").unlink(missing_ok=True)

    def _places(self) -> list[Path]:
        """Where damaged files are moved: to several if a process was killed, and its new file was damaged, too."""
        return [
            self.path.with_name(f"{self.path.name}.recovering{number}") for number in ("", *range(2, MOST_ASIDE + 1))
        ]

    def recover(self) -> None:
        """Read what can be read of files that were moved aside, and not read yet."""
        for aside in self._places():
            if not aside.exists() or aside in self._read:
                continue
            say(
                logger,
                logging.WARNING,
                "the journal %s is damaged, and is being recovered: %s",
                self.path,
                self._damage,
            )
            found = salvage(aside)
            lost = self._backlog.restore(found)
            self._read.append(aside)
            new = [len(found.entries.keys() - self.salvaged), len(found.dead.keys() - self.salvaged), lost]
            self._found = [before + more for before, more in zip(self._found, new, strict=True)]
            self.salvaged |= found.entries.keys() | found.dead.keys()

    def finish_recovery(self) -> None:
        """Give damaged files their last names, as the new one has what could be read."""
        if not self._read or not self._backlog.is_written:
            return
        read, found = self._read, self._found
        self._read, self._found, self.salvaged = [], [0, 0, 0], set()
        try:
            kept = [self._put_away(aside) for aside in read]
        except OSError as error:
            say(logger, logging.ERROR, "%s cannot be renamed, and will be read again: %s", read[0], error.strerror)
            return
        say(
            logger,
            logging.ERROR,
            "the journal %s was damaged: %s; %d messages and %d dead letters were recovered, %d messages are lost;"
            " delete %s, which holds what people said, if nobody needs it",
            *(self.path, self._damage, *found, ", ".join(map(str, kept))),
        )

    def _put_away(self, aside: Path) -> Path:
        """Rename a file that was moved aside; return its new name."""
        kept = self.path.with_name(f"{self.path.name}.damaged-{now():%Y%m%dT%H%M%S.%f}")
        with suppress(FileNotFoundError):
            _log_of(aside).rename(_log_of(kept))
        aside.rename(kept)
        return kept

    # --- a full disk --------------------------------------------------------------------------------------

    def start_over(self) -> None:
        """Replace the file, in which nothing waits, by an empty one. Raises the errors of opening it, and OSError.

        A full disk has no room for the log of emptying it, and the file itself may be what fills the disk.
        """
        with self._mutex:
            self._close()
            for path in (_log_of(self.path), self.path):  # in this order: a log would be copied to a new file
                path.unlink(missing_ok=True)
            self.path.with_name(f"{self.path.name}-shm").unlink(missing_ok=True)
            self._backlog.start_over()
            self._open()

    # --- housekeeping -------------------------------------------------------------------------------------

    def changed_by_others(self) -> bool:
        """Return whether another process has changed the file since the last call."""
        before = self._version
        if self._connection is not None:
            self._version = cast("int", self._connection.pragma("data_version"))
        return self._version != before

    def touch(self) -> None:
        """Write to the file without a change. Raises the errors of a file that cannot be written."""
        if self._connection is not None:
            self._connection.pragma("user_version", SCHEMA_VERSION)

    def shrink(self) -> None:
        """Truncate a log that has grown, and free some unused pages."""
        if self._connection is None or self._log is None:
            return
        if self._log_pages == 0 and os.fstat(self._log).st_size > LOG_BYTES:
            self.touch()  # with a write the log starts over
        if cast("int", self._connection.pragma("freelist_count")) > FREE_PAGES:
            self._connection.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()

    # --- the syncer's thread ------------------------------------------------------------------------------

    def sync(self) -> None:
        """Wait until the disk has the log."""
        with self._mutex:
            if self._log is not None:
                _fdatasync(self._log)

    def checkpoint(self, pages: int) -> None:
        """Copy the log to the file if it has as many pages."""
        with self._mutex:
            if self._checkpointer is None or self._log_pages < pages:
                return
            self._log_pages = 0
            # Busy if it reads the log at the moment of a commit; the next checkpoint makes up for it.
            with suppress(apsw.BusyError):
                self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)


def _copied(connection: apsw.Connection) -> int:
    """Copy the log to the file. Return how many pages it has; 0 if a full disk or another process prevents it."""
    try:
        return connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)[0]
    except apsw.Error as error:
        if is_damage(error):
            raise
        return 0


def _locked(path: Path) -> IO[str]:
    """Lock a journal. A file that no recorder has locked must be empty, or have the marks of a journal."""
    with explained(path):
        if path.exists() and path.stat().st_size and not lock_path(path).exists() and not has_marks(path):
            raise InvalidInput(NOT_A_JOURNAL, got=path)
    return lock_journal(path)


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _fdatasync(file: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone does not reach the disk there
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(file)
