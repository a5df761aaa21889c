"""A process that reads files, from the side of its parent: started when needed, killed when it takes too long.

Its methods block; a thread calls them, one at a time. Only `kill` may be called meanwhile.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from selectors import EVENT_READ, PollSelector
from typing import IO, cast

from chatkeep.documents import NewChunk
from chatkeep.errors import InvalidInput
from chatkeep.reading.frames import ANSWER, LENGTHS, MAX_FRAME_BYTES, Read, Refused, Request, chunks_of, frame

logger = logging.getLogger(__name__)

START_SECONDS = 30.0
"""How long a child may take until it can read: it imports its libraries, and the machine may be busy."""

ATTEMPTS = 2
"""A file whose child ends unexpectedly is read once more: perhaps somebody else killed it."""

COMMAND = (sys.executable, "-P", "-m", "chatkeep.reading.child")

STOPPED = "reading was stopped"

_READ_BYTES = 1 << 16

_KEPT_BYTES = 2_000
"""So much of what a child says at a time is logged."""


class _Ended(Exception):
    """The child has ended, or told what cannot be true."""


class ReadingProcess:
    """Reads files in a child process, which it starts, and replaces when it must."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._selector = PollSelector()
        self._lock = threading.Lock()
        self._is_killed = False
        self._said = b""

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return self._process.pid if self._process else None

    @property
    def is_killed(self) -> bool:
        """Whether it reads nothing more."""
        return self._is_killed

    def kill(self) -> None:
        """End what is being read, at once, and read nothing more. Does not wait."""
        with self._lock:
            self._is_killed = True
            if self._process:
                self._process.kill()

    def end(self) -> None:
        """End the process, and wait for that."""
        with self._lock:
            process, self._process = self._process, None
        if process:
            process.kill()
            self._selector.close()
            with process:  # closes the pipes, and waits
                pass

    def read(self, request: Request) -> tuple[Read, list[NewChunk]]:
        """Return what a file is, and its chunks. Raises InvalidInput, or RuntimeError if no child can be started."""
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                answer, chunks = self._ask(request)
            except _Ended as error:
                self.end()
                reason = str(error)
                if self._is_killed:
                    break
            except BaseException:
                self.end()
                raise
            else:
                return _accepted(answer), chunks
        raise InvalidInput(f"{reason}; it may be damaged, or need too much memory: save it again, or divide it")

    def _ask(self, request: Request) -> tuple[Read | Refused, list[NewChunk]]:
        if not self._process:
            self._start()
        deadline = time.monotonic() + request.seconds
        try:
            self._send(request)
            answer = ANSWER.validate_json(self._frame(deadline)[0])
            chunks = self._chunks(answer, request, deadline) if isinstance(answer, Read) else []
        except TimeoutError as error:
            raise InvalidInput(f"reading it takes more than {request.seconds:g} seconds: divide it") from error
        except ValueError as error:
            logger.warning("a process that reads files told what it may not: %s", type(error).__name__)
            raise _Ended("its reader told what cannot be true") from error
        if answer.is_last:
            self.end()
        return answer, chunks

    def _chunks(self, answer: Read, request: Request, deadline: float) -> list[NewChunk]:
        """Receive the chunks of a document. Raises ValueError if they are other, or more, than what was told."""
        if answer.chunks > request.chunks or answer.chars > request.text_chars:
            raise ValueError("the document is too large")
        chunks: list[NewChunk] = []
        chars = 0
        while len(chunks) < answer.chunks:
            chunks += chunks_of(*self._frame(deadline), chars)
            chars = chunks[-1].start + len(chunks[-1].text)
        if (len(chunks), chars) != (answer.chunks, answer.chars):
            raise ValueError("the chunks are not those that were told of")
        return chunks

    # --- the process and its pipes ----------------------------------------------------------------------------

    def _start(self) -> None:
        """Start a child, and wait until it is ready. Raises RuntimeError if it cannot be."""
        process = subprocess.Popen(  # noqa: S603 - nothing in the command was given by anybody
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # nothing that is secret
            start_new_session=True,
        )
        self._selector, self._said = PollSelector(), b""
        for pipe in (process.stdout, process.stderr):
            self._selector.register(cast("IO[bytes]", pipe), EVENT_READ)
        with self._lock:
            self._process = process
            if self._is_killed:
                process.kill()
        try:
            self._frame(time.monotonic() + START_SECONDS)
        except (TimeoutError, _Ended) as error:
            if self._is_killed or (process.poll() or 0) < 0:  # it was not its own fault
                raise _Ended(str(error)) from error
            said = self._said.decode(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"the process that reads documents does not start: {said or error}") from error

    def _send(self, request: Request) -> None:
        process = self._process
        if not process or not process.stdin:
            raise _Ended(STOPPED)
        try:
            process.stdin.write(frame(request.model_dump_json().encode()))
        except OSError as error:
            raise _Ended(self._how_it_ended(process)) from error

    def _frame(self, deadline: float) -> tuple[bytes, bytes]:
        """Receive a frame: its JSON, and the rest. Raises TimeoutError, _Ended, or ValueError if it is too large."""
        size, json_size = LENGTHS.unpack(self._receive(LENGTHS.size, deadline))
        if not json_size <= size <= MAX_FRAME_BYTES:
            raise ValueError("the frame is too large")
        received = self._receive(size, deadline)
        return received[:json_size], received[json_size:]

    def _receive(self, size: int, deadline: float) -> bytes:
        process = self._process
        if not process or not process.stdout:
            raise _Ended(STOPPED)
        received = bytearray()
        while len(received) < size:
            for pipe in self._ready(deadline):
                if pipe is not process.stdout:
                    self._log(cast("IO[bytes]", pipe))
                elif piece := process.stdout.read(min(size - len(received), _READ_BYTES)):
                    received += piece
                else:
                    raise _Ended(self._how_it_ended(process))
        return bytes(received)

    def _ready(self, deadline: float) -> Sequence[object]:
        left = deadline - time.monotonic()
        ready = [key.fileobj for key, _ in self._selector.select(left)] if left > 0 else []
        if not ready:
            raise TimeoutError("it takes too long")
        return ready

    def _log(self, errors: IO[bytes]) -> None:
        """Log what the child says, for those who look for the reason of a failure. It may quote the file."""
        said = errors.read(_READ_BYTES)
        if not said:
            self._selector.unregister(errors)
        self._said = (self._said + said)[-_KEPT_BYTES:]
        logger.debug("a process that reads files: %s", said[-_KEPT_BYTES:].decode(errors="replace"))

    def _how_it_ended(self, process: subprocess.Popen[bytes]) -> str:
        process.kill()  # it may have closed its pipe only
        code = process.wait()
        for key, _ in self._selector.select(0):  # what it said at last may have come after the end of its answers
            if key.fileobj is not process.stdout:
                self._log(cast("IO[bytes]", key.fileobj))
        return f"its reader ended unexpectedly ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def _accepted(answer: Read | Refused) -> Read:
    if isinstance(answer, Refused):
        raise InvalidInput(answer.detail)
    return answer
