"""A file that takes its name when it is complete and on the disk."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from tempfile import NamedTemporaryFile
from typing import BinaryIO, cast

from chatkeep.errors import InvalidInput


@contextmanager
def replacing(path: Path, *, keep_mode: bool = False) -> Iterator[BinaryIO]:
    """Write a file beside `path` that replaces it when the block ends, or is removed if the block raises.

    Its user alone may read it, or with keep_mode who may read the file that it replaces. If `path` is a symbolic link,
    the file that it leads to is replaced. Raises InvalidInput if the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with _beside(target) as part:
            yield part
            part.flush()
            if keep_mode and target.exists():
                os.fchmod(part.fileno(), S_IMODE(target.stat().st_mode))
            os.fsync(part.fileno())
            Path(part.name).replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _beside(target: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of `target`, that is removed if the block raises."""
    # The name is its own, so that two who write the same file at once do not mix what they write.
    with NamedTemporaryFile("wb", dir=target.parent, prefix=f"{target.name}.", suffix=".part", delete=False) as part:
        try:
            yield cast("BinaryIO", part)
        except BaseException:
            with suppress(OSError):
                Path(part.name).unlink()
            raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, too, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)
