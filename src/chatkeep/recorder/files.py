"""The files of a journal while a recorder uses it: the database, its write-ahead log, and the lock.

A damaged journal is moved aside as `….recovering`, with its log. When all that can be read of it is in the new file, it
gets the name `….damaged-` and the time. A process that is killed in between leaves it to the next one.
"""

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
    keep_log,
    lock_journal,
    lock_path,
    newest_rid,
    open_journal,
)
from chatkeep.recorder.log import say
from chatkeep.recorder.salvage import Salvaged, log_pages, newer_entries, salvage
from chatkeep.values import now

logger = logging.getLogger(__name__)

FREE_PAGES = 256
"""Unused pages of the file from which on they are freed, and how many at a time."""


class JournalFiles:
    """The open files of one journal. The writer's thread calls everything but `sync` and `checkpoint`.

    Raises JournalInUse if another recorder has the file, InvalidInput if it is not a journal or may not be written,
    StoreUnavailable if the disk refuses it.
    """

    def __init__(self, path: Path, backlog: Backlog) -> None:
        self.path = path
        self._backlog = backlog
        self._aside = path.with_name(f"{path.name}.recovering")
        self._mutex = threading.Lock()
        """Held while files are used by the syncer, opened or closed."""
        self._connection: apsw.Connection | None = None
        self._checkpointer: apsw.Connection | None = None
        self._log: int | None = None
        self._log_pages = self._version = 0
        self._is_proven = True
        """Whether the file was there before, or has been written since it was made."""
        self._damage = "a process was killed while it was being read"
        self._salvaged: Salvaged | None = None
        """What was read of the damaged file, until all of it is written."""
        self._lost = 0
        self.lock = _locked(path)
        try:
            self._open_or_replace()
        except BaseException:
            self.lock.close()
            raise

    # --- opening and closing ------------------------------------------------------------------------------

    def _open_or_replace(self) -> None:
        with explained(self.path):
            if _log_of(self._aside).exists() and not self._aside.exists() and self.path.exists():
                self.path.rename(self._aside)  # a process was killed between two renames
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
        with suppress(apsw.BusyError):  # another process looks at the journal
            frames, _ = self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            beyond = [page.content for page in islice(log_pages(_log_of(self.path)), frames, None)]
            if any(newer_entries(beyond, newest_rid(self._connection), lambda _number: b"")):
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
        self._damage, self._is_proven, self._salvaged = str(error), False, None
        if self._aside.exists():
            self._put_away()
        with suppress(FileNotFoundError):
            _log_of(self.path).rename(_log_of(self._aside))  # first: see _open_or_replace
        self.path.rename(self._aside)
        self.path.with_name(f"{self.path.name}-shm").unlink(missing_ok=True)

    def recover(self) -> None:
        """Read what can be read of the file that was moved aside, if there is one."""
        if self._aside.exists() and self._salvaged is None:
            say(
                logger,
                logging.WARNING,
                "the journal %s is damaged, and is being recovered: %s",
                self.path,
                self._damage,
            )
            self._salvaged = salvage(self._aside)
            self._lost = self._backlog.restore(self._salvaged)

    def finish_recovery(self) -> None:
        """Give the damaged file its last name, as the new one has what could be read."""
        if (found := self._salvaged) is None or not self._backlog.is_written:
            return
        self._salvaged = None
        try:
            kept = self._put_away()
        except OSError as error:
            say(logger, logging.ERROR, "%s cannot be renamed, and will be read again: %s", self._aside, error.strerror)
            return
        say(
            logger,
            logging.ERROR,
            "the journal %s was damaged: %s; %d messages and %d dead letters were recovered, %d messages are lost;"
            " delete %s, which holds what people said, if nobody needs it",
            *(self.path, self._damage, len(found.entries), len(found.dead), self._lost, kept),
        )

    def _put_away(self) -> Path:
        """Rename the file that was moved aside; return its new name."""
        kept = self.path.with_name(f"{self.path.name}.damaged-{now():%Y%m%dT%H%M%S.%f}")
        with suppress(FileNotFoundError):
            _log_of(self._aside).rename(_log_of(kept))
        self._aside.rename(kept)
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
