"""The search index of a project, in memory: documents ranked by words and by vectors, the same in every process.

`Index.of` makes one of the documents' segments; it is not changed afterwards. A search ranks documents twice, by their
best passage by words (BM25) and by vector (cosine), and adds the reciprocals of both ranks. Nothing depends on what the
database or the machine is: segments are put in the order of their paths, equal scores share a rank, and each cosine is
summed in an order of its own. A product by BLAS is not used: there the last bits of a row depend on where in the matrix
it stands and on the number of threads.

Whatever takes time is one call of numpy on a large array, which releases the GIL, or a block that takes a millisecond
or two, after which others have the GIL.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Self
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from chatkeep.documents import Content, IndexedChunk, Nearest

type Floats = NDArray[np.float32]
type Numbers = NDArray[np.uint32]
type Places = NDArray[np.intp]
type Flags = NDArray[np.bool_]

K1, B = 1.5, 0.75
"""How soon more of the same word tells nothing more, and how much longer passages count less (BM25)."""

RANK_OFFSET = 60
"""What is added to each rank before its reciprocal is taken: with more of it, both rankings have to agree."""

MAX_QUERY_TERMS = 256
"""Most terms of a question; those that follow are ignored."""

_ROWS = 128
"""How many chunks or segments are handled at a time, in a millisecond or two."""

_GIVE_WAY_SECONDS = 50e-6
"""How long others may take the GIL. `sleep(0)` has it back before they have woken, and without either they wait until
Python's switch interval is over (5 ms)."""


