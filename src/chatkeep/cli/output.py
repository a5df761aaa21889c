"""Where `export` writes: standard output, a file that replaces another one, or a pipe or device as it is."""

import errno
import gzip
import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import typer

from chatkeep.cli.terminal import print_error
from chatkeep.errors import InvalidInput
from chatkeep.store import file_path
from chatkeep.stores.replacing import replacing

STANDARD_OUTPUT = 1

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of what standard output leads to. A store and a file that is opened raise their own, or name the file."""

NO_READER = 128 + signal.SIGPIPE
"""The exit code when whoever reads has gone: that of a program that SIGPIPE ends."""


def standard_output() -> BinaryIO:
    """The stream of bytes. Raises InvalidInput if whoever started the command closed it."""
    if sys.stdout is None:
        raise InvalidInput("standard output is closed")
    return sys.stdout.buffer


@contextmanager
def printing() -> Iterator[None]:
    """End the block quietly if nobody reads standard output any more, and with a sentence if it cannot be written."""
    try:
        yield
    except BrokenPipeError:
        _drop(sys.stdout)
        raise typer.Exit(NO_READER) from None
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        _drop(sys.stdout)
        print_error(f"cannot write standard output: {error.strerror}")
        raise typer.Exit(1) from None


def refuse_own_file(url: str, file: Path | None) -> None:
    """Print an error and exit if the store at `url` is in `file`, which would be replaced."""
    if file is None or not url.startswith("sqlite:"):
        return
    from chatkeep.stores.sqlite.files import is_file_of

    if is_file_of(Path(file_path(url)).expanduser(), file):
        print_error(f"{file} is the store itself; export to another file")
        raise typer.Exit(1)


@contextmanager
def opened_target(file: Path | None) -> Iterator[BinaryIO]:
    """The stream to export to: compressed if the name ends with .gz. Prints why it cannot be written, and exits.

    A file has its name when the block has ended, unless it raised. None and `-` are standard output.
    """
    try:
        with _opened(file) as raw, _packed(raw, file) as stream:
            try:
                yield stream
                stream.flush()
            except BaseException:
                _drop(raw)
                raise
    except InvalidInput as error:
        print_error(error)
        raise typer.Exit(1) from None


def _opened(file: Path | None) -> AbstractContextManager[BinaryIO]:
    descriptor = STANDARD_OUTPUT if file is None else _descriptor(str(file))
    if descriptor is not None:
        return _direct(descriptor, "standard output" if descriptor == STANDARD_OUTPUT else str(file))
    assert file is not None  # noqa: S101 - it would be standard output
    if _is_pipe_or_device(file):
        return _direct(file, str(file))
    return replacing(file, keep_mode=True)


def _is_pipe_or_device(file: Path) -> bool:
    try:
        mode = file.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _descriptor(name: str) -> int | None:
    """The number of an open file, if the name means one: opened by its name it would be written from its beginning."""
    if name in {"-", "/dev/stdout"}:
        return STANDARD_OUTPUT
    found = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name)
    return int(found[1]) if found else None


@contextmanager
def _direct(target: Path | int, name: str) -> Iterator[BinaryIO]:
    """Write to what is there. Exits quietly if it is a pipe that nobody reads any more."""
    try:
        with _stream(target) as stream:
            yield stream
    except BrokenPipeError:
        raise typer.Exit(NO_READER) from None
    except OSError as error:
        raise InvalidInput(f"cannot write {name}: {error.strerror or error}") from None


def _stream(target: Path | int) -> AbstractContextManager[BinaryIO]:
    if target == STANDARD_OUTPUT:
        return nullcontext(standard_output())
    return cast("BinaryIO", open(target, "wb", closefd=not isinstance(target, int)))


def _packed(raw: BinaryIO, file: Path | None) -> AbstractContextManager[BinaryIO]:
    if file is None or file.suffix != ".gz":
        return nullcontext(raw)
    # Without a timestamp, so that the same export is the same file.
    return cast("AbstractContextManager[BinaryIO]", gzip.GzipFile("", "wb", fileobj=raw, mtime=0))


def _drop(stream: IO[Any]) -> None:
    """Let what is still written to a stream vanish: closing it would fail as well, or wait for the pipe's reader."""
    with suppress(OSError, ValueError, AttributeError):  # the last if it was closed from the beginning
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
