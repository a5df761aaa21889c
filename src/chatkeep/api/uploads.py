"""Files that are uploaded: written to the disk while they arrive, one form of one file at a time.

The parser takes a form apart byte by byte where it sees the boundary, and is slow there: it runs in a thread of its
own, and a form in which the boundary stands more often than between its parts is refused before the parser sees it.
"""

import asyncio
import logging
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.types import Scope

from chatkeep.api.errors import RETRY_AFTER, Refused
from chatkeep.documents import MAX_PATH_CHARS, document_path
from chatkeep.errors import StoreUnavailable

MULTIPART = "multipart/form-data"

PATH = re.compile(r"/api/projects/[^/]+/documents")
"""Where files are sent."""

MAX_UPLOADS, MAX_UPLOADS_PER_OWNER = 8, 2
"""Most uploads at a time, in a process and of one owner. Each may take the largest file's size on the disk."""

FORM_BYTES = 64 << 10
"""Most bytes that a form may have beside its file."""

MAX_HEADERS, MAX_HEADER_BYTES = 8, 8 << 10
"""Most headers of a part, and bytes of each."""

MAX_FIELD_BYTES = 16 * MAX_PATH_CHARS
"""Most bytes of a field that is no file: the longest path, each character decomposed into four."""

MAX_TYPE_CHARS = 1_024
"""Longest Content-Type that is read."""

MAX_BOUNDARY_CHARS = 70
"""Longest boundary (RFC 2046, 5.1.1)."""

FILE, FILE_PATH = "file", "file_path"
FIELDS = (FILE, FILE_PATH)

WRITE_BYTES = 64 << 10
"""Bytes that are parsed and written at a time."""

NOT_A_FORM = "send multipart/form-data with a boundary, the file as the field `file`, and without Content-Encoding"
BROKEN = "the body is not valid multipart/form-data"
TOO_MANY = "too many files are on their way; send this one again after the seconds in Retry-After"
TOO_MANY_OF_YOURS = (
    f"at most {MAX_UPLOADS_PER_OWNER} files of one owner are taken at a time; send this one again when they are stored"
)

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings repeat bytes of the request


def is_upload(scope: Scope) -> bool:
    """Whether a request sends a file, which has limits of its own."""
    return scope["method"] == "POST" and PATH.fullmatch(scope["path"]) is not None


def too_large(limit: int) -> str:
    """Return the detail of a 413."""
    return f"a file may have at most {limit:,} bytes; split it, or raise CHATKEEP_MAX_UPLOAD_BYTES"


class Upload(NamedTuple):
    """A file that has arrived."""

    file: Path
    """Where it is until the request ends."""
    file_path: str


class UploadRoute(APIRoute):
    """A route that takes a form with a file, and nothing else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, preceded by the check of the media type."""
        handle = super().get_route_handler()

        async def handle_form(request: Request) -> Response:
            boundary_of(request)
            return await handle(request)

        return handle_form


def boundary_of(request: Request) -> bytes:
    """Return the boundary of a form. Raises Refused (415)."""
    given = request.headers.get("content-type", "")
    media_type, options = parse_options_header(given) if len(given) <= MAX_TYPE_CHARS else (b"", {})
    boundary = options.get(b"boundary", b"")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if media_type.strip() != MULTIPART.encode() or encoding != "identity":
        raise Refused(415, NOT_A_FORM)
    if not 1 <= len(boundary) <= MAX_BOUNDARY_CHARS:
        raise Refused(415, NOT_A_FORM)
    return boundary


class Uploads:
    """Receives the files of one application, in a folder of its own."""

    def __init__(self, max_bytes: int) -> None:
        """Take the size of the largest file."""
        self.max_bytes = max_bytes
        self._held: Counter[str] = Counter()
        self._folder: Path | None = None
        self._thread = ThreadPoolExecutor(1, "chatkeep-uploads")

    @asynccontextmanager
    async def receiving(self, request: Request, owner: str) -> AsyncIterator[Upload]:
        """Receive the file of a request, which is removed at the end.

        Raises Refused (413, 422, 429, 503), RequestValidationError, InvalidInput, StoreUnavailable.
        """
        boundary = boundary_of(request)
        with self._place(owner):
            form = _Form(boundary, self._new_file, self.max_bytes)
            try:
                await self._receive(request, form)
                yield form.received()
            finally:
                # After what the thread may still do for a request that was cancelled. A closed one has no files.
                with suppress(RuntimeError):
                    self._thread.submit(form.discard)

    async def aclose(self) -> None:
        """Remove the folder. Idempotent."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _place(self, owner: str) -> Iterator[None]:
        """Count an upload. Raises Refused if there are too many."""
        if self._held[owner] >= MAX_UPLOADS_PER_OWNER:
            raise Refused(429, TOO_MANY_OF_YOURS, headers=RETRY_AFTER)
        if self._held.total() >= MAX_UPLOADS:
            raise Refused(503, TOO_MANY, headers=RETRY_AFTER)
        self._held[owner] += 1
        try:
            yield
        finally:
            self._held -= Counter([owner])

    async def _receive(self, request: Request, form: "_Form") -> None:
        waiting = bytearray()
        async for data in request.stream():
            waiting += data
            if len(waiting) >= WRITE_BYTES:
                await self._feed(form, bytes(waiting))
                waiting.clear()
        await self._feed(form, bytes(waiting))

    async def _feed(self, form: "_Form", data: bytes) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, form.feed, data)
        except FormParserError:
            raise Refused(422, BROKEN) from None
        except OSError as error:
            raise StoreUnavailable("an uploaded file could not be written", got=error) from None

    def _new_file(self) -> Path:
        """Return where a new file may be. Called in the thread."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="chatkeep-uploads-"))
        return self._folder / uuid4().hex