class Segment(NamedTuple):
    """What a search needs of one document."""

    document_id: UUID
    content: UUID
    file_path: str
    terms: Numbers
    """The terms of all chunks, in order."""
    lengths: Places
    """How many terms each chunk has."""
    vectors: Floats | None
    """A row for each chunk, of zeros where it has no vector; None if no chunk has one."""
    has_vector: Flags
    """Which chunks have a vector."""

    @classmethod
    def of(cls, content: Content, chunks: Sequence[IndexedChunk]) -> Self:
        """Return the segment of a document of all its chunks, by number. Raises ValueError for vectors of two sizes."""
        lengths = _joined([np.array([len(chunk.terms) // 4 for chunk in some]) for some in _blocks(chunks)], np.intp)
        has_vector = _joined(
            [np.array([chunk.vector is not None for chunk in some]) for some in _blocks(chunks)], np.bool_
        )
        terms = _joined([_numbers(b"".join(chunk.terms for chunk in some)) for some in _blocks(chunks)], np.uint32)
        return cls(
            content.document_id, content.id, content.file_path, terms, lengths, _matrix(chunks, has_vector), has_vector
        )


class Ranked(NamedTuple):
    """A document that a search found."""

    document_id: UUID
    content: UUID
    n: int
    """The number of its best passage."""
    score: float
    """How similar that is to the question, in 0…1: its cosine, or without one the share of the question's words in it,
    the rare ones counting more."""


class _Postings(NamedTuple):
    """Which chunks have which term."""

    terms: Numbers
    """All terms, in order."""
    starts: Places
    """Where the chunks of each begin, and where the last ones end."""
    chunks: Numbers
    weights: Floats
    """What the term adds to the score of the chunk."""

    def find(self, terms: Numbers) -> list[tuple[int, int]]:
        """Return where the chunks of each term begin and end; the same place for one that no chunk has."""
        places = np.searchsorted(self.terms, terms)
        known = places < len(self.terms)
        known[known] = self.terms[places[known]] == terms[known]
        first = np.where(known, self.starts[np.where(known, places, 0)], 0)
        last = np.where(known, self.starts[np.where(known, places + 1, 0)], 0)
        return list(zip(first.tolist(), last.tolist(), strict=True))


class Index:
    """The chunks of a project, ready to be searched."""

    def __init__(self, segments: Sequence[Segment], postings: _Postings, vectors: Floats | None, flags: Flags) -> None:
        """Use `Index.of`."""
        self.segments = segments
        """What the index was made of, in its own arrays: make the next one of these."""
        self._postings = postings
        self._vectors = vectors
        self._has_vector = flags
        self._starts = _starts([len(segment.lengths) for segment in segments])
        self._places = {segment.document_id: place for place, segment in enumerate(segments)}

    @classmethod
    def of(cls, segments: Iterable[Segment]) -> Self:
        """Return the index of all documents of a project."""
        ordered = sorted((segment for segment in segments if len(segment.lengths)), key=lambda one: one.file_path)
        terms = _joined([segment.terms for segment in ordered], np.uint32)
        lengths = _joined([segment.lengths for segment in ordered], np.intp)
        flags = _joined([segment.has_vector for segment in ordered], np.bool_)
        postings = _postings(terms, lengths)
        vectors = _all_vectors(ordered)  # last: the postings take more memory while they are made
        _make_views(ordered, terms, lengths, flags, vectors)
        return cls(ordered, postings, vectors, flags)

    @property
    def nbytes(self) -> int:
        """How much memory it takes, with its segments."""
        kept = [self._has_vector, *self._postings] + ([] if self._vectors is None else [self._vectors])
        return sum(array.nbytes for array in kept) + sum(one.terms.nbytes + one.lengths.nbytes for one in self.segments)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self._has_vector)

    def search(
        self, terms: bytes, vector: Floats | None, limit: int, *, nearest: Sequence[Nearest] | None = None
    ) -> list[Ranked]:
        """Return the documents that answer a question best, by its terms and its vector, and the best passage of each.

        `nearest` is what a database found by the vector, for an index without vectors.
        """
        if not self.segments:
            return []
        asked = np.sort(_numbers(terms)[:MAX_QUERY_TERMS])
        asked = asked[_is_first(asked)]  # `unique` imports numpy.ma, which holds the GIL for 30 ms
        places = self._postings.find(asked)
        cosines = self._cosines(vector) if nearest is None else self._cosines_of(nearest)
        rankings = [self._by_words(places)] + ([] if cosines is None else [cosines])
        documents = self._best_documents(rankings, limit)
        chunks = self._best_chunks(rankings, documents)
        scores = self._shares(places, chunks)
        if cosines is not None:
            near = cosines[chunks]
            scores = np.where(near > _NONE, np.clip(near, 0, 1), scores)
        return [
            Ranked(found.document_id, found.content, int(chunk - self._starts[document]), float(score))
            for document, chunk, score in zip(documents, chunks, scores, strict=True)
            for found in [self.segments[document]]
        ]

    def _by_words(self, places: list[tuple[int, int]]) -> Floats:
        """Return the score of each chunk by words."""
        scores = np.zeros(len(self), np.float32)
        for first, last in places:
            scores[self._postings.chunks[first:last]] += self._postings.weights[first:last]
        scores[scores == 0] = _NONE
        return scores

    def _cosines(self, vector: Floats | None) -> Floats | None:
        """Return the cosine of each chunk to a vector."""
        if vector is None or self._vectors is None:
            return None
        # Not `@`: see above. All rows have the length 1, and so has the vector.
        cosines: Floats = np.einsum("ij,j->i", self._vectors, vector)
        cosines[~self._has_vector] = _NONE
        return cosines

    def _cosines_of(self, nearest: Sequence[Nearest]) -> Floats:
        """Return the cosine of each chunk that a database found."""
        cosines = np.full(len(self), _NONE, np.float32)
        for document_id, n, cosine in nearest:
            place = self._places.get(document_id)
            if place is not None and n < len(self.segments[place].lengths):
                cosines[self._starts[place] + n] = cosine
        return cosines

    def _best_documents(self, rankings: Sequence[Floats], limit: int) -> Places:
        """Return the places of the documents that stand first in the rankings together."""
        fused = np.zeros(len(self.segments))
        for scores in rankings:
            best = np.maximum.reduceat(scores, self._starts[:-1])
            fused += _reciprocals(best, np.sort(best))
        found = np.argsort(-fused, kind="stable")[:limit]
        return found[fused[found] > 0]

    def _best_chunks(self, rankings: Sequence[Floats], documents: Places) -> Places:
        """Return the place of the chunk of each document that stands first in the rankings together."""
        ordered = [np.sort(scores) for scores in rankings]
        best = np.zeros(len(documents), np.intp)
        for number, document in enumerate(documents):
            first, last = self._starts[document : document + 2]
            fused = sum(
                _reciprocals(scores[first:last], every) for scores, every in zip(rankings, ordered, strict=True)
            )
            best[number] = first + np.argmax(fused)
        return best

    def _shares(self, places: list[tuple[int, int]], chunks: Places) -> NDArray[np.float64]:
        """Return how much of the question's words some chunks have, the rare ones counting more."""
        weights = _idf(np.array([last - first for first, last in places]), len(self))
        found = np.zeros(len(chunks))
        for (first, last), weight in zip(places, weights, strict=True):
            having = self._postings.chunks[first:last]
            where = np.searchsorted(having, chunks)
            found += weight * (np.append(having, len(self))[where] == chunks)
        return found / (weights.sum() or 1)


_NONE = np.float32(-np.inf)
"""The score of what a search does not find."""


def _reciprocals(scores: Floats, ordered: Floats) -> NDArray[np.float64]:
    """Return the reciprocal rank of each score among all, which are in ascending order; equal ones share a rank."""
    above = len(ordered) - np.searchsorted(ordered, scores, side="right")
    return np.where(scores > _NONE, 1 / (RANK_OFFSET + 1 + above), 0)


def _postings(terms: Numbers, lengths: Places) -> _Postings:
    """Return which chunks have which terms, weighted by BM25 (Lucene's variant)."""
    pairs, counts = _counted(_sorted_pairs(terms, lengths))
    chunks = (pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    is_first = _is_first(pairs := pairs >> np.uint64(32))
    starts = np.append(np.flatnonzero(is_first), len(pairs))
    number = np.cumsum(is_first.astype(np.uint32), dtype=np.uint32) - np.uint32(1)
    idf = _idf(np.diff(starts), len(lengths)).astype(np.float32)
    relative = lengths / (len(terms) / max(len(lengths), 1) or 1)
    damping = (K1 * (1 - B + B * relative)).astype(np.float32)
    weights = counts / (counts + damping[chunks]) * idf[number]
    return _Postings(pairs[starts[:-1]].astype(np.uint32), starts, chunks, weights)


def _sorted_pairs(terms: Numbers, lengths: Places) -> NDArray[np.uint64]:
    """Return each term with the number of its chunk below it, in order."""
    pairs = np.empty(len(terms), np.uint64)
    start = 0
    for places in _blocks(range(len(lengths))):  # `repeat` does not release the GIL
        some = lengths[places[0] : places[-1] + 1]
        end = start + int(some.sum())
        np.left_shift(terms[start:end], np.uint64(32), out=pairs[start:end], dtype=np.uint64)
        pairs[start:end] |= np.repeat(np.array(places, np.uint64), some)
        start = end
    pairs.sort()
    return pairs


def _counted(ordered: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], Floats]:
    """Return the different numbers of some in order, and how often each is there."""
    places = np.flatnonzero(_is_first(ordered))
    return ordered[places], np.diff(places, append=len(ordered)).astype(np.float32)


def _is_first(ordered: NDArray[np.unsignedinteger]) -> Flags:
    """Return which numbers differ from the one before them."""
    flags = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=flags[1:])
    return flags


def _idf(having: Places, chunks: int) -> NDArray[np.float64]:
    """Return how much a term tells that so many chunks have."""
    return np.log1p((chunks - having + 0.5) / (having + 0.5))


def _numbers(packed: bytes) -> Numbers:
    return np.frombuffer(packed, "<u4")


def _blocks[Item](items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield some at a time, and let others have the GIL in between."""
    for first in range(0, len(items), _ROWS):
        if first:
            time.sleep(_GIVE_WAY_SECONDS)
        yield items[first : first + _ROWS]


def _matrix(chunks: Sequence[IndexedChunk], has_vector: Flags) -> Floats | None:
    """Return the vectors of chunks in rows."""
    sizes = {
        size for some in _blocks(chunks) for size in {len(chunk.vector) for chunk in some if chunk.vector is not None}
    }
    if not sizes:
        return None
    if len(sizes) > 1:
        raise ValueError(f"vectors of one space have one size, got {sorted(sizes)} bytes")
    matrix = np.zeros((len(chunks), sizes.pop() // 4), np.float32)
    for number, some in enumerate(_blocks(chunks)):
        rows = slice(number * _ROWS, number * _ROWS + len(some))
        packed = b"".join(chunk.vector for chunk in some if chunk.vector is not None)
        matrix[rows][has_vector[rows]] = np.frombuffer(packed, "<f4").reshape(-1, matrix.shape[1])
    return matrix


def _all_vectors(segments: Sequence[Segment]) -> Floats | None:
    """Return the vectors of all segments in one matrix."""
    dimension = next((one.vectors.shape[1] for one in segments if one.vectors is not None), None)
    if dimension is None:
        return None
    return _joined(
        [
            np.zeros((len(one.lengths), dimension), np.float32) if one.vectors is None else one.vectors
            for one in segments
        ],
        np.float32,
        dimension,
    )


def _make_views(segments: list[Segment], terms: Numbers, lengths: Places, flags: Flags, vectors: Floats | None) -> None:
    """Make segments parts of the arrays of all of them, which frees their own, some at a time: that takes a while."""
    of_terms = pairwise(_starts([len(one.terms) for one in segments]).tolist())
    of_chunks = pairwise(_starts([len(one.lengths) for one in segments]).tolist())
    for places in _blocks(range(len(segments))):
        for place in places:
            some, rows, one = slice(*next(of_terms)), slice(*next(of_chunks)), segments[place]
            segments[place] = one._replace(
                terms=terms[some],
                lengths=lengths[rows],
                vectors=None if vectors is None or one.vectors is None else vectors[rows],
                has_vector=flags[rows],
            )


def _starts(sizes: Sequence[int]) -> Places:
    """Return where parts of some sizes begin, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.intp)))


def _joined[Kind: np.generic](arrays: Sequence[NDArray[Kind]], kind: type[Kind], *shape: int) -> NDArray[Kind]:
    """Return arrays, whose rows have a shape, as one; there may be none."""
    joined, end = np.empty((sum(map(len, arrays)), *shape), kind), 0
    for some in _blocks(arrays):
        start, end = end, end + sum(map(len, some))
        np.concatenate(some, out=joined[start:end])
    return joined
