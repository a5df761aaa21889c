"""Segments: what a search needs of documents, in columns.

A process keeps it for as long as a project is searched. Of objects for each document there would be 4,000 in a project
of 1,000 documents: 1 MB that no array counts, and that Python's garbage collector goes through again and again while
nothing else runs. It does not go through arrays and bytes.
"""

import math
import mmap
import struct
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Self
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from chatkeep.documents import Content, IndexedChunk

type Floats = NDArray[np.float32]
type Numbers = NDArray[np.uint32]
type Places = NDArray[np.intp]
type Flags = NDArray[np.bool_]

type Packed = bytes
"""A content. Equal contents are equal when they are packed."""

_ROWS = 128
"""How many chunks or documents are handled at a time, in a millisecond or two."""

_NUMBERS = 1 << 17
"""How many numbers are handled at a time, in a millisecond or two."""

_BYTES = 4 << 20
"""How much is copied at a time: to copy a part of it releases the GIL for too short a time for others to wake."""

_MAPPED_BYTES = 64 << 10
"""Arrays of at least so many bytes are mappings of their own."""

_HUGE_PAGE_BYTES = 4 << 20
"""Arrays of at least so many bytes are asked of the kernel in huge pages, as numpy does."""

_GIVE_WAY_SECONDS = 50e-6
"""How long others may take the GIL. `sleep(0)` has it back before they have woken, and without either they wait until
Python's switch interval is over (5 ms)."""

_HEAD = struct.Struct(">16s16sQI")

DOCUMENT, TEXT = slice(16), slice(32)
"""Where a packed content has the id of its document, and where both ids: what is not changed by new vectors."""


