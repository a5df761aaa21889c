"""Opens files that are to be read as documents, and hashes them."""

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from chatkeep.errors import InvalidInput
from chatkeep.reading.chunking import TARGET_CHARS, rule_of


def open_file(file: Path) -> BufferedReader:
    """Open a file. Raises InvalidInput if there is none, or what is there is no file, such as a folder or a pipe."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is none that a file can have"
        raise InvalidInput(f"it cannot be opened: {reason}") from error
    opened = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if opened is None:
        os.close(descriptor)
        raise InvalidInput("it is no file, but a folder, a pipe or a device")
    return opened


def hash_of(file: Path, *, target: int = TARGET_CHARS) -> str:
    """Return the hash of a file and of how it is cut (`NewDocument.sha256`), without reading it as a document.

    Blocks, a second for a gigabyte. Raises InvalidInput as reading does if it cannot be opened.
    """
    with open_file(file) as opened:
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(_rule(target))
    return digest.hexdigest()


def hash_of_content(content: bytes, target: int) -> str:
    """Return the same hash of what was read from a file."""
    digest = hashlib.sha256(content)
    digest.update(_rule(target))
    return digest.hexdigest()


def _rule(target: int) -> bytes:
    return b"\0" + rule_of(target).encode()
