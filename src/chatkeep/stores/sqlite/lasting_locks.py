"""Locks on a database's files that stay when this process closes one of the files.

SQLite's locks are POSIX locks: when a process closes a file, all its locks on that file are gone, whoever opened it;
`shutil.copytree` does that to each file that it copies. A lock of an open file description stays; Linux has them. Three
are held here beside SQLite's: the two that it takes once, when it opens a database, which keep other processes from
beginning a new log and from removing the one in use; and one for who writes, which the processes that use chatkeep
take in turn (docs/decisions/0001-one-sqlite-library.md).
"""

import fcntl
import os
import struct
import sys
import threading

type Identity = tuple[int, int]
"""Device and inode of a file."""

type Place = tuple[int, int]
"""Where in a file a lock is: start and length."""

DATABASE_LOCK: Place = (0x40000000 + 2, 510)
"""The lock on a database that each connection shares: SHARED_FIRST and SHARED_SIZE in SQLite's os.h."""

INDEX_LOCK: Place = (128, 1)
"""The lock on the index of the log that each connection shares: UNIX_SHM_DMS in SQLite's os_unix.c."""

WRITE_LOCK: Place = (1 << 40, 1)
"""The lock on that index of who writes, where SQLite has none."""

WHOLE_FILE: Place = (0, 0)

SUPPORTED = sys.platform == "linux" and struct.calcsize("P") == 8
"""Whether the system has such locks."""


def identity(path: str) -> Identity:
    """The file that a path names now. Raises OSError."""
    found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat
    return found.st_dev, found.st_ino


def flock(kind: int, place: Place) -> bytes:
    """A `struct flock` of 64-bit Linux."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, *place, 0)


TAKE_WRITE_LOCK, RELEASE_WRITE_LOCK = flock(fcntl.F_WRLCK, WRITE_LOCK), flock(fcntl.F_UNLCK, WRITE_LOCK)


class LockedFile:
    """A file that is opened here once for all stores of the process, for its locks: closing it drops SQLite's."""

    def __init__(self, path: str, place: Place) -> None:
        """Open the file, and share the lock at a place with whoever holds it."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._place = place
        self._writing = threading.Lock()
        self._users = 0

    def begin_write(self) -> bool:
        """Take the lock of who writes; False if somebody else has it."""
        if not self._writing.acquire(blocking=False):
            return False
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, TAKE_WRITE_LOCK)
        except BlockingIOError:
            self._writing.release()
            return False
        except OSError:
            self._writing.release()
            raise
        return True

    def end_write(self) -> None:
        """Release it."""
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, RELEASE_WRITE_LOCK)
        self._writing.release()

    def share(self) -> None:
        """Hold the lasting lock for one store more."""
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, flock(fcntl.F_RDLCK, self._place))
        self._users += 1

    def let_go(self) -> None:
        """Hold it for one less."""
        self._users -= 1
        if not self._users:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, flock(fcntl.F_UNLCK, self._place))

    def is_in_use(self) -> bool:
        """Whether a store of this process holds the lock, or anybody any other: another user of APSW here, perhaps."""
        found = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, flock(fcntl.F_WRLCK, WHOLE_FILE))
        return bool(self._users) or struct.unpack_from("h", found)[0] != fcntl.F_UNLCK

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


_files: dict[Identity, LockedFile] = {}
_mutex = threading.Lock()


def share(path: str, place: Place) -> LockedFile:
    """Hold a lasting lock on a file that SQLite has opened, until `let_go`. Raises OSError."""
    with _mutex:
        name = identity(path)
        if name not in _files:
            _files[name] = LockedFile(path, place)
        _files[name].share()
        return _files[name]


def let_go(file: LockedFile) -> None:
    """Hold a lasting lock no longer. After the connections, which are closed next, call `close_unused`."""
    with _mutex:
        file.let_go()


def close_unused() -> None:
    """Close the files that nobody uses any more. Others stay open until then: closing them would drop locks."""
    with _mutex:
        for name, file in list(_files.items()):
            if not file.is_in_use():
                file.close()
                del _files[name]


def _forget() -> None:
    """In a forked child, which has none of SQLite's locks: close its copies of the files."""
    global _mutex  # noqa: PLW0603 - another thread may have held it
    for file in _files.values():
        file.close()
    _files.clear()
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_forget)