class _Form:
    """A form that arrives. Its parts are taken apart, and its file written, in one thread."""

    def __init__(self, boundary: bytes, new_file: Callable[[], Path], max_bytes: int) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = 0
        self._new_file = new_file
        self._max_bytes = max_bytes
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": self._content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._seen: set[str] = set()
        self._part = ""
        self._path = bytearray()
        self._file_name: bytes | None = None
        self._size = 0
        self._is_whole = False
        self._file: Path | None = None
        self._writes: Any = None

    # --- in the thread ------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what has arrived. Raises Refused, FormParserError, OSError."""
        self._delimiters += data.count(self._delimiter)
        if self._delimiters > len(FIELDS) + 1:
            raise Refused(422, f"{BROKEN}: the boundary stands in the file, or there are more fields than two")
        self._parser.write(data)
        if self._parser.state is MultipartState.BOUNDARY_PADDING:
            raise Refused(422, BROKEN)  # each blank after a boundary costs as much as a thousand bytes of a file

    def discard(self) -> None:
        """Remove the file."""
        self._end_part()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _begin_part(self) -> None:
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _end_header(self) -> None:
        name, value = map(bytes, self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        for each in self._header:
            each.clear()

    def _begin_content(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")
        if kind != b"form-data" or name not in FIELDS:
            raise Refused(422, f"{BROKEN}: each part has a Content-Disposition with one of the names file, file_path")
        if name in self._seen:
            raise Refused(422, f"{name} must be given once; send each file in a request of its own")
        self._seen.add(name)
        self._part = name
        if name == FILE:
            self._file_name = options.get(b"filename")
            self._file = self._new_file()
            self._writes = self._file.open("xb", buffering=0)

    def _content(self, data: bytes, start: int, end: int) -> None:
        if self._part == FILE:
            self._size += end - start
            if self._size > self._max_bytes:
                raise Refused(413, too_large(self._max_bytes))
            self._writes.write(memoryview(data)[start:end])
        else:
            self._path += data[start:end]
            if len(self._path) > MAX_FIELD_BYTES:
                raise Refused(422, f"{FILE_PATH} may have at most {MAX_PATH_CHARS:,} characters")

    def _end_part(self) -> None:
        if self._writes is not None:
            self._writes.close()
            self._writes = None

    def _end(self) -> None:
        self._is_whole = True

    # --- afterwards ---------------------------------------------------------------------------------------

    def received(self) -> Upload:
        """Return the file. Raises Refused, RequestValidationError, InvalidInput."""
        if not self._is_whole:
            raise Refused(422, f"{BROKEN}: it ends before its last boundary")
        if self._file is None:
            raise RequestValidationError([{"type": "missing", "loc": ("body", FILE)}])
        return Upload(self._file, self._valid_path())

    def _valid_path(self) -> str:
        """Return the given path, or the name of the file without the folders that some clients send with it."""
        is_given = FILE_PATH in self._seen
        if not is_given and not self._file_name:
            raise RequestValidationError([{"type": "missing", "loc": ("body", FILE_PATH)}])
        given = bytes(self._path) if is_given else re.split(rb"[/\\]", self._file_name or b"")[-1]
        try:
            return document_path(given.decode())
        except UnicodeDecodeError:
            raise Refused(422, f"{FILE_PATH} must be UTF-8") from None


async def uploads_of(request: Request) -> Uploads:
    """Return what receives the files of the application."""
    uploads: Uploads = request.app.state.uploads
    return uploads


AppUploads = Annotated[Uploads, Depends(uploads_of)]