class Segment(NamedTuple):
    """Documents, or parts of them, one after another."""

    contents: list[Packed]
    sizes: list[int]
    """How many chunks of each are here."""
    term_sizes: list[int]
    """How many terms these have."""
    terms: Numbers
    """The terms of all chunks, in order."""
    lengths: Places
    """How many terms each chunk has."""
    vectors: Floats | None
    """A row for each chunk, of zeros where it has no vector; None if no chunk has one."""
    has_vector: Flags
    """Which chunks have a vector."""

    @classmethod
    def of(cls, parts: Sequence[tuple[Content, Sequence[IndexedChunk]]]) -> Self:
        """Return the segment of contents and some chunks of each. Raises ValueError for vectors of two sizes."""
        chunks = [chunk for _, some in parts for chunk in some]
        lengths = joined([np.array([len(chunk.terms) // 4 for chunk in some]) for some in blocks(chunks)], np.intp)
        has_vector = joined(
            [np.array([chunk.vector is not None for chunk in some]) for some in blocks(chunks)], np.bool_
        )
        terms = joined([numbers(b"".join(chunk.terms for chunk in some)) for some in blocks(chunks)], np.uint32)
        return cls(
            [pack(content) for content, _ in parts],
            [len(some) for _, some in parts],
            [sum(len(chunk.terms) // 4 for chunk in some) for _, some in parts],
            terms,
            lengths,
            _matrix(chunks, has_vector),
            has_vector,
        )

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        vectors = 0 if self.vectors is None else self.vectors.nbytes
        lists = sum(map(sys.getsizeof, (self.contents, self.sizes, self.term_sizes, *self.contents)))
        return self.terms.nbytes + self.lengths.nbytes + self.has_vector.nbytes + vectors + lists


class Merge:
    """The columns of those contents of segments that are wanted and have all their chunks, in the order of paths."""

    def __init__(self, segments: Sequence[Segment], wanted: Collection[Packed]) -> None:
        """Take the segments. Those of later chunks of a content follow those of its first ones."""
        self._segments = segments
        self._contents = [content for segment in segments for content in segment.contents]
        self._order = self._places(wanted)

    def segment(self, terms: Numbers, lengths: Places) -> Segment:
        """Return all of it, with columns that were made before."""
        term_sizes = [size for segment in self._segments for size in segment.term_sizes]
        sizes = Counter[Packed]()
        for place in self._order:
            sizes[self._contents[place]] += term_sizes[place]
        chunks = [chunks_of(content) for content in sizes]
        return Segment(list(sizes), chunks, list(sizes.values()), terms, lengths, self._vectors(), self._has_vector())

    def terms(self) -> Numbers:
        """Return the terms of all chunks."""
        return joined(self._parts([(one.terms, one.term_sizes) for one in self._segments]), np.uint32)

    def lengths(self) -> Places:
        """Return how many terms each chunk has."""
        return joined(self._parts([(one.lengths, one.sizes) for one in self._segments]), np.intp)

    def _has_vector(self) -> Flags:
        return joined(self._parts([(one.has_vector, one.sizes) for one in self._segments]), np.bool_)

    def _vectors(self) -> Floats | None:
        dimension = next((one.vectors.shape[1] for one in self._segments if one.vectors is not None), None)
        if dimension is None:
            return None
        columns = [
            (zeros(len(one.lengths), np.float32, dimension) if one.vectors is None else one.vectors, one.sizes)
            for one in self._segments
        ]
        return joined(self._parts(columns), np.float32, dimension)

    def _places(self, wanted: Collection[Packed]) -> list[int]:
        """Return which parts belong to wanted contents that are whole, in the order of paths and chunks."""
        parts = list(zip(self._contents, [size for one in self._segments for size in one.sizes], strict=True))
        read = Counter[Packed]()
        for some in blocks(parts):
            for content, size in some:
                read[content] += size
        whole = {content for some in blocks(list(wanted)) for content in some if read[content] == chunks_of(content)}
        paths = [_path_of(content) for some in blocks(parts) for content, _ in some]
        return sorted(
            (n for n, (content, size) in enumerate(parts) if size and content in whole), key=paths.__getitem__
        )

    def _parts[Kind: np.generic](self, columns: Sequence[tuple[NDArray[Kind], list[int]]]) -> list[NDArray[Kind]]:
        """Return the parts of the contents, in order, of columns that are cut into some sizes."""
        parts = [
            column[first:last]
            for some in blocks(columns)
            for column, sizes in some
            for first, last in pairwise(accumulate(sizes, initial=0))
        ]
        return [parts[place] for place in self._order]


def pack(content: Content) -> Packed:
    """Return a content as one object without references to others."""
    texts = content.file_path if content.title is None else f"{content.file_path}\0{content.title}"
    return _HEAD.pack(content.document_id.bytes, content.id.bytes, content.version, content.chunks) + texts.encode()


def unpack(packed: Packed) -> Content:
    """Return a content that was packed."""
    document, content, version, chunks = _HEAD.unpack_from(packed)
    path, *title = packed[_HEAD.size :].decode().split("\0", 1)  # there is none in a path
    return Content(UUID(bytes=document), UUID(bytes=content), path, title[0] if title else None, chunks, version)


def chunks_of(packed: Packed) -> int:
    """Return how many chunks a content has."""
    chunks: int = _HEAD.unpack_from(packed)[-1]
    return chunks


def _path_of(packed: Packed) -> bytes:
    """Return the path of a content in UTF-8, which has the order of its characters."""
    return packed[_HEAD.size :].partition(b"\0")[0]


def _matrix(chunks: Sequence[IndexedChunk], has_vector: Flags) -> Floats | None:
    """Return the vectors of chunks in rows."""
    sizes = {
        size for some in blocks(chunks) for size in {len(chunk.vector) for chunk in some if chunk.vector is not None}
    }
    if not sizes:
        return None
    if len(sizes) > 1:
        raise ValueError(f"vectors of one space have one size, got {sorted(sizes)} bytes")
    matrix = zeros(len(chunks), np.float32, sizes.pop() // 4)
    for number, some in enumerate(blocks(chunks)):
        rows = slice(number * _ROWS, number * _ROWS + len(some))
        packed = b"".join(chunk.vector for chunk in some if chunk.vector is not None)
        matrix[rows][has_vector[rows]] = np.frombuffer(packed, "<f4").reshape(-1, matrix.shape[1])
    return matrix


def free[Item](items: list[Item]) -> None:
    """Remove all items, one after another: to free large arrays takes a millisecond or two."""
    while items:
        items.pop()
        time.sleep(_GIVE_WAY_SECONDS)


def zeros[Kind: np.generic](rows: int, kind: type[Kind], *shape: int) -> NDArray[Kind]:
    """Return an array of zeros, whose rows have a shape.

    A large one is a mapping, which is given back to the kernel without the GIL. Of numpy's own arrays, malloc keeps
    those up to 32 MB on its heap, and one of the next small objects that are freed there gives all of them back at
    once, with the GIL: 20 ms for 130 MB.
    """
    nbytes = rows * math.prod(shape) * np.dtype(kind).itemsize
    if nbytes < _MAPPED_BYTES:
        return np.zeros((rows, *shape), kind)
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, kind).reshape(rows, *shape)


def numbers(packed: bytes) -> Numbers:
    """Return packed numbers."""
    return np.frombuffer(packed, "<u4")


def blocks[Item](items: Sequence[Item], nbytes: int = 0) -> Iterator[Sequence[Item]]:
    """Yield some at a time, and let others have the GIL in between. All together have so many bytes."""
    size = max(1, min(_ROWS, _BYTES * len(items) // max(nbytes, 1)))
    for some in slices(len(items), size):
        yield items[some]


def slices(length: int, size: int | None = None) -> Iterator[slice]:
    """Yield slices of so many items, by default of numbers, and let others have the GIL in between."""
    size = size or _NUMBERS
    for start in range(0, length, size):
        if start:
            time.sleep(_GIVE_WAY_SECONDS)
        yield slice(start, min(start + size, length))


def joined[Kind: np.generic](arrays: Sequence[NDArray[Kind]], kind: type[Kind], *shape: int) -> NDArray[Kind]:
    """Return arrays, whose rows have a shape, as one; there may be none."""
    whole, end = zeros(sum(map(len, arrays)), kind, *shape), 0
    for some in blocks(arrays, whole.nbytes):
        start, end = end, end + sum(map(len, some))
        np.concatenate(some, out=whole[start:end])
    return whole
