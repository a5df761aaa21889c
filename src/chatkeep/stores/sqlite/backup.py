"""A copy of a SQLite store in use, by SQLite's online backup, and the check of such a copy."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import apsw

from chatkeep.errors import InvalidInput
from chatkeep.store import Backup
from chatkeep.stores.replacing import replacing
from chatkeep.stores.sqlite import schema
from chatkeep.stores.sqlite.database import MEANINGS
from chatkeep.stores.sqlite.files import SIDE_FILES, is_file_of

STEP_PAGES = 256
"""Pages that are copied between two looks at whether to go on: a mebibyte, some milliseconds."""

SYNC_PAGES = 64 * STEP_PAGES
"""Pages after which the copy is synced: with gigabytes of it left to be written at its end, a file system such as
ext4 would have the commits of others wait for all of them."""

CHECK_STEPS = 1_000_000
"""Steps of SQLite's virtual machine after which a check asks whether to go on."""

COUNTS = "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM conversations), (SELECT count(*) FROM messages)"

OF_SOURCE = (apsw.BusyError, apsw.CorruptError, apsw.InterruptError, apsw.NotADBError)
WHILE_READING = {apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_SHORT_READ}
"""Errors in a copy that are of the source; all others are of the target."""


def copy(
    source: apsw.Connection, own: Path, path: Path, *, verify: bool, progress: Callable[[int, int], None]
) -> Backup:
    """Copy the database of `source`, whose file is `own` and which is in a transaction, to `path`.

    The transaction is ended when all is copied. Raises InterruptError soon after `source` is interrupted.
    """
    target = Path(os.path.realpath(path))
    with replacing(path) as part:
        _check_target(own, target)
        found = _contents(source)
        _copy_to(source, part.name, part.fileno(), progress)
        source.execute("COMMIT")  # others can empty the log again
        if verify:
            _drop_cached(part.fileno())
            _compare(check(Path(part.name), lambda: source.is_interrupted), found)
        _check_target(own, target)  # somebody may have opened it meanwhile
        _check_wanted(source)
    return found


def check(path: Path, stopped: Callable[[], bool] = lambda: False) -> Backup:
    """Read the whole copy `path`, and return what it holds. Raises InvalidInput if it is damaged, or no such copy."""
    _check_alone(path)
    connection = None
    try:
        # Immutable: nothing is locked, nor are files made beside it.
        address = f"file:{quote(str(path.absolute()))}?immutable=1"
        connection = apsw.Connection(address, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        connection.set_progress_handler(stopped, CHECK_STEPS)
        return _check(connection, path)
    except apsw.CantOpenError:
        raise InvalidInput(f"cannot read {path}: is it there, and may it be read?") from None
    except apsw.NotADBError:
        raise InvalidInput(f"{path} is not a SQLite database") from None
    except apsw.SQLError as error:
        raise InvalidInput(f"{path} is a SQLite database, but not of chatkeep: {error}") from None
    except (apsw.CorruptError, apsw.IOError) as error:
        raise InvalidInput(f"{path} is damaged: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def _check(connection: apsw.Connection, path: Path) -> Backup:
    """Have SQLite check tables, indexes, the full-text index among them, and references."""
    report = connection.execute("PRAGMA integrity_check(1)").get
    if report != "ok":
        raise InvalidInput(f"{path} is damaged: {report}")
    if lost := connection.execute("PRAGMA foreign_key_check").fetchone():
        raise InvalidInput(f"{path} is damaged: row {lost[1]} of {lost[0]} refers to what is not there")
    return _contents(connection)


def _contents(connection: apsw.Connection) -> Backup:
    (counts,) = connection.execute(COUNTS).fetchall()
    return Backup(schema.read_schema(connection).revision or "none", *cast("Any", counts))


def _compare(copied: Backup, found: Backup) -> None:
    if copied != found:
        raise InvalidInput("the copy does not have what the store has, and was removed", got=f"{copied}, not {found}")


def _check_target(own: Path, target: Path) -> None:
    """Raise InvalidInput if a copy at `target` would overwrite files of a store, or be no file."""
    if is_file_of(own, target):
        raise InvalidInput("a store cannot be copied over its own files", got=target)
    if target.exists() and not target.is_file() and not target.is_dir():
        raise InvalidInput("a copy is a file; `chatkeep export` can write to a pipe or a device", got=target)
    _check_alone(target)


def _check_alone(path: Path) -> None:
    """Raise InvalidInput if SQLite has put files beside a database: it would apply them to a copy with this name."""
    for end in SIDE_FILES:
        if (left := path.with_name(f"{path.name}{end}")).exists():
            raise InvalidInput(
                f"{path} is in use as a database, or was when its process was killed: there is {left.name}"
            )


def _copy_to(source: apsw.Connection, name: str, descriptor: int, progress: Callable[[int, int], None]) -> None:
    """Copy the snapshot that the transaction of `source` holds.

    Without that transaction SQLite begins again whenever another process has written: 1,676 times in 25 s beside one
    constant writer, and it ended when the writer did. With it the same 240 MB take 1.5 to 3 s. Others append to the
    log meanwhile; it can be emptied only afterwards.
    """
    target = apsw.Connection(name)
    try:
        target.execute("PRAGMA synchronous = OFF")  # it is synced here
        target.execute("PRAGMA journal_mode = OFF")  # if it cannot be completed it is removed
        page: Any = source.pragma("page_size")
        with target.backup("main", source, "main") as copying:
            while not copying.done:
                _check_wanted(source)
                copying.step(STEP_PAGES)
                done, size = copying.page_count - copying.remaining, copying.page_count
                if done % SYNC_PAGES == 0:
                    os.fsync(descriptor)
                progress(done * page, size * page)
        # Otherwise it would be opened with a log, as the store is, and that needs a folder that can be written.
        target.execute("PRAGMA journal_mode = DELETE")
    except apsw.Error as error:
        if isinstance(error, OF_SOURCE) or getattr(error, "extendedresult", 0) in WHILE_READING:
            raise
        reason = next((text for kind, text in MEANINGS if isinstance(error, kind)), str(error))
        raise InvalidInput(f"the copy cannot be written: {reason}", got=name) from error
    finally:
        target.close()


def _check_wanted(source: apsw.Connection) -> None:
    """Raise InterruptError if `source` was interrupted and has executed nothing since, which would forget it."""
    if source.is_interrupted:
        raise apsw.InterruptError("interrupted")


def _drop_cached(descriptor: int) -> None:
    """Have what is read next come from the disk, where that can be asked for."""
    os.fsync(descriptor)
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
