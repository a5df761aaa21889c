"""What a process that reads files and its parent tell each other: frames of JSON and bytes, over pipes. No I/O.

A frame is its length, the length of its JSON (32 bits each, big-endian), the JSON, and bytes. The parent trusts no
frame: its size is limited before it is read, and its values are checked.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from chatkeep.documents import MAX_CHUNK_CHARS, MAX_CHUNK_TERMS, NewChunk

LENGTHS = struct.Struct(">II")

MAX_FRAME_BYTES = 4 << 20
"""Largest frame. A chunk of the longest text, escaped, with the most terms has 300 KB."""

SLICE_BYTES = 64 << 10
"""Chunks are sent in frames of so many bytes, more or less: decoding one takes less than a millisecond."""

_ROW_BYTES = 100
"""What a chunk takes beside its text: so that a frame has few chunks, too."""


class _Frame(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", frozen=True)


class Request(_Frame):
    """Asks a child to read a file. Everything that limits it comes along."""

    file: str
    file_path: str
    file_bytes: int
    text_chars: int
    chunks: int
    target: int
    seconds: float
    memory: int


class Read(_Frame):
    """Tells what a document is; its chunks follow, in other frames."""

    kind: Literal["read"] = "read"
    title: str | None = Field(max_length=255)
    media_type: str = Field(max_length=100)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    chars: int = Field(ge=0)
    chunks: int = Field(ge=1)
    is_last: bool
    """Whether the child must not be used again."""


class Refused(_Frame):
    """Tells why a file cannot be read."""

    kind: Literal["refused"] = "refused"
    detail: str = Field(min_length=1, max_length=1_000)
    is_last: bool


ANSWER: TypeAdapter[Read | Refused] = TypeAdapter(Annotated[Read | Refused, Field(discriminator="kind")])

_Row = tuple[
    Annotated[str, Field(min_length=1, max_length=MAX_CHUNK_CHARS)],
    Annotated[str, Field(max_length=1_000)] | None,
    Annotated[str, Field(max_length=1_000)],
    Annotated[int, Field(ge=0)],
    Annotated[int, Field(ge=0, le=4 * MAX_CHUNK_TERMS, multiple_of=4)],
]
_ROWS: TypeAdapter[list[_Row]] = TypeAdapter(Annotated[list[_Row], Field(min_length=1)], config=ConfigDict(strict=True))
"""Texts, anchors, headings, places, and the sizes of the terms that follow."""


def frame(json: bytes, rest: bytes = b"") -> bytes:
    """Return a frame."""
    return LENGTHS.pack(len(json) + len(rest), len(json)) + json + rest


def chunk_frames(chunks: Iterable[NewChunk]) -> Iterator[bytes]:
    """Yield the frames of chunks."""
    rows: list[_Row] = []
    terms: list[bytes] = []
    size = 0
    for chunk in chunks:
        rows.append((chunk.text, chunk.header_anchor, chunk.heading, chunk.start, len(chunk.terms)))
        terms.append(chunk.terms)
        size += _ROW_BYTES + len(chunk.text) + len(chunk.heading) + len(chunk.terms)
        if size >= SLICE_BYTES:
            yield frame(_ROWS.dump_json(rows), b"".join(terms))
            rows, terms, size = [], [], 0
    if rows:
        yield frame(_ROWS.dump_json(rows), b"".join(terms))


def chunks_of(json: bytes, terms: bytes, start: int) -> list[NewChunk]:
    """Return the chunks of a frame, the first of which begins at `start`. Raises ValueError if they are no such."""
    chunks, place = [], 0
    for text, anchor, heading, begins, size in _ROWS.validate_json(json):
        if begins != start:
            raise ValueError("the chunks do not follow one another")
        chunks.append(NewChunk(text, anchor, heading, begins, terms[place : place + size]))
        start, place = start + len(text), place + size
    if place != len(terms):
        raise ValueError("the terms are not those of the chunks")
    return chunks
