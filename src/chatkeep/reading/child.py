"""The process that reads files: `python -m chatkeep.reading.child`. `chatkeep.reading.readers` starts it.

It reads what others wrote, with libraries that were not made for hostile files. So it has nothing to lose: no secrets
in its environment, no network, no files to write, and limits on memory and time. Its parent checks what it tells.
"""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chatkeep.errors import InvalidInput
from chatkeep.reading.chunking import Chunked, chunk_markdown, chunk_text, short_title
from chatkeep.reading.converting import check_docx, convert, load_converter
from chatkeep.reading.frames import LENGTHS, Read, Refused, Request, chunk_frames, frame
from chatkeep.reading.kinds import CONVERTED, MAGIC_BYTES, Kind, kind_of
from chatkeep.reading.source import hash_of_content, open_file

NICENESS = 5
"""Servers on the same machine come first."""

GRACE_SECONDS = 5
"""So long after its time the process ends itself, should its parent be gone."""

LARGE_BYTES = 4 << 20
"""After a larger file the process ends: the memory that it keeps would be missing for the next one."""

_FORBIDDEN = frozenset(
    [
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
    ]
)
"""What Python tells before it does it. A second defence: the converters are not asked to fetch anything."""

_BOM = b"\xef\xbb\xbf"


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is none of the answers
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(_forbid)
    _send(answers, frame(b"{}"))
    base = _memory_in_use()
    while lengths := requests.read(LENGTHS.size):
        request = Request.model_validate_json(requests.read(LENGTHS.unpack(lengths)[0]))
        signal.alarm(int(request.seconds) + GRACE_SECONDS)
        for each in _answer(request, base):
            _send(answers, each)
        signal.alarm(0)


def _send(answers: BinaryIO, message: bytes) -> None:
    answers.write(message)
    answers.flush()


def _forbid(event: str, _: tuple[object, ...]) -> None:
    if event in _FORBIDDEN:
        raise PermissionError(f"{event} is not for a process that reads files")


def _memory_in_use() -> int:
    """Return the size of the process's address space; 0 if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _limit_memory(size: int) -> None:
    """Let the address space be so large. Systems without /proc have no limit that works, either."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    sizes = [each for each in (size, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(sizes, default=resource.RLIM_INFINITY), hard))


# --- one file ---------------------------------------------------------------------------------------------------


def _answer(request: Request, base: int) -> Iterator[bytes]:
    converter = None
    try:
        with open_file(Path(os.fsdecode(request.file.encode("latin-1")))) as file:
            kind = kind_of(request.file_path, file.read(MAGIC_BYTES))
            content = _content(file, request.file_bytes)
        if kind is Kind.DOCX:
            check_docx(content)
        if kind in CONVERTED:
            converter, base = load_converter(kind), _memory_in_use()
        if base:
            _limit_memory(base + request.memory)
        chunked = _chunked(kind, converter, content, request)
    except InvalidInput as error:
        _limit_memory(resource.RLIM_INFINITY)
        yield _refused(error.detail, is_last=converter is not None)
    except MemoryError:
        _limit_memory(resource.RLIM_INFINITY)
        yield _refused(f"reading it needs more than {request.memory >> 20:,} MB of memory: divide it", is_last=True)
    else:
        _limit_memory(resource.RLIM_INFINITY)
        yield frame(_read(kind, chunked, content, request).model_dump_json().encode())
        yield from chunk_frames(chunked.chunks)


def _refused(detail: str, *, is_last: bool) -> bytes:
    return frame(Refused(detail=detail[:1_000], is_last=is_last).model_dump_json().encode())


def _read(kind: Kind, chunked: Chunked, content: bytes, request: Request) -> Read:
    last = chunked.chunks[-1]
    return Read(
        title=chunked.title,
        media_type=kind.value,
        bytes=len(content),
        sha256=hash_of_content(content, request.target),
        chars=last.start + len(last.text),
        chunks=len(chunked.chunks),
        is_last=kind in CONVERTED or len(content) > LARGE_BYTES,
    )


def _content(file: BinaryIO, limit: int) -> bytes:
    """Return the bytes of a file. One that is too large is not read."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    content = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(content) > limit:
        size = max(size, len(content))
        raise InvalidInput(f"the file has {size:,} bytes, and may have at most {limit:,}: divide it")
    return content


def _chunked(kind: Kind, converter: Any, content: bytes, request: Request) -> Chunked:
    title = None
    if kind in {Kind.PDF, Kind.DOCX}:
        text, title = convert(converter, kind, content)
    else:
        text = _decoded(content)
        if kind is Kind.HTML:
            text, title = convert(converter, kind, content)
    if len(text) > request.text_chars:
        raise InvalidInput(f"its text has {len(text):,} characters, and may have {request.text_chars:,}: divide it")
    if not text or text.isspace():
        raise InvalidInput(_NO_TEXT[kind in CONVERTED])
    cut = chunk_text if kind is Kind.TEXT else chunk_markdown
    chunked = cut(text, target=request.target, most=request.chunks)
    return chunked._replace(title=short_title(title) or chunked.title)


_NO_TEXT = ("the file is empty: it has no text", "it has no text; pages that are images need to be recognised as text")


def _decoded(content: bytes) -> str:
    """Return text of UTF-8. Raises InvalidInput that tells where it is none."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidInput("its text is UTF-16, not UTF-8 (byte 0): save it as UTF-8")
    if (nul := content.find(0)) >= 0:
        raise InvalidInput(f"it is no text: there is a NUL at byte {nul:,}")
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        offset = error.start + len(content) - len(content.removeprefix(_BOM))
        raise InvalidInput(f"its text is not UTF-8: the first wrong byte is at {offset:,}; save it as UTF-8") from error


if __name__ == "__main__":
    main()
