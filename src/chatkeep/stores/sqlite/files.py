"""The files of an open database: whether they are still in their place, and the locks on them that last."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.sqlite import lasting_locks

logger = logging.getLogger(__name__)

MOVED = "a file of the database was removed or replaced; close the store and open it again, to use what is there now"

CHECK_SECONDS = 0.01
"""How long what was found about the files holds for writes: looking takes 9 µs, a thirteenth of a write's time. Who
removes a file loses what was stored a moment before, too."""


SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite puts beside a database that is in use, and leaves there when its process is killed."""


def is_file_of(database: Path, file: Path) -> bool:
    """Whether `file` is a database, by whichever name, or one of the files that SQLite puts beside it."""
    database, file = Path(os.path.realpath(database)), Path(os.path.realpath(file))
    own = database, *(database.with_name(f"{database.name}{end}") for end in SIDE_FILES)
    return file in own or any(_is_same(each, file) for each in own)


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False


def create(path: Path) -> None:
    """Create an empty database that its user alone may read, unless there is one; SQLite gives its log the same mode.

    A file that is there is not opened: closing it would drop SQLite's locks. If it cannot be created, SQLite says why.
    """
    with suppress(OSError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


class OpenFiles:
    """The files of one database, from its first connection to its last."""

    def __init__(self, path: Path) -> None:
        """Take the path of the database, which may not be there yet."""
        self._database = str(path)
        self._paths: tuple[str, ...] = ()
        self._opened: list[lasting_locks.Identity] = []
        self._checked = 0.0
        self._locked: list[lasting_locks.LockedFile] = []
        self._mutex = threading.Lock()

    def opened(self, database: str) -> None:
        """Take the files that a connection has opened, by the path of the database without links, and lock them.

        Raises StoreUnavailable if they are not those that the first one opened.
        """
        with self._mutex:
            if not self._opened:
                self._paths = self._database, f"{database}-wal", f"{database}-shm"
                self._lock(database, f"{database}-shm")
                self._opened = self._found()
        self.check()

    def check(self) -> None:
        """Raise StoreUnavailable if one of the files was removed or replaced: what is written is lost with it."""
        if not self._opened or self._found() != self._opened:
            raise StoreUnavailable(MOVED, got=self._database)

    def were_moved(self) -> bool:
        """Whether a file that was open is no longer in its place: why an operation failed."""
        return bool(self._opened) and self._found() != self._opened

    def check_written(self) -> None:
        """Raise it after a commit, unless all was well CHECK_SECONDS ago."""
        moment = time.monotonic()
        if moment - self._checked > CHECK_SECONDS:
            self.check()
            self._checked = moment

    def begin_write(self) -> None:
        """Take the lock of who writes. Raises BusyError if somebody else has it."""
        if self._locked and not self._locked[-1].begin_write():
            raise apsw.BusyError("database is locked")

    def end_write(self) -> None:
        """Release it."""
        if self._locked:
            self._locked[-1].end_write()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of who writes. Raises BusyError if somebody else has it."""
        self.begin_write()
        try:
            yield
        finally:
            self.end_write()

    def let_go(self) -> None:
        """Release the locks, so that the last connection that closes can remove the log."""
        while self._locked:
            lasting_locks.let_go(self._locked.pop())

    def closed(self) -> None:
        """The last connection was closed."""
        if lasting_locks.SUPPORTED:
            lasting_locks.close_unused()

    def _found(self) -> list[lasting_locks.Identity]:
        try:
            return [lasting_locks.identity(path) for path in self._paths]
        except OSError:
            return []

    def _lock(self, database: str, index: str) -> None:
        if lasting_locks.SUPPORTED:
            try:
                self._locked.append(lasting_locks.share(database, lasting_locks.DATABASE_LOCK))
                self._locked.append(lasting_locks.share(index, lasting_locks.INDEX_LOCK))
            except OSError as error:
                self.let_go()
                logger.warning("who copies %s in this process drops its locks: %s", self._database, error)
