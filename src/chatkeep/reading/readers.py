"""Reads files as documents: what they are, and their chunks. In child processes, with limits on time and memory.

Files are written by others, and some of them to do harm. So they are opened, decoded, converted and cut by children
that have no secrets, no network, and may be killed; `child` is what runs there.

    readers = Readers()
    document = await readers.read(Path("/tmp/upload-1"), "guide/install.md")
    await store.documents.store_document(owner, project_id, document.new, document.chunks)
    await readers.aclose()
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chatkeep.documents import MAX_CHUNKS, NewChunk, NewDocument, document_path
from chatkeep.errors import InvalidInput
from chatkeep.reading.chunking import TARGET_CHARS
from chatkeep.reading.frames import Request
from chatkeep.reading.process import ReadingProcess
from chatkeep.values import clean_text

CLOSED = "the readers of documents are closed"


@dataclass(frozen=True)
class ReadLimits:
    """What reading a file may take."""

    children: int = 2
    """Most processes that read, one file each at a time."""
    seconds: float = 60.0
    """Longest time for a file, from when a process begins with it."""
    memory: int = 1 << 30
    """Most bytes of memory for a file, beyond what the process has anyway. On Linux."""
    idle: float = 60.0
    """Seconds after which a process that has nothing to read ends."""
    file_bytes: int = 20 << 20
    """Most bytes of a file."""
    text_chars: int = 20 << 20
    """Most characters of its text."""
    chunks: int = MAX_CHUNKS
    """Most chunks of its text."""
    target: int = TARGET_CHARS
    """Length of the chunks of a long section, in characters."""


class ReadDocument(NamedTuple):
    """A file that was read."""

    new: NewDocument
    chunks: list[NewChunk]


class Readers:
    """Reads files in child processes, which are started when needed. Use it in one event loop."""

    def __init__(self, limits: ReadLimits | None = None) -> None:
        """Take the limits. Nothing is started before there is something to read."""
        self.limits = limits or ReadLimits()
        self._free = asyncio.Semaphore(self.limits.children)
        self._threads = ThreadPoolExecutor(self.limits.children, "chatkeep-reader")
        self._idle: dict[ReadingProcess, asyncio.TimerHandle] = {}
        self._busy: set[ReadingProcess] = set()
        self._works: set[asyncio.Future[Any]] = set()
        self._is_closed = False

    async def read(self, file: Path, file_path: str) -> ReadDocument:
        """Read a file as the document `file_path`: that is a label, whose suffix tells what kind of file it is.

        Raises InvalidInput, with the label, for every file that cannot be read, RuntimeError after `aclose`. Who is
        cancelled leaves nothing behind.
        """
        request = self._request(file, _valid_path(file_path))
        await self._free.acquire()
        if self._is_closed:
            self._free.release()
            raise RuntimeError(CLOSED)
        process = self._take()
        work = self._run(lambda: _read(process, request), lambda: self._give_back(process))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():  # else the process is the next caller's
                process.kill()
            raise
        except InvalidInput:
            if self._is_closed:
                raise RuntimeError(CLOSED) from None
            raise

    async def aclose(self) -> None:
        """End all processes; whatever is being read raises an error. Idempotent."""
        self._is_closed = True
        for process in self._busy:
            process.kill()
        while self._idle:
            self._end(next(iter(self._idle)))
        while self._works:
            await asyncio.wait(self._works)
        self._threads.shutdown(wait=False)

    def _request(self, file: Path, file_path: str) -> Request:
        limits = self.limits
        return Request(
            file=os.fsencode(file.absolute()).decode("latin-1"),
            file_path=file_path,
            file_bytes=limits.file_bytes,
            text_chars=limits.text_chars,
            chunks=limits.chunks,
            target=limits.target,
            seconds=limits.seconds,
            memory=limits.memory,
        )

    # --- processes --------------------------------------------------------------------------------------------

    def _take(self) -> ReadingProcess:
        """Return the process that was used last, which the system has still in its memory, or a new one."""
        process = ReadingProcess()
        if self._idle:
            process, expiry = self._idle.popitem()
            expiry.cancel()
        self._busy.add(process)
        return process

    def _give_back(self, process: ReadingProcess) -> None:
        self._busy.discard(process)
        self._free.release()
        if process.is_killed or self._is_closed:
            self._run(process.end, lambda: None)
        elif process.pid:
            self._idle[process] = asyncio.get_running_loop().call_later(self.limits.idle, self._end, process)

    def _end(self, process: ReadingProcess) -> None:
        self._idle.pop(process).cancel()
        self._run(process.end, lambda: None)

    def _run[T](self, function: Callable[[], T], then: Callable[[], None]) -> "asyncio.Future[T]":
        """Run a function in a thread to its end, and `then` in the loop, whether anybody waits for it or not."""
        work = asyncio.wrap_future(self._threads.submit(function))

        def done(work: "asyncio.Future[T]") -> None:
            self._works.discard(work)
            if not work.cancelled():
                work.exception()  # it was looked at
            then()

        self._works.add(work)
        work.add_done_callback(done)
        return work


def _valid_path(file_path: str) -> str:
    try:
        return document_path(clean_text(file_path))
    except InvalidInput as error:
        raise InvalidInput(f"the path of a document: {error.detail}", got=file_path) from None


def _read(process: ReadingProcess, request: Request) -> ReadDocument:
    try:
        read, chunks = process.read(request)
    except InvalidInput as error:
        raise InvalidInput(error.detail, got=request.file_path) from error
    new = NewDocument(
        file_path=request.file_path,
        title=read.title,
        media_type=read.media_type,
        bytes=read.bytes,
        sha256=read.sha256,
    )
    return ReadDocument(new, chunks)
