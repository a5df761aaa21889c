"""The files that `import` reads: their lines, and what they are if they are not JSON Lines."""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from chatkeep.cli.kinds import BOM, kind_of
from chatkeep.errors import InvalidInput

MAX_LINE_BYTES = 64 << 20
"""Longest line, in bytes: a conversation of 250,000 short messages.

An import holds the line and what it parses from it: three times as much with messages of a megabyte, 15 times with
those of a sentence, 50 times with those of a letter."""

SPOOL_BYTES = 4 << 20
"""Longer lines are collected in a temporary file: one that is too long is never in the memory."""

GZIP = b"\x1f\x8b"

type Report = Callable[[int | None, str], None]
"""Takes the number of a line that is not read, or None for what follows all that was, and the reason."""


def open_input(file: Path) -> tuple[str, int | None, BinaryIO]:
    """Return the name, the size in bytes if it is known, and the stream. Raises InvalidInput."""
    if str(file) == "-":
        if sys.stdin is None:
            raise InvalidInput("cannot read standard input: it is closed")
        return "standard input", None, sys.stdin.buffer
    try:
        if file.is_dir():
            raise InvalidInput(f"cannot read {file}: it is a folder; name the files in it")
        stream = file.open("rb")
        return file.name, file.stat().st_size if file.is_file() else None, stream
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None


def check_inputs(files: Sequence[Path]) -> None:
    """Raise InvalidInput for a file that is not there, before the first one is read. Opens none of the others."""
    for file in files:
        with suppress(OSError):  # opening it says the same
            if str(file) == "-" or (file.exists() and not file.is_dir()):
                continue
        open_input(file)


def read_lines(raw: BinaryIO, report: Report, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of JSON Lines, decompressed if they are gzipped, without a byte order mark.

    What cannot be read is reported and does not raise: a line above `max_bytes`, in whose place an empty one comes, so
    that the others keep their numbers; the rest of a damaged file; and a file of another kind, which has no lines.
    """
    lines = None
    try:
        stream = _unpacked(_buffered(raw))
        start = stream.peek(1)
        if kind := kind_of(start):
            report(None, f"this is not JSON Lines, a conversation in each line; it seems to be {kind}")
            return
        if start.startswith(BOM):
            stream.read(len(BOM))
        lines = _Lines(stream, report, max_bytes)
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        place = f"line {lines.number:,}" if lines else "its beginning"
        report(None, f"cannot be read further than {place}: {error}")


def _buffered(raw: BinaryIO) -> io.BufferedReader:
    return cast("io.BufferedReader", raw if hasattr(raw, "peek") else io.BufferedReader(cast("io.RawIOBase", raw)))


def _unpacked(stream: io.BufferedReader) -> io.BufferedReader:
    return cast("io.BufferedReader", gzip.open(stream)) if stream.peek(2)[:2] == GZIP else stream


class _Lines:
    """The lines of a stream, and their numbers."""

    def __init__(self, stream: io.BufferedReader, report: Report, max_bytes: int) -> None:
        self._stream = stream
        self._report = report
        self._max_bytes = max_bytes
        self.number = 0
        """Lines that were read."""

    def __iter__(self) -> Iterator[bytes]:
        whole = min(SPOOL_BYTES, self._max_bytes)
        while line := self._stream.readline(whole + 1):
            if len(line) > whole and not line.endswith(b"\n"):
                line = self._long(line)
            self.number += 1
            yield line

    def _long(self, start: bytes) -> bytes:
        """The line that begins with `start`; an empty one if it is too long."""
        size = 0
        with TemporaryFile() as spool:
            while start:
                size += len(start)
                if size <= self._max_bytes:
                    spool.write(start)
                if start.endswith(b"\n"):
                    break
                start = self._stream.readline(SPOOL_BYTES)
            if size <= self._max_bytes:
                spool.seek(0)
                return spool.read(size)
        self._report(
            self.number + 1,
            f"the line has {size:,} bytes, of which --max-line-bytes allows {self._max_bytes:,}",
        )
        return b"\n"
